"""Classify images with a released model: `python predict.py IMAGE [IMAGE ...]`.

Needs numpy, Pillow and onnxruntime, and nothing else; the model file says the rest.
"""

import json
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of up to 16 bits as 8 bits; others as they are. Raises: ValueError."""
    if image.mode == "F":
        raise ValueError("pixels are 32-bit floats, expected 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels have more than 16 bits, expected 8 or 16")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def decode(image: Image.Image, image_px: int, channels: int | None = None) -> NDArray[np.uint8]:
    """Pixels as the models see them: uint8 (P, P, C), upright as EXIF says, resized bicubically.

    JPEGs are decoded at a reduced size, never below 2 P: several times faster.

    Args:
        image: just opened.
        channels: 1 or 3; None keeps grey images grey.

    Raises: OSError, ValueError, SyntaxError when the file is damaged (Pillow's own errors).
    """
    if channels is None:
        channels = 1 if image.mode in GREY_MODES else 3
    if image.format == "JPEG":
        image.draft(image.mode, (2 * image_px, 2 * image_px))
    upright = ImageOps.exif_transpose(image)
    converted = _eight_bits(upright).convert("L" if channels == 1 else "RGB")
    resized = converted.resize((image_px, image_px), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8).reshape(image_px, image_px, channels)


class Model:
    """A released ONNX model.

    Attributes:
        classes: names, in the order of the probabilities.
        image_px, channels: what images are converted to.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime  # the pipeline uses this file's `decode` without it

        self._session: Any = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.classes: list[str] = json.loads(metadata["classes"])
        self.image_px = int(metadata["image_px"])
        self.channels = int(metadata["channels"])

    def pixels(self, file: Path | IO[bytes]) -> NDArray[np.uint8]:
        """An image file as uint8 (P, P, C), decoded as the training images were."""
        with Image.open(file) as image:
            return decode(image, self.image_px, self.channels)

    def predict(self, files: list[Path]) -> NDArray[np.float32]:
        """Probabilities (number of files, K)."""
        batch = np.stack([self.pixels(file) for file in files])
        found: NDArray[np.float32] = self._session.run(None, {"images": batch})[0]
        return found


def main() -> None:
    """Print one line an image: its class, the probability, the file."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    files = [Path(argument) for argument in arguments]
    model = Model(Path(__file__).with_name("model.onnx"))
    for file in files:
        try:
            (row,) = model.predict([file])
        except (OSError, ValueError, SyntaxError) as error:
            sys.exit(f"error: {file}: {error}")
        best = int(row.argmax())
        print(f"{model.classes[best]}\t{row[best]:.3f}\t{file}")


if __name__ == "__main__":
    main()

"""Classify images with a released model: `python predict.py IMAGE [IMAGE ...]`.

Needs numpy, Pillow and onnxruntime, and nothing else; the model file says the rest.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image


class Model:
    """A released ONNX model.

    Attributes:
        classes: names, in the order of the probabilities.
        image_px, channels: what images are converted to.
    """

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.classes: list[str] = json.loads(metadata["classes"])
        self.image_px = int(metadata["image_px"])
        self.channels = int(metadata["channels"])

    def pixels(self, path: Path) -> NDArray[np.uint8]:
        """An image file as uint8 (P, P, C), resized as the training images were."""
        with Image.open(path) as image:
            converted = image.convert("L" if self.channels == 1 else "RGB")
        size = (self.image_px, self.image_px)
        resized = converted.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(resized, dtype=np.uint8).reshape(*size, self.channels)

    def predict(self, paths: list[Path]) -> NDArray[np.float32]:
        """Probabilities (number of paths, K)."""
        batch = np.stack([self.pixels(path) for path in paths])
        found: NDArray[np.float32] = self._session.run(None, {"images": batch})[0]
        return found


def main() -> None:
    """Print one line an image: its class, the probability, the file."""
    files = [Path(argument) for argument in sys.argv[1:]]
    if not files:
        sys.exit(__doc__)
    model = Model(Path(__file__).with_name("model.onnx"))
    for file in files:
        try:
            (row,) = model.predict([file])
        except OSError as error:
            sys.exit(f"error: {file}: {error}")
        best = int(row.argmax())
        print(f"{model.classes[best]}\t{row[best]:.3f}\t{file}")


if __name__ == "__main__":
    main()

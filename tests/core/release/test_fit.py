"""Images that are not square: stretched, padded or cropped, in training as in a release."""

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.core.intake.images import look
from stages.core.release import predict
from stages.core.release.predict import Fit
from tests.helpers.scenes import LIMIT, PX, saved, scene

FITS = get_args(Fit)


def read(content: bytes, fit: Fit, px: int = PX) -> NDArray[np.uint8]:
    picture = predict.read(content, image_px=px, max_pixels=LIMIT, fit=fit)
    return predict.as_input(picture, picture.pixels.shape[2], 16)


def naive(image: Image.Image, fit: Fit) -> NDArray[np.uint8]:
    """What `read` promises of an image without transparency, in Pillow's words alone."""
    width, height = image.size
    bicubic = Image.Resampling.BICUBIC
    if fit == "stretch":
        square = image.resize((PX, PX), bicubic)
    elif fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((PX, PX), bicubic)
    else:
        factor = PX / max(width, height)
        small = image.resize((round(width * factor), round(height * factor)), bicubic)
        if width > height:
            edges = [(x, y) for x in range(PX) for y in (0, small.height - 1)]
        else:
            edges = [(x, y) for y in range(PX) for x in (0, small.width - 1)]
        values = [np.asarray(small)[y, x] for x, y in edges]
        colour = tuple(round(float(v)) for v in np.atleast_1d(np.mean(values, 0)))
        square = Image.new(image.mode, (PX, PX), colour if len(colour) > 1 else colour[0])
        square.paste(small, ((PX - small.width) // 2, (PX - small.height) // 2))
    return np.asarray(square).reshape(PX, PX, -1)


SIZES = [(96, 32), (32, 96), (61, 44), (44, 61), (60, 59), (64, 64), (320, 10)]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_a_naive_version(size: tuple[int, int], mode: str, fit: Fit) -> None:
    image = scene(mode, *size)
    assert np.array_equal(read(saved(image, "PNG"), fit), naive(image, fit))


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "I;16", "P"])
def test_square_images_are_the_same_in_each_way(mode: str) -> None:
    content = saved(scene(mode, 50, 50), "PNG")
    stretched, padded, cropped = (read(content, fit) for fit in FITS)
    assert np.array_equal(padded, stretched)
    assert np.array_equal(cropped, stretched)


def test_the_default_is_to_stretch() -> None:
    content = saved(scene(), "PNG")
    plain = predict.read(content, image_px=PX, max_pixels=LIMIT).pixels
    assert np.array_equal(plain, read(content, "stretch"))
    assert look(content, PX, LIMIT).pixels == plain.tobytes()


@pytest.mark.parametrize("fit", FITS)
def test_images_lie_as_exif_says_before_they_are_fitted(fit: Fit) -> None:
    upright = scene(width=90, height=40)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert np.array_equal(read(content, fit), naive(upright, fit))


@pytest.mark.parametrize("fit", FITS)
def test_large_jpegs_are_fitted_as_small_ones(fit: Fit) -> None:
    """They are decoded at a reduced size, of which neither side falls below the square's."""
    image = scene(width=60, height=15).resize((1200, 300), Image.Resampling.BICUBIC)
    pixels = read(saved(image, "JPEG", quality=95), fit).astype(int)
    assert np.abs(pixels - naive(image, fit)).mean() < 2


@pytest.mark.parametrize("fit", FITS)
def test_deep_images_are_fitted_as_others(fit: Fit) -> None:
    deep = scene("I;16", 96, 40)
    flat = Image.fromarray((np.asarray(deep) // 257).astype(np.uint8))
    assert np.abs(read(saved(deep, "PNG"), fit).astype(int) - naive(flat, fit)).max() <= 1


def test_padding_continues_a_plain_background() -> None:
    """On white paper as on black film, the object keeps its shape, and no seam shows."""
    for ground, ink in ((255, 0), (0, 200)):
        image = np.full((30, 90, 3), ground, np.uint8)
        image[10:20, 40:50] = ink
        pixels = read(saved(Image.fromarray(image), "PNG"), "pad", 90)
        assert (pixels[:30] == ground).all()
        assert (pixels[60:] == ground).all()
        assert np.array_equal(pixels[30:60], image)


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000), (1000, 31), (33, 32)])
@pytest.mark.parametrize("fit", FITS)
def test_any_shape_becomes_a_square(size: tuple[int, int], fit: Fit) -> None:
    assert read(saved(scene("RGB", *size), "PNG"), fit).shape == (PX, PX, 3)


def exported_as(exported: Path, at: Path, fit: str | None) -> predict.Model:
    """The model with another word of how it fits images, or with none, as it was once."""
    model = onnx.load(exported)
    entries = {entry.key: entry.value for entry in model.metadata_props} | {"fit": fit}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in entries.items() if v is not None})
    onnx.save(model, at / "model.onnx")
    return predict.Model(at / "model.onnx")


@pytest.mark.parametrize("fit", FITS)
def test_a_release_fits_images_as_training_did(exported: Path, tmp_path: Path, fit: Fit) -> None:
    content = saved(scene("L", 90, 40), "PNG")
    model = exported_as(exported, tmp_path, fit)
    expected = look(content, model.image_px, LIMIT, fit).pixels
    assert model.pixels(content).tobytes() == expected


def test_a_release_of_old_stretches(exported: Path, tmp_path: Path) -> None:
    content = saved(scene("L", 90, 40), "PNG")
    model = exported_as(exported, tmp_path, None)
    assert model.fit == "stretch"
    assert model.pixels(content).tobytes() == look(content, model.image_px, LIMIT).pixels

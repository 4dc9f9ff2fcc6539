"""Backgrounds: the rules against a naive reference, and what is written of them."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.core.dataset.background import FLAT, divided
from stages.core.intake import backgrounds
from stages.core.intake.images import Cache, Look, hash_of
from stages.core.release import predict

PX = 8
Images = NDArray[np.uint8]


def drawn(seed: int, *shape: int) -> Images:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def naive(image: Images, ground: Images) -> Images:
    """Pixel by pixel, in whole numbers."""
    out = np.empty_like(image)
    for place, value in np.ndenumerate(image):
        below = max(int(ground[place]), 16)
        out[place] = min((int(value) * 128 + below // 2) // below, 255)
    return out


EVERY = np.indices((256, 256), dtype=np.uint8)  # every value over every background


def test_every_quotient() -> None:
    image, ground = EVERY[..., None]
    actual = backgrounds.divide(image, ground)
    assert actual.dtype == np.uint8
    assert np.array_equal(actual, naive(image, ground))


def test_pytorch_divides_by_the_same_line() -> None:
    image, ground = (torch.from_numpy(values.copy()).float() for values in EVERY)
    assert np.array_equal(divided(image, ground).floor().numpy(), naive(*EVERY))


class Rough(NDArray[np.float64]):
    """An array that divides a little wrong, as an engine that multiplies by a reciprocal may."""

    error = 1.0

    def __truediv__(self, other: Any) -> Any:
        return super().__truediv__(other) * self.error


@pytest.mark.parametrize("error", [1 - 1e-6, 1 + 1e-6])
def test_the_last_digits_of_a_quotient_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    monkeypatch.setattr(Rough, "error", error)
    image, ground = EVERY.astype(np.float64)
    actual = divided(image.view(Rough), ground)
    assert np.array_equal(actual.astype(np.uint8), naive(*EVERY))


def test_what_is_as_bright_as_its_background_is_flat() -> None:
    ground = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert set(backgrounds.divide(ground, ground)[ground >= 16]) == {128}
    flat = np.full_like(ground, FLAT)
    assert np.array_equal(backgrounds.divide(ground, flat), ground)


def test_dark_pixels_are_not_blown_up() -> None:
    ground = np.array([[[0]], [[1]], [[3]]], np.uint8)
    noise = np.array([[[2]], [[3]], [[1]]], np.uint8)
    assert backgrounds.divide(noise, ground).max() <= 24


@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
def test_median(count: int, seed: int, channels: int) -> None:
    images = drawn(seed, count, 4, 4, channels)
    actual = predict.median(list(images))
    assert actual.dtype == np.uint8
    assert np.array_equal(actual, np.floor(np.median(images, axis=0) + 0.5))


@pytest.mark.parametrize("count", [0, 1, 2, 254, 255, 256, 300, 1000])
def test_spread(count: int) -> None:
    chosen = predict.spread(range(count))
    assert len(chosen) == min(count, 255)
    assert chosen == sorted(set(chosen))
    if count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        assert max(np.diff(chosen), default=1) - min(np.diff(chosen), default=1) <= 1


def filled(cache: Cache, images: Images, groups: list[str]) -> pd.DataFrame:
    """A manifest of images (N, P, P, C) that are in the cache."""
    looks = {
        f"{i:064x}": Look(channels=image.shape[2], pixels=image.tobytes())
        for i, image in enumerate(images)
    }
    cache.add(looks)
    table = {"file_name": [f"{i:04}.png" for i in range(len(images))], "group": groups}
    return pd.DataFrame(
        table | {"sha256": list(looks), "channels": images.shape[3], "phash": b"raw"}
    ).sample(frac=1, random_state=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_group_by_itself(tmp_path: Path, channels: int) -> None:
    """Of odd and even number, one too small, in any order of rows."""
    images = drawn(1, 14, PX, PX, channels)
    groups = ["b"] * 5 + ["a"] * 6 + ["tiny"] * 3
    with closing(Cache(tmp_path, PX, 100)) as cache:
        table = filled(cache, images, groups)
        before = table.copy()
        medians = backgrounds.make(table, tmp_path / "b.npy", cache, image_px=PX, least=5)
        contents = [images[int(sha256, 16)].tobytes() for sha256 in table["sha256"]]
        seen = list(backgrounds.without(table, iter(contents), medians, "group"))
    assert np.array_equal(np.load(tmp_path / "b.npy"), medians)
    assert medians.shape == (3, PX, PX, channels)
    assert set(medians[0].ravel()) == {128}
    expected = {"a": images[5:11], "b": images[:5]}
    for number, name in enumerate("ab", 1):
        median = np.floor(np.median(expected[name], axis=0) + 0.5).astype(np.uint8)
        assert np.array_equal(medians[number], median)
    for (_, row), content in zip(table.iterrows(), seen, strict=True):
        image = images[int(str(row["sha256"]), 16)]
        number = {"a": 1, "b": 2, "tiny": 0}[row["group"]]
        assert row["background"] == number
        quotient = naive(image, medians[number])
        assert content == quotient.tobytes()
        assert row["phash"] == (hash_of(quotient) if number else b"raw")
    unchanged = [column for column in before if column != "phash"]
    pd.testing.assert_frame_equal(table[unchanged], before[unchanged])


def test_three_channels(tmp_path: Path) -> None:
    images = drawn(2, 5, PX, PX, 1)
    with closing(Cache(tmp_path, PX, 100)) as cache:
        table = filled(cache, images, ["a"] * 5).sort_index()
        medians = backgrounds.make(table, tmp_path / "b.npy", cache, image_px=PX, least=5)
        contents = (image.tobytes() for image in images)
        seen = list(backgrounds.without(table, contents, medians, "both"))
    for image, content in zip(images, seen, strict=True):
        stack = np.frombuffer(content, np.uint8).reshape(PX, PX, 3)
        expected = [image[..., 0], naive(image, medians[1])[..., 0], medians[1][..., 0]]
        assert np.array_equal(stack, np.stack(expected, 2))


def test_grey_images_among_colour_ones(tmp_path: Path) -> None:
    grey, colour = drawn(3, 2, PX, PX, 1), drawn(4, 3, PX, PX, 3)
    with closing(Cache(tmp_path, PX, 100)) as cache:
        table = pd.concat([filled(cache, colour, ["a"] * 3).sort_index()])
        cache.add({f"{9 + i:064x}": Look(channels=1, pixels=x.tobytes())
                   for i, x in enumerate(grey)})  # fmt: skip
        rows = {"file_name": ["x", "y"], "group": "a", "channels": 1, "phash": b"raw"}
        more = pd.DataFrame(rows | {"sha256": [f"{9 + i:064x}" for i in range(2)]})
        table = pd.concat([table, more], ignore_index=True)
        medians = backgrounds.make(table, tmp_path / "b.npy", cache, image_px=PX, least=3)
    every = np.concatenate([colour, np.repeat(grey, 3, 3)])
    assert np.array_equal(medians[1], np.median(every, axis=0))


def test_of_a_large_group_some_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "MEDIAN_OF", 5)
    taken: list[Any] = []
    median = predict.median

    def watched(images: Any) -> Any:
        taken.extend(images)
        return median(images)

    monkeypatch.setattr(predict, "median", watched)
    images = drawn(5, 17, PX, PX, 1)
    with closing(Cache(tmp_path, PX, 100)) as cache:
        table = filled(cache, images, ["a"] * 17)
        backgrounds.make(table, tmp_path / "b.npy", cache, image_px=PX, least=5)
    # By name, whatever the order of the rows.
    assert [image.tobytes() for image in taken] == [images[i].tobytes() for i in (0, 4, 8, 12, 16)]

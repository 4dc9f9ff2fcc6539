"""Images in their validated, packed form."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.core.dataset.background import FLAT
from stages.core.dataset.symmetries import Symmetries

Rows = NDArray[np.int64]
Split = Literal["train", "val", "test", "unlabelled"]
# Column of the manifest where some image came without a group: whether this one had one.
HAS_GROUP = "has_group"
BackgroundKind = Literal["group", "both"]
# The splits of labelled images. The fourth, `unlabelled`, holds images without a label, or whose
# label no network may learn: a target domain's, and those that validate.labelled_share hides.
SPLITS: tuple[Split, ...] = ("train", "val", "test")
UNLABELLED: Split = "unlabelled"


@dataclass(frozen=True)
class FileRules:
    """What image files had to be; a released model asks the same of its images.

    Attributes:
        bit_depth: bits of the values that became white; 8 where no file had more.
        max_pixels: width times height, at most.
        fit: what became of an image that is not square: stretch, pad or crop, as predict.py says.
        background: with `group`, networks see images divided by the median of their group's; with
            `both`, three channels: the image, that quotient, and the median. None: images alone.
        background_images: of how many images that median is made, at least.
        min_source_px, min_contrast: width and height of a file, and deviation of an image's grey
            values, at least.
    """

    bit_depth: int
    max_pixels: int
    fit: str
    background: BackgroundKind | None = None
    background_images: int | None = None
    min_source_px: int = 1
    min_contrast: float = 0.0


@dataclass(frozen=True)
class Dataset:
    """Validated images, decoded once. All arrays have one entry per image, in manifest order.

    Attributes:
        pixels: uint8 (N, P, P, C), C = 1 (grey) or 3 (RGB), memory-mapped.
        labels: int64 (N,), index into `classes`; -1 for unlabelled images.
        groups: int64 (N,); images of one group are never in two splits, but for train and
            `unlabelled`. Negative where the images came without groups: each is alone, or with
            its near duplicates.
        domains: object (N,), text, `""` where the data names none.
        splits: object (N,), one of `SPLITS`, or `UNLABELLED`.
        files: object (N,), names relative to the user's folder.
        classes: the classes in the order of the logits; of two, the last is the positive one.
        rules: what the files had to be.
        raw: uint8 (N of the test split, P, P, C): its images before they were divided by their
            backgrounds. None where none are.
        backgrounds: uint8 (B, P, P, C); the manifest's column `background` has each image's row.
        symmetries: what leaves an image's class as it is; training shows images so changed.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    domains: NDArray[np.object_]
    splits: NDArray[np.object_]
    files: NDArray[np.object_]
    classes: list[str]
    rules: FileRules
    symmetries: Symmetries
    _manifest: pd.DataFrame
    raw: NDArray[np.uint8] | None = None
    backgrounds: NDArray[np.uint8] | None = None

    @property
    def columns(self) -> list[str]:
        """Names of all that is known of each image, the user's own columns among them."""
        return list(self._manifest.columns)

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A column as numbers (N,), NaN where it holds none."""
        numbers: NDArray[np.float64] = pd.to_numeric(
            self._manifest[column], errors="coerce"
        ).to_numpy(np.float64)
        return numbers

    @property
    def group_names(self) -> NDArray[np.object_]:
        """The user's names of the groups (N,), the same whatever other images there are."""
        names: NDArray[np.object_] = self._manifest["group"].to_numpy(object)
        return names

    @property
    def image_px(self) -> int:
        """Side of the square images, in pixels."""
        return int(self.pixels.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return int(self.pixels.shape[3])

    def rows(self, split: Split) -> Rows:
        """Indices of a split's images."""
        return np.flatnonzero(self.splits == split).astype(np.int64)

    def model_inputs(self, rows: Rows) -> tuple[NDArray[np.uint8], ...]:
        """What a released model is given for these images of the test split: (B, P, P, C) each.

        The images; then their backgrounds, if the model divides by these.
        """
        if self.raw is None or self.backgrounds is None:
            return (self.pixels[rows],)
        number = self._manifest["background"].to_numpy(np.int64)[rows]
        return self.raw[np.searchsorted(self.rows("test"), rows)], self.backgrounds[number]

    def equivalent_inputs(self, rows: Rows) -> tuple[NDArray[np.uint8], ...]:
        """What makes a released model see the very pixels of any images: (B, P, P, C) each.

        The images before they were divided are kept for the test split alone. In place of them
        stands what nothing needs to be divided in.
        """
        pixels = self.pixels[rows]
        if self.rules.background is None:
            return (pixels,)
        if self.rules.background == "both":
            return pixels[..., :1], pixels[..., 2:]
        return pixels, np.full_like(pixels, FLAT)

    @property
    def distillation_rows(self) -> Rows:
        """Indices of the images that students learn from, with labels or without."""
        return np.flatnonzero(np.isin(self.splits, ["train", UNLABELLED])).astype(np.int64)


def save_dataset(
    folder: Path,
    manifest: pd.DataFrame,
    classes: list[str],
    rules: FileRules,
    symmetries: Symmetries,
) -> None:
    """Write what belongs beside the arrays, which the caller has written into `folder`."""
    manifest.to_csv(folder / "manifest.csv", index=False, lineterminator="\n")
    (folder / "classes.json").write_text(json.dumps(classes, indent=1) + "\n")
    known = {name: value for name, value in asdict(rules).items() if value is not None}
    (folder / "rules.json").write_text(json.dumps(known, indent=1) + "\n")
    (folder / "views.json").write_text(json.dumps({"symmetries": symmetries}) + "\n")


def load_dataset(folder: Path) -> Dataset:
    """What the validate stage wrote."""
    manifest = pd.read_csv(
        folder / "manifest.csv",
        dtype=dict.fromkeys(("file_name", "label", "group", "domain", "split"), str),
        keep_default_na=False,
    )
    classes = json.loads((folder / "classes.json").read_text())
    rules = FileRules(**json.loads((folder / "rules.json").read_text()))
    arrays = {name: folder / f"{name}.npy" for name in ("raw", "backgrounds")}
    optional = {k: np.load(file, mmap_mode="r") for k, file in arrays.items() if file.exists()}
    number = {name: k for k, name in enumerate(classes)} | {"": -1}
    groups, _ = pd.factorize(manifest["group"])
    if HAS_GROUP in manifest:
        given = manifest.groupby("group")[HAS_GROUP].transform("any")
        groups = np.where(given, groups, -1 - groups)
    return Dataset(
        pixels=np.load(folder / "pixels.npy", mmap_mode="r"),
        # A copy, since torch wants arrays that it could write to.
        labels=np.array(manifest["label"].map(number), np.int64),
        groups=groups.astype(np.int64),
        domains=manifest["domain"].to_numpy(object),
        splits=manifest["split"].to_numpy(object),
        files=manifest["file_name"].to_numpy(object),
        classes=classes,
        rules=rules,
        symmetries=json.loads((folder / "views.json").read_text())["symmetries"],
        _manifest=manifest,
        **optional,
    )

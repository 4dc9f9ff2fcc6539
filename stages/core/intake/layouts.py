"""Class folders: which folders are the splits, which the classes, and what only looks like them."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.dataset.data import UNLABELLED, Split
from stages.core.intake.listing import Listing
from stages.core.intake.names import split_names
from stages.core.runner.errors import DataError
from stages.core.runner.text import listed

# Folders of data sets that say where things are in a picture, not what the picture shows.
_PICTURES = {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos"}
_BOXES = {
    "labels", "annotations", "annotation", "masks", "mask", "segmentationclass",
    "segmentationobject", "imagesets", "ground_truth", "groundtruth", "gt", "xmls", "xml", "bboxes",
}  # fmt: skip
_BOX_FILES = {"_annotations.coco.json", "_darknet.labels", "data.yaml", "obj.names"}


@dataclass
class Tree:
    """Where the images lie.

    Attributes:
        images: their names.
        direct: how many images lie right in each folder; "" is the whole folder.
        below: for each folder, its own folders that have images at any depth.
    """

    images: list[str]
    direct: Counter[str] = field(default_factory=Counter)
    below: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.images:
            above, _, _ = name.rpartition("/")
            self.direct[above] += 1
        for place in list(self.direct):
            while place:
                above, _, last = place.rpartition("/")
                self.below.setdefault(above, set()).add(last)
                place = above

    def folders(self, place: str) -> set[str]:
        """The folders in `place` that have images."""
        return self.below.get(place, set())

    def only_folders(self, place: str) -> bool:
        """Whether all images of `place` lie in folders of its own."""
        return not self.direct[place] and bool(self.folders(place))


def find_splits(
    folder: Path, listing: Listing, tree: Tree, unlabelled: list[str]
) -> dict[str, Split]:
    """The split folders, each with its split; none where the folders at the top are the classes.

    Args:
        unlabelled: folders at the top whose images have no label; they stand beside either.

    Raises: DataError where the folders are neither one nor the other.
    """
    _refuse_boxes(folder, listing, tree)
    top = [name for name in listing.top_folders if name not in unlabelled]
    splits = split_names(top)
    nested = [name for name in splits if tree.only_folders(name)]
    clear = len(splits) > 1 or any(len(tree.folders(name)) > 1 for name in nested)
    if len(splits) < len(top) and clear:
        other = next(name for name in top if name not in splits)
        raise DataError(
            f"{folder}: found the folders {listed([*splits])} and {other}; expected folders of "
            f"splits alone, or none: take {other} out, or rename the others"
        )
    if len(splits) < len(top):
        _refuse_hidden_splits(folder, top, tree)
        return {}
    flat = [name for name in splits if not tree.folders(name)]
    if flat:
        _refuse_flat_splits(folder, flat, nested, tree)
    if unlabelled and nested and set(splits.values()) == {"train"}:
        raise DataError(
            f"{folder}: found {nested[0]} and {unlabelled[0]}; expected a folder with the test "
            f"split, too, or the class folders beside {unlabelled[0]}: move it into {nested[0]}, "
            f"and set data.dir to {folder / nested[0]}"
        )
    for name in nested:
        inner = tree.folders(name)
        if len(inner) == 1 and all(tree.only_folders(f"{name}/{one}") for one in inner):
            (one,) = inner
            raise DataError(
                f"{folder}: {name}/{one} is one folder around the class folders; expected "
                f"{name}/CLASS/IMAGE: move what is in {name}/{one} one level up"
            )
    return splits | dict.fromkeys(unlabelled, UNLABELLED) if splits else {}


def _refuse_boxes(folder: Path, listing: Listing, tree: Tree) -> None:
    """Raises: DataError for data sets of object detection and segmentation."""
    top = listing.top_folders
    levels = [set(top)]
    levels += [
        {n.partition("/")[2] for n in listing.folders if n.startswith(f"{s}/") and n.count("/") < 2}
        for s in split_names(top)
    ]
    splits = bool(split_names(top))
    for number, names in enumerate(levels):
        known = {name: name.lower() for name in names}
        boxes = [name for name, low in known.items() if low in _BOXES]
        pictures = [name for name, low in known.items() if low in _PICTURES]
        others = set(names) - set(boxes) - set(pictures) - set(split_names(names))
        if boxes and not others and (pictures or (splits and not number)):
            raise DataError(
                f"{folder}: found {listed([*pictures, *boxes])}, folders of a data set for object "
                "detection or segmentation (YOLO, COCO, Pascal VOC); expected one label for each "
                "whole image: sort the images (or the objects, cut out) into one folder per class, "
                "or list them in a metadata.csv with the columns file_name and label"
            )


def _refuse_hidden_splits(folder: Path, top: list[str], tree: Tree) -> None:
    """Raises: DataError where the folders at the top are no classes: they have the same folders."""
    if len(top) < 2 or not all(tree.only_folders(name) for name in top):
        return
    counts = Counter(inner for name in top for inner in tree.folders(name))
    everywhere = [inner for inner, count in counts.items() if count == len(top)]
    if len(split_names(everywhere)) > 1:
        raise DataError(
            f"{folder}: {listed(top)} each have the split folders {listed(everywhere)}; expected "
            "the splits above the classes (train/CLASS/IMAGE): move the folders, or set data.dir "
            "to one of them"
        )
    if len(everywhere) > 1 or (len(counts) > 1 and min(counts.values()) > 1):
        raise DataError(
            f"{folder}: {listed(top)} have the same folders in them ({listed([*counts])}), so they "
            "look like splits or parts, not like classes; expected CLASS/IMAGE, or "
            f"train/CLASS/IMAGE and so on: if {top[0]} is a split, rename it to train, val or "
            "test; if it is a class, give the labels in a metadata.csv (columns file_name, label)"
        )


def _refuse_flat_splits(folder: Path, flat: list[str], nested: list[str], tree: Tree) -> None:
    """Raises: DataError where a split has images, or nothing, instead of class folders."""
    if nested:
        name = flat[0]
        above = folder / nested[0]
        raise DataError(
            f"{folder}: {name} has {tree.direct[name]} images in no class folder, {nested[0]} has "
            f"the class folders {listed(tree.folders(nested[0]))}; expected class folders in every "
            f"split, since images without a label measure nothing: sort those of {name} into class "
            f"folders, or take {name} out"
            + (
                f" and set data.dir to {above} (as {above / UNLABELLED}, they teach without labels)"
                if len(nested) == 1
                else ""
            )
        )
    raise DataError(
        f"{folder}: {listed(flat)} are called as splits, and have no class folders; expected "
        "train/CLASS/IMAGE: sort the images into class folders, or list them in a metadata.csv "
        "(columns file_name, label); if these are the classes, rename them or list them so"
    )


def refuse_wrapper(folder: Path, tree: Tree, unlabelled: list[str]) -> None:
    """Raises: DataError where all that has labels lies in one folder that is no class."""
    place = ""
    while not tree.direct[place] and len(inside := tree.folders(place) - {*unlabelled}) == 1:
        (inner,) = inside
        place = f"{place}/{inner}" if place else inner
    if place and len(tree.folders(place)) > 1:
        move = f"move {unlabelled[0]} there, and " if unlabelled else "so "
        raise DataError(
            f"{folder}: found one folder, {place}, around {listed(tree.folders(place))}; expected "
            f"the class folders at the top: they are one level down, {move}set data.dir to "
            f"{folder / place}"
        )


def refuse_empty_classes(folder: Path, classes: list[str], listing: Listing, tree: Tree) -> None:
    """Raises: DataError for class folders without an image.

    Args:
        classes: the class folders, relative to `folder`.
    """
    counts = {name: 0 for name in classes if not tree.direct[name] and not tree.folders(name)}
    for file in listing.files:
        for name in counts:
            counts[name] += file.startswith(f"{name}/")
    if counts:
        about = [
            f"{name} ({count} other files)" if count else name for name, count in counts.items()
        ]
        raise DataError(
            f"{folder}: no image in the class {'folders' if len(about) > 1 else 'folder'} "
            f"{listed(about)}; expected at least one in each: put images there, or take the "
            "folder out"
        )


def without_folders(folder: Path, listing: Listing) -> str:
    """What to do with images that lie in no folder."""
    names = {name.rpartition("/")[2].lower() for name in listing.files}
    if names & _BOX_FILES:
        return "; these look like a data set for object detection: it has boxes, no labels"
    tables = [
        n for n in listing.top_files if n.lower().endswith((".csv", ".tsv", ".json", ".xlsx"))
    ]
    if tables:
        return f"; if {tables[0]} has the labels, save it as metadata.csv (file_name, label)"
    return ""

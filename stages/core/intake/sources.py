"""Folders of labelled images: which layout one has, what it says of each image, and its bytes.

Three layouts, by the ecosystem's own conventions:
- imagefolder (Hugging Face): `metadata.csv`, `.jsonl` or `.parquet` with file_name, label and any
  other columns, at the top or in split folders;
- class folders (torchvision's ImageFolder): CLASS/IMAGE, or SPLIT/CLASS/IMAGE;
- webdataset: `*.tar` with KEY.png (or another image) and KEY.cls or KEY.json; KEY ends at the first
  dot of the file's name.

An image without a label, or in a folder, class or split called `unlabelled`, is an unlabelled one.
A `classes.txt` at the top, one class per line, gives the order of the classes; the one word of a
`symmetries.txt` says which mirror images and turns leave an image's class as it is; the report and
the model card quote the first line of a `licence.txt`.
"""

from pathlib import Path, PurePosixPath

import pandas as pd

from stages.core.dataset.data import UNLABELLED
from stages.core.intake import layouts
from stages.core.intake.imagefolder import imagefolder
from stages.core.intake.layouts import Tree
from stages.core.intake.listing import Listing, list_folder
from stages.core.intake.names import split_names, trimmed
from stages.core.intake.shards import ARCHIVES, webdataset
from stages.core.intake.source import (
    DECLARATIONS,
    Source,
    completed,
    is_image,
    leftover_notes,
    read_classes,
    unlabelled_names,
)
from stages.core.runner.errors import DataError
from stages.core.runner.text import listed

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def open_source(folder: Path, classes: list[str] | None = None) -> Source:
    """Tell which layout a folder has.

    Args:
        classes: in their order; None for those of classes.txt, or else all labels.

    Raises: DataError when it has none of the layouts, or two.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: found no folder; expected one with labelled images: set data.dir"
        )
    listing = list_folder(folder)
    classes = classes or read_classes(folder)
    shards = [folder / name for name in listing.top_files if name.lower().endswith(".tar")]
    tables = [
        name for name in listing.files if name.count("/") < 2 and name.split("/")[-1] in METADATA
    ]
    tables.sort(key=lambda name: ("/" in name, name))
    _refuse_other_tables(folder, listing, tables)
    if shards and (tables or listing.top_folders):
        other = tables[0] if tables else listing.top_folders[0]
        raise DataError(
            f"{folder}: found shards ({shards[0].name}) and {other}; expected one layout: keep the "
            "shards alone, or take them out"
        )
    if shards:
        return webdataset(folder, listing, shards, classes)
    if tables:
        return imagefolder(folder, listing, tables, classes)
    if listing.top_folders or listing.linked:
        return _class_folders(folder, listing, classes)
    top = listed(listing.top_files) or "nothing"
    advice = layouts.without_folders(folder, listing)
    if any(name.lower().endswith(ARCHIVES) for name in listing.top_files):
        advice = "; archives are not opened: unpack them"
    raise DataError(
        f"{folder}: found {top}; expected one of: a metadata.csv, .jsonl or .parquet beside the "
        f"images (columns file_name and label); a folder per class; or *.tar shards{advice}"
    )


def _refuse_other_tables(folder: Path, listing: Listing, tables: list[str]) -> None:
    """Raises: DataError for metadata that would be overlooked."""
    for name in listing.top_files:
        stem, _, ending = name.lower().partition(".")
        if stem == "metadata" and name not in tables and not tables:
            right = f"metadata.{ending}" if f"metadata.{ending}" in METADATA else "metadata.csv"
            verb = "call it" if right == f"metadata.{ending}" else "save it as"
            raise DataError(
                f"{folder}: found {name}; expected {', '.join(METADATA)}: {verb} {right}"
            )
    texts = [name for name in listing.top_files if name.endswith((".txt", ".lst"))]
    lists = [name for name in texts if name not in DECLARATIONS]
    splits = split_names([n.rpartition(".")[0] for n in lists])
    if not tables and len(set(splits.values())) > 1:
        raise DataError(
            f"{folder}: found {listed(lists)}; lists of splits are not read: write a metadata.csv "
            "with the columns file_name, label and split (and set validate.split to column), or "
            "take the lists out"
        )


def _class_folders(folder: Path, listing: Listing, classes: list[str] | None) -> Source:
    if listing.linked:
        name, target = next(iter(sorted(listing.linked.items())))
        raise DataError(
            f"{folder}: {name} is a link to the folder {target}, and DVC follows no links to "
            "folders: its images would be missing from every version; copy the folder itself "
            "there, in place of the link"
        )
    files = [name for name in listing.files if name not in DECLARATIONS]
    tree = Tree([name for name in files if is_image(folder, name)])
    unlabelled = unlabelled_names(listing.top_folders, classes)
    splits = layouts.find_splits(folder, listing, tree, unlabelled)
    layouts.refuse_wrapper(folder, tree, unlabelled)
    depth = 1 + bool(splits)
    class_folders = [
        name
        for name in listing.folders
        if name.count("/") == depth - 1 and splits.get(name.split("/")[0]) != UNLABELLED
    ]
    layouts.refuse_empty_classes(folder, class_folders, listing, tree)
    rows, problems = [], {}
    for name in tree.images:
        parts = PurePosixPath(name).parts
        label = parts[depth - 1] if len(parts) > depth else ""
        if splits.get(parts[0]) == UNLABELLED:
            label = ""
        elif not label:
            problems[name] = "it lies in no class folder; move it into one, or take it out"
        rows.append({"file_name": name, "label": label, "split": parts[0] if splits else ""})
    _refuse_trimmed_twins(folder, {row["label"] for row in rows})
    images = set(tree.images)
    others = {name: "no image by name or content" for name in files if name not in images}
    deeper = {name: tree.folders(name) for name in class_folders if tree.folders(name)}
    notes = leftover_notes(listing) + [
        f"images in folders of the class {name} count for it: {listed(inner)}"
        for name, inner in list(deeper.items())[:5]
    ]
    layout = "class folders" + " in split folders" * bool(splits)
    return completed(
        folder,
        layout,
        pd.DataFrame(rows),
        others,
        classes=classes,
        split_folders=bool(splits),
        problems=problems,
        notes=notes,
    )


def _refuse_trimmed_twins(folder: Path, labels: set[str]) -> None:
    """Raises: DataError for folders that would become one class by trimming their names."""
    first: dict[str, str] = {}
    for label in sorted(labels, key=lambda name: (len(name), name)):
        other = first.setdefault(trimmed(label), label)
        if other != label:
            raise DataError(
                f"{folder}: the folders {other!r} and {label!r} differ only in blanks; "
                "expected one folder per class: put them together"
            )

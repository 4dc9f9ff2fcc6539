"""Folders with a metadata file beside the images, as Hugging Face's imagefolder has them."""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pandas as pd

from stages.core.dataset.data import UNLABELLED, Split
from stages.core.intake.kinds import is_image_name
from stages.core.intake.listing import Listing
from stages.core.intake.metadata import check_columns, read_table
from stages.core.intake.names import plain, split_names, trimmed
from stages.core.intake.source import (
    DECLARATIONS,
    Source,
    Unreadable,
    completed,
    is_image,
    leftover_notes,
    locate,
    unlabelled_names,
)
from stages.core.runner.errors import DataError
from stages.core.runner.text import listed


def imagefolder(
    folder: Path, listing: Listing, paths: list[str], classes: list[str] | None
) -> Source:
    """Read the metadata files at `paths`, relative to the folder. Raises: DataError."""
    places = [path.rpartition("/")[0] for path in paths]
    if len(set(places)) != len(paths) or ("" in places and len(paths) > 1):
        raise DataError(
            f"{folder}: found {', '.join(paths)}; expected one metadata file: keep one of them"
        )
    unlabelled = unlabelled_names(listing.top_folders, classes)
    with_images = {n.split("/")[0] for n in listing.files if "/" in n and is_image_name(n)}
    with_images -= {*unlabelled}
    if "" not in places and (without := sorted(with_images - set(places))):
        raise DataError(
            f"{folder}: found {paths[0]}, but no metadata in {listed(without)}; expected one in "
            "each folder with images, or one at the top for all: add it, or take the folder out"
        )
    parts, notes = [], leftover_notes(listing)
    for path, place in zip(paths, places, strict=True):
        table = read_table(folder / path)
        if place in unlabelled and "label" not in map(trimmed, table.columns):
            table["label"] = ""
        notes += check_columns(folder / path, table)
        where = PurePosixPath(place)
        names, note = _matched(table["file_name"].tolist(), place, set(listing.files))
        notes += [f"{path}: {words}" for words in note]
        inside = [(where / name).as_posix() if name else "" for name in names]
        parts.append(table.assign(file_name=inside))
    named = {name for part in parts for name in part["file_name"]}
    if more := [name for name in _images_in(unlabelled, folder, listing) if name not in named]:
        parts.append(pd.DataFrame({"file_name": more, "label": ""}))
    rows = pd.concat(parts, ignore_index=True).fillna("")
    splits = _imagefolder_splits(folder, listing, rows, unlabelled)
    files = set(listing.files)
    expected = {*rows["file_name"], *paths, *DECLARATIONS}
    others = {
        name: f"not in {paths[0].split('/')[-1]}"
        if is_image(folder, name)
        else "no image by name or content"
        for name in listing.files
        if name not in expected
    }
    if unlisted := sum(reason.startswith("not in") for reason in others.values()):
        notes.append(f"images that {paths[0].split('/')[-1]} does not name, not used: {unlisted}")
    others |= {name: f"a link to the folder {to}" for name, to in listing.linked.items()}
    layout = f"imagefolder with {paths[0].split('/')[-1]}" + " in split folders" * bool(splits)
    return completed(
        folder,
        layout,
        rows,
        others,
        classes=classes,
        split_folders=bool(splits),
        problems=_near_misses(folder, rows["file_name"], files),
        notes=notes,
    )


def _images_in(folders: list[str], folder: Path, listing: Listing) -> list[str]:
    """The images in some of the folders at the top; they need no metadata."""
    names = [name for name in listing.files if "/" in name and name.split("/")[0] in folders]
    return [name for name in names if is_image(folder, name)]


def _imagefolder_splits(
    folder: Path, listing: Listing, rows: pd.DataFrame, unlabelled: list[str]
) -> dict[str, Split]:
    """The split folders, if all folders are, but for unlabelled ones; `rows` get their splits."""
    top = [name for name in listing.top_folders if name not in unlabelled]
    splits = split_names(top)
    if len(splits) > 1 and len(splits) < len(top):
        other = next(name for name in top if name not in splits)
        raise DataError(
            f"{folder}: found the folders {listed([*splits])} and {other}; expected folders of "
            f"splits alone, or none: take {other} out, or rename the others"
        )
    if not splits or len(splits) < len(top):
        return {}
    splits |= dict.fromkeys(unlabelled, UNLABELLED)
    first = rows["file_name"].str.partition("/")[0]
    places = first.where(first.isin(list(splits)), "")
    if "split" in rows:
        given = rows["split"].map(trimmed)
        meanings = split_names(given.unique())
        meant = given.map(lambda name: meanings.get(name, ""))
        differ = (meant != "") & (meant != places.map(lambda name: splits.get(name, "")))
        if differ.any():
            row = rows[differ].iloc[0]
            raise DataError(
                f"{folder}: {row['file_name']} has split = {row['split']!r} and lies in another "
                "split's folder; expected one of them: correct the column, or take it out"
            )
    rows["split"] = places
    return splits


def _matched(names: list[str], place: str, files: set[str]) -> tuple[list[str], list[str]]:
    """Names as the files have them, where only blanks, slashes or Unicode forms differ; and notes.

    Args:
        names: as the metadata in the folder `place` has them.
        files: of the whole folder.
    """
    above = f"{place}/" if place else ""
    inside = {name.removeprefix(above) for name in files if name.startswith(above)}
    by_form: dict[str, set[str]] = defaultdict(set)
    for name in inside:
        by_form[plain(name)].add(name)
    counts = dict.fromkeys(("blanks around them", "\\ for /", "another Unicode form"), 0)

    def match(name: str) -> str:
        if name in inside or PurePosixPath(name).as_posix() in inside:
            return name
        bare = trimmed(name)
        path = PurePosixPath(bare.replace("\\", "/")).as_posix()
        ways = ({bare} & inside, {path} & inside, by_form.get(plain(path), set()))
        for words, files in zip(counts, ways, strict=True):
            if len(files) == 1:
                counts[words] += 1
                return next(iter(files))
        return bare

    matched = [match(name) for name in names]
    return matched, [
        f"{count} names match files but for {words}: taken"
        for words, count in counts.items()
        if count
    ]


def _near_misses(folder: Path, names: "pd.Series[str]", files: set[str]) -> dict[str, str]:
    """What is wrong with names that no file has but one nearly has."""
    missing = [name for name in names if name and name not in files]
    if not missing:
        return {}
    nearly: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for key in (file.casefold(), file.rpartition(".")[0].casefold(), file.split("/")[-1]):
            nearly[plain(key).casefold()].add(file)
    reasons = {}
    for name in missing:
        if re.match(r"[a-z]+://", name) or name.startswith(("http:/", "https:/")):
            reasons[name] = "an address on the web; download the file, and name it here"
            continue
        try:
            locate(folder, name, {})
        except Unreadable as error:
            base = name.replace("\\", "/").split("/")[-1]
            like = nearly.get(plain(name).casefold()) or nearly.get(plain(base).casefold(), set())
            if len(like) == 1 and "no such file" in str(error):
                (file,) = like
                reasons[name] = f"no such file, but there is {file}: write its name so"
    return reasons

"""WebDataset shards: tars with an image and what is said of it under one key."""

import os
import tarfile
from pathlib import Path

import pandas as pd

from stages.core.intake.kinds import HEAD_BYTES, in_leftover, is_image_content, is_image_name
from stages.core.intake.listing import Listing
from stages.core.intake.metadata import as_text, escaped, json_object
from stages.core.intake.names import trimmed
from stages.core.intake.source import DECLARATIONS, Source, completed, is_image, leftover_notes
from stages.core.runner.errors import DataError
from stages.core.runner.text import listed

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".rar", ".7z", ".gz")


def webdataset(
    folder: Path, listing: Listing, shards: list[Path], classes: list[str] | None
) -> Source:
    """Read what the shards hold. Raises: DataError."""
    rows: list[dict[str, str]] = []
    members: dict[str, tuple[Path, int, int]] = {}
    problems: dict[str, str] = {}
    shard_names = {shard.name for shard in shards}
    others: dict[str, str] = {}
    for name in listing.files:
        if name.lower().endswith(ARCHIVES):
            raise DataError(f"{folder / name}: expected uncompressed shards (.tar): unpack it once")
        if name in shard_names or name in DECLARATIONS:
            continue
        if is_image(folder, name):
            problems[name] = "an image beside the shards; put it into one, or take it out"
            rows.append({"file_name": name})
        else:
            others[name] = "no shard"
    left = list(listing.leftovers)
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                samples = _samples(shard, tar, members, others, problems, left)
                end = tar.offset
            with shard.open("rb") as file:
                # Where tarfile stops: it takes a damaged header, too, for the end.
                if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"damaged or cut off at byte {end}")
        except (tarfile.TarError, ValueError, EOFError, OSError) as error:
            raise DataError(
                f"{shard}: not readable as a tar ({error}); expected uncompressed WebDataset "
                "shards: write it again"
            ) from None
        for key, sample in samples.items():
            if "file_name" in sample:
                rows.append(sample)
            else:
                others[f"{shard.name}/{key}"] = "a label without an image"
    table = pd.DataFrame(rows).fillna("")
    if len(table) and ("label" not in table or not table["label"].any()):
        raise DataError(
            f"{folder}: no label in {listed([*shard_names])}; expected KEY.cls or KEY.json beside "
            "every image that has one; if it is an archive of folders, unpack it (tar xf) and take "
            "it out"
        )
    return completed(
        folder,
        "webdataset shards",
        table,
        others,
        classes=classes,
        split_folders=False,
        problems=problems,
        notes=leftover_notes(Listing(leftovers=left)),
        _members=members,
    )


def _samples(
    shard: Path,
    tar: tarfile.TarFile,
    members: dict[str, tuple[Path, int, int]],
    others: dict[str, str],
    problems: dict[str, str],
    left: list[str],
) -> dict[str, dict[str, str]]:
    """What a shard says of each key; the rest goes to the other arguments, by name.

    Raises: DataError for keys with dots, for labels that are no text, and for two labels of a key.
    """
    samples: dict[str, dict[str, str]] = {}
    for member in tar:
        if member.isdir():
            continue
        name = escaped(f"{shard.name}/{member.name}")
        place, _, base = escaped(member.name).rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{place}/{stem}" if place else stem
        if in_leftover(member.name.removeprefix("./")):
            left.append(name)
        elif not member.isfile() or member.issparse():
            others[name] = "a link, or no plain file; put the file itself there"
        elif _is_image_member(shard, member, extension):
            sample = samples.setdefault(key, {})
            if "file_name" in sample:
                _refuse_dotted_key(shard, base, key, extension)
                problems[name] = f"a second image of key {key}; give each a key of its own"
                sample = samples.setdefault(name, {})
            sample["file_name"] = name
            members[name] = (shard, member.offset_data, member.size)
        elif extension.lower() in ("cls", "json"):
            about = _about(shard, tar, member, extension.lower())
            sample = samples.setdefault(key, {})
            for column, text in about.items():
                if trimmed(sample.get(column, text)) != trimmed(text):
                    raise DataError(
                        f"{shard}: key {key!r} has {column} = {sample[column]!r} and {text!r}; "
                        "expected one for each key: correct one of its .cls and .json files"
                    )
            sample.update(about)
        else:
            if extension.lower().endswith((".cls", ".json")):
                _refuse_dotted_key(shard, base, key, extension)
            others[name] = "neither image nor .cls nor .json"
    return samples


def _is_image_member(shard: Path, member: tarfile.TarInfo, extension: str) -> bool:
    if is_image_name("." + extension):
        return True
    if extension.lower() in ("cls", "json"):
        return False
    with shard.open("rb", buffering=0) as file:
        return is_image_content(
            os.pread(file.fileno(), min(HEAD_BYTES, member.size), member.offset_data)
        )


def _about(shard: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> dict[str, str]:
    """What a .cls or .json says. Raises: DataError."""
    content = tar.extractfile(member)
    try:
        text = content.read().decode() if content else ""
    except UnicodeDecodeError:
        raise DataError(
            f"{shard}: {member.name}: not UTF-8 text; expected a label or JSON"
        ) from None
    about = {"label": trimmed(text)} if kind == "cls" else json_object(shard / member.name, 1, text)
    return {escaped(k): as_text(v) for k, v in about.items() if k != "file_name"}


def _refuse_dotted_key(shard: Path, base: str, key: str, extension: str) -> None:
    """Raises: DataError where what should be one key has dots in it."""
    if "." in extension:
        raise DataError(
            f"{shard}: {base}: by WebDataset's convention a key ends at the first dot of the "
            f"file's name, so the key is {key!r} here, for several files; expected one image per "
            "key: write the shards with keys without dots (2024-01-05 instead of 2024.01.05)"
        )

"""The front door: what is wrong is named in one line and stops; what is fit comes out whole."""

import csv
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import validate
from stages.core import stage
from stages.core.contract import Contract
from stages.core.data import load_dataset
from stages.core.errors import DataError, ParamsError
from stages.core.images import Cache, Look
from stages.core.params import load_yaml, parse_section
from stages.core.runtime import Resources
from tests.conftest import ROOT, MakeFolder

PARAMS: dict[str, Any] = {
    "classes": None, "image_px": 32, "min_source_px": 16, "max_megapixels": 0.5,
    "min_contrast": 1.0, "min_per_class": 10, "min_groups_per_class": 3, "on_bad_image": "fail",
    "max_bad_fraction": 0.2, "near_duplicate_bits": 10, "on_leak": "move",
    "split": "stratified_group", "folds": 4, "fold": 0, "val_folds": 3, "seed": 0,
    "max_share_error": 0.5, "drift_warn": 0.1, "drift_fail": 0.25,
}  # fmt: skip

RESOURCES = load_yaml(ROOT / "params.yaml")["resources"] | {"device": "cpu", "threads": 1}

# What is there even when validation has failed, to show why.
SHOWN = {"docs", "outcomes", "quarantine", "complaints"}

# `g1_1.png` of the fixture's folder is the image that most breakages break.
Breakage = Callable[[Path], None]


def paths(root: Path) -> validate.Paths:
    inputs = {"images": "images", "expectations": "expectations.yaml", "accepted": "accepted.json"}
    for name, nothing in (("expectations", "[]"), ("accepted", "{}")):
        if not (root / inputs[name]).exists():
            (root / inputs[name]).write_text(nothing)
    places = {name: root / file for name, file in inputs.items()}
    outputs = {name: root / "out" / name for name in validate.Paths.outputs()}
    return validate.Paths(**places, **outputs, cache=root / "cache")


def run(root: Path, **changes: Any) -> Path:
    """Validate `root`/images; gives the folder of the outputs."""
    params = parse_section({"validate": PARAMS | changes}, "validate", validate.Params, source="")
    resources = parse_section({"resources": RESOURCES}, "resources", Resources, source="")
    with stage.staged(paths(root)) as partial:
        assert isinstance(partial, validate.Paths)
        validate.run(params, paths=partial, resources=resources)
    return root / "out"


@pytest.fixture
def docs() -> bool:
    """For tests that want Data Docs."""
    return True


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data Docs take half of the time."""
    if "docs" not in request.fixturenames or not request.getfixturevalue("docs"):
        monkeypatch.setattr(Contract, "document", lambda _: None)


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics").read_text())
    return found


def manifest(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "validated" / "manifest.csv", dtype=str, keep_default_na=False)


def quarantined(out: Path) -> list[dict[str, str]]:
    with (out / "quarantine").open(newline="") as file:
        return list(csv.DictReader(file))


def noise(seed: int, px: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (px, px), dtype=np.uint8))


def listed(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "images" / "metadata.csv", dtype=str, keep_default_na=False)


def list_again(root: Path, table: pd.DataFrame) -> None:
    table.to_csv(root / "images" / "metadata.csv", index=False)


def edit(column: str, value: str, name: str = "g1_1.png") -> Breakage:
    """Metadata in which one image's cell says something else."""

    def breakage(root: Path) -> None:
        table = listed(root)
        table.loc[table["file_name"] == name, column] = value
        list_again(root, table)

    return breakage


def column(name: str, values: Callable[[pd.DataFrame], Any]) -> Breakage:
    """Metadata with another column."""

    def breakage(root: Path) -> None:
        list_again(root, listed(root).assign(**{name: values}))

    return breakage


def append(name: str, label: str = "defective") -> Breakage:
    """Metadata with one more row."""

    def breakage(root: Path) -> None:
        row = pd.DataFrame({"file_name": [name], "label": [label], "group": ["g1"]})
        list_again(root, pd.concat([listed(root), row]).fillna("mono"))

    return breakage


def content(make: Callable[[], bytes] | bytes, name: str = "g1_1.png") -> Breakage:
    """A file of the folder with other bytes."""

    def breakage(root: Path) -> None:
        (root / "images" / name).write_bytes(make if isinstance(make, bytes) else make())

    return breakage


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def metadata(name: str, text: str | bytes) -> Breakage:
    """Another metadata file in place of the folder's."""

    def breakage(root: Path) -> None:
        (root / "images" / "metadata.csv").unlink()
        path = root / "images" / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return breakage


def beside(name: str, text: str | bytes = "") -> Breakage:
    """One more file in the tree; folders above it are made."""

    def breakage(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return breakage


def both(*breakages: Breakage) -> Breakage:
    def breakage(root: Path) -> None:
        for one in breakages:
            one(root)

    return breakage


def renamed(name: str) -> Breakage:
    """The image under another name, in metadata and on disk."""

    def breakage(root: Path) -> None:
        (root / "images" / "g1_1.png").rename(root / "images" / name)
        edit("file_name", name)(root)

    return breakage


def removed(root: Path) -> None:
    (root / "images" / "g1_1.png").unlink()


def emptied(root: Path) -> None:
    shutil.rmtree(root / "images")
    (root / "images").mkdir()


def a_file(root: Path) -> None:
    shutil.rmtree(root / "images")
    (root / "images").write_text("")


def a_folder(root: Path) -> None:
    removed(root)
    (root / "images" / "g1_1.png").mkdir()


def link_to(target: str) -> Breakage:
    def breakage(root: Path) -> None:
        removed(root)
        (root / "images" / "g1_1.png").symlink_to(target)

    return breakage


def link_to_folder(root: Path) -> None:
    (root / "elsewhere").mkdir()
    (root / "images" / "g1_1.png").rename(root / "elsewhere" / "g1_1.png")
    (root / "images" / "near").symlink_to(root / "elsewhere")
    edit("file_name", "near/g1_1.png")(root)


def cut(root: Path) -> None:
    file = root / "images" / "g1_1.png"
    file.write_bytes(file.read_bytes()[:-200])


def copied(root: Path) -> None:
    """The same content as an image of the other class."""
    shutil.copy(root / "images" / "g2_2.png", root / "images" / "g1_1.png")


def in_other_case(root: Path) -> None:
    noise(1).save(root / "images" / "G1_1.PNG")
    append("G1_1.PNG")(root)


def in_other_form(root: Path) -> None:
    name = "cellule_é.png"
    forms = (unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    for seed, form in enumerate(forms):
        noise(seed).save(root / "images" / form)
        append(form)(root)


def into_train(root: Path) -> None:
    (root / "images").rename(root / "train")
    (root / "images").mkdir()
    (root / "train").rename(root / "images" / "train")


def another_encoding(root: Path) -> None:
    """Class folders, with a name as an old archive has it."""
    emptied(root)
    for label in ("a", "b"):
        (root / "images" / label).mkdir()
        noise(1).save(root / "images" / label / "1.png")
    (root / "images/a/1.png").rename(root / "images/a" / os.fsdecode(b"caf\xe9.png"))


def huge_header() -> bytes:
    """A PNG of a few bytes that would unpack to 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def frames(kind: str) -> bytes:
    return saved(noise(0), kind, save_all=True, append_images=[noise(1)])


def parquet(table: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    table.to_parquet(file)
    return file.getvalue()


def shard(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return file.getvalue()


SAMPLES = {
    f"{i}.{ending}": data
    for i in range(4)
    for ending, data in (("png", saved(noise(i), "PNG")), ("cls", b"%d" % (i % 2)))
}
SHARD = shard(SAMPLES)


def shards(data: bytes) -> Breakage:
    return both(emptied, beside("images/train-0.tar", data))


def own(*expectations: dict[str, Any]) -> Breakage:
    return beside("expectations.yaml", json.dumps(expectations))


def accepted(**changes: Any) -> Breakage:
    """A profile of accepted data that was much like the folder's but for what is changed."""
    profile: dict[str, Any] = {"images": 48, "label": {"defective": 0.5, "functional": 0.5}}
    for name in ("width", "height", "mean", "contrast", "sharpness"):
        profile[name] = {"edges": [0.0], "shares": [0.0, 1.0]}
    return beside("accepted.json", json.dumps({"data": profile | changes}))


def near_copy(root: Path) -> None:
    """An image of group g2 that is, but for a little noise, one of g1."""
    source = np.asarray(Image.open(root / "images" / "g1_1.png")).astype(int)
    faint = np.random.default_rng(5).integers(-1, 2, source.shape)
    made = (source + faint).clip(0, 255).astype(np.uint8)
    Image.fromarray(made).save(root / "images" / "g2_1.png")


def split_by_group(table: pd.DataFrame) -> "pd.Series[str]":
    places = dict.fromkeys(("g0", "g1", "g2"), "test") | dict.fromkeys(("g3", "g4"), "val")
    return table["group"].map(places).fillna("train")


def split_by_label(table: pd.DataFrame) -> "pd.Series[str]":
    """As by group, but all defective images train."""
    split = split_by_group(table.assign(group=table["group"].str[:2]))
    return split.where(table["label"] != "defective", "train")


USERS = {"split": "column"}
FLOAT = Image.fromarray(np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40))
DEEP = Image.fromarray(np.arange(1600, dtype=np.int32).reshape(40, 40) * 100)
WHOLE = "expected a whole image inside the folder, listed once"
HEADER = "file_name,label\n"
COUNT = "expect_table_row_count_to_be_between"

# What is broken; how; the words that the message must have; what the params say instead of PARAMS.
BROKEN: dict[str, tuple[Breakage, list[str], dict[str, Any]]] = {
    # Content of a file.
    "truncated PNG": (
        cut, ["g1_1.png: not a whole image", "truncated", "save or copy it again", WHOLE], {},
    ),
    "truncated JPEG": (
        both(renamed("g1_1.jpg"), content(saved(noise(1), "JPEG")[:-300], "g1_1.jpg")),
        ["g1_1.jpg: not a whole image", "truncated", "save or copy it again"], {},
    ),
    "zero bytes": (content(b""), ["g1_1.png: an empty file (0 bytes); copy it again", WHOLE], {}),
    "text as an image": (
        content(b"not an image"), ["g1_1.png: not an image of BMP, JPEG, PNG, TIFF, WEBP"], {},
    ),
    "another format": (
        content(saved(noise(0), "GIF")), ["g1_1.png: not an image of BMP, JPEG, PNG"], {},
    ),
    "wrong extension": (
        content(saved(noise(0), "JPEG")),
        ["g1_1.png: its content is JPEG, its name says .png; rename it", WHOLE], {},
    ),
    "a line break in the name": (
        both(renamed("g1\n1.png"), content(b"", "g1\n1.png")),
        ["g1\\n1.png: an empty file (0 bytes)"], {},
    ),
    "no extension": (
        renamed("g1_1"), ["g1_1: its content is PNG, its name says nothing; rename it"], {},
    ),
    "too many pixels": (
        content(saved(noise(0, 90), "PNG")),
        ["g1_1.png: 90 x 90 pixels; expected at most 0.005 million; make it smaller, or raise val"],
        {"max_megapixels": 0.005},
    ),
    "decompression bomb": (
        content(huge_header), ["g1_1.png: 20000 x 20000 pixels; expected at most 100 million"],
        {"max_megapixels": 100.0},
    ),
    "animated PNG": (
        content(frames("PNG")), ["g1_1.png: 2 pictures in one file; expected one: split it"], {},
    ),
    "TIFF of two pages": (
        both(renamed("g1_1.tif"), content(frames("TIFF"), "g1_1.tif")),
        ["g1_1.tif: 2 pictures in one file"], {},
    ),
    "animated WebP": (
        both(renamed("g1_1.webp"), content(frames("WEBP"), "g1_1.webp")),
        ["g1_1.webp: 2 pictures in one file"], {},
    ),
    "32-bit float TIFF": (
        both(renamed("g1_1.tif"), content(saved(FLOAT, "TIFF"), "g1_1.tif")),
        ["g1_1.tif: not a whole image (pixels are 32-bit floats, expected 8 or 16 bits)"], {},
    ),
    "32-bit integer TIFF": (
        both(renamed("g1_1.tif"), content(saved(DEEP, "TIFF"), "g1_1.tif")),
        ["g1_1.tif: not a whole image (pixels have more than 16 bits, expected 8 or 16)"], {},
    ),
    "blank": (
        content(saved(Image.new("L", (40, 40), 90), "PNG")),
        ["g1_1.png: contrast = 0.0", "at least 1 grey levels", "or lower min_contrast"], {},
    ),
    "too small": (
        content(saved(noise(0, 8), "PNG")),
        ["g1_1.png: width = 8 (expected at least 16 px: leave it out, or lower min_source_px"], {},
    ),
    # Its name.
    "path traversal": (
        edit("file_name", "../../etc/passwd"),
        ["../../etc/passwd: not a path inside the folder; name it relative to the folder", WHOLE],
        {},
    ),
    "traversal inside the name": (
        edit("file_name", "sub/../../images/g1_1.png"), ["not a path inside the folder"], {},
    ),
    "absolute path": (
        edit("file_name", "/etc/passwd"), ["/etc/passwd: not a path inside the folder"], {},
    ),
    "NUL in the name": (
        edit("file_name", "g1\0_1.png"), ["_1.png: not a path inside the folder"], {},
    ),
    "carriage return in the name": (
        metadata("metadata.jsonl", json.dumps({"file_name": "g1\r_1.png", "label": "a"})),
        ["_1.png: not a path inside the folder"], {"classes": ["a", "b"]},
    ),
    "very long name": (
        edit("file_name", "n" * 300 + ".png"), ["nnn.png: no such file (File name too long)"], {},
    ),
    "link out of the folder": (
        link_to("/etc/hostname"),
        ["g1_1.png: a link that leaves the folder; put the file itself there"], {},
    ),
    "link to a folder elsewhere": (
        link_to_folder, ["near/g1_1.png: a link that leaves the folder"], {},
    ),
    "link to itself": (link_to("g1_1.png"), ["g1_1.png: no such file"], {}),
    "missing file": (
        removed, ["g1_1.png: no such file; put it there, or take its row out", WHOLE], {},
    ),
    "a folder instead of a file": (a_folder, ["g1_1.png: no such file"], {}),
    "no name": (edit("file_name", ""), [": not a path inside the folder"], {}),
    "listed twice": (append("g2_1.png"), ["g2_1.png: listed twice; keep one row", WHOLE], {}),
    "listed twice, once with ./": (append("./g2_1.png"), ["g2_1.png: listed twice"], {}),
    "names that differ in case": (
        in_other_case, ["G1_1.PNG: the same name as g1_1.png but for case or Unicode form"], {},
    ),
    "names that differ in Unicode form": (
        in_other_form,
        [": the same name as cellule_é.png", "but for case or Unicode form; rename it"], {},
    ),
    "a name that is not UTF-8": (
        another_encoding,
        ["a/caf\\udce9.png: no such file; its name is not UTF-8: rename it"], {},
    ),
    # Labels.
    "unknown label, by classes.txt": (
        both(edit("label", "broken"), beside("images/classes.txt", "functional\ndefective\n")),
        ["g1_1.png: label = broken", "one of the classes functional, defective", "classes.txt"], {},
    ),
    "unknown label, by the params": (
        edit("label", "broken"), ["g1_1.png: label = broken", "validate.classes"],
        {"classes": ["functional", "defective"]},
    ),
    "missing label": (edit("label", ""), ["g1_1.png: it has no label; give it one"], {}),
    "no labels at all": (
        column("label", lambda t: [""] * len(t)),
        ["found 0 class (no label)", "at least two", "add labelled images"], {},
    ),
    "one class": (
        column("label", lambda t: ["functional"] * len(t)),
        ["found 1 class (functional); expected at least two: add labelled images"], {},
    ),
    "an empty class": (
        beside("images/classes.txt", "functional\ndefective\nburnt\n"),
        ["burnt: images = 0 (expected at least 10 images of each class", "min_per_class"], {},
    ),
    "too few images of a class": (
        lambda root: None,
        ["images = 24", "at least 25 images of each class: add some, or lower validate.min_per"],
        {"min_per_class": 25},
    ),
    "too few groups of a class": (
        lambda root: None,
        ["groups = 8", "at least 9 groups of each class", "lower validate.min_groups_per_class"],
        {"min_groups_per_class": 9},
    ),
    "one content, two labels": (
        copied,
        ["g1_1.png: label = defective (same content: g1_1.png, g2_2.png)", "g2_2.png: label = func",
         "expected one label for one content: correct one of them"], {},
    ),
    # Metadata.
    "nothing": (emptied, ["images: found nothing; expected one of: a metadata.csv"], {}),
    "images alone": (
        lambda root: (root / "images" / "metadata.csv").unlink(),
        ["found g0_0.png, g0_1.png", "a folder a class; or *.tar shards"], {},
    ),
    "a file instead of a folder": (a_file, ["images: found no folder", "set data.dir"], {}),
    "empty metadata": (
        metadata("metadata.csv", ""), ["metadata.csv: not readable as CSV (No columns to pars"], {},
    ),
    "no rows": (metadata("metadata.csv", HEADER), ["no images; expected one row or file"], {}),
    "binary metadata": (
        metadata("metadata.csv", bytes(range(256))),
        ["metadata.csv: not readable as CSV (", "save it again as UTF-8 CSV"], {},
    ),
    "UTF-16 metadata": (
        metadata("metadata.csv", (HEADER + "g1_1.png,a\n").encode("utf-16")),
        ["metadata.csv: not readable as CSV", "save it again as UTF-8 CSV"], {},
    ),
    "open quotation mark": (
        metadata("metadata.csv", HEADER + 'g1_1.png,"a\n'), ["not readable as CSV (Error"], {},
    ),
    "no label column": (
        metadata("metadata.csv", "file_name,domain\ng1_1.png,mono\n"),
        ["metadata.csv: no column 'label'; found file_name, domain: add the column"], {},
    ),
    "semicolons": (
        metadata("metadata.csv", "file_name;label\ng1_1.png;a\n"),
        ["no column 'file_name'; found file_name;label: add the column"], {},
    ),
    "cells beyond the header": (
        metadata("metadata.csv", HEADER + "g1_1.png,a,mono\ng1_2.png,b,mono\n"),
        ["metadata.csv: the rows have more cells than the header: name them all"], {},
    ),
    "a longer row": (
        metadata("metadata.csv", HEADER + "g1_1.png,a\ng1_2.png,b,mono\n"),
        ["metadata.csv: not readable as CSV", "Expected 2 fields in line 3, saw 3"], {},
    ),
    "two metadata files": (
        beside("images/metadata.jsonl", "{}"),
        ["found metadata.csv, metadata.jsonl; expected one metadata file: keep one of them"], {},
    ),
    "metadata at two levels": (
        beside("images/sub/metadata.csv", HEADER),
        ["found metadata.csv, sub/metadata.csv; expected one metadata file"], {},
    ),
    "bad JSON line": (
        metadata("metadata.jsonl", '{"file_name": "g1_1.png", "label": "a"}\n{"file_name": \n'),
        ["metadata.jsonl: line 2: not JSON (Expecting value", "expected one object a line"], {},
    ),
    "JSON line that is no object": (
        metadata("metadata.jsonl", '["g1_1.png", "a"]\n'),
        ["metadata.jsonl: line 1: found list, expected an object"], {},
    ),
    "deep JSON": (
        metadata("metadata.jsonl", "[" * 100_000), ["metadata.jsonl: line 1: not JSON"], {},
    ),
    "half a Unicode pair": (
        metadata("metadata.jsonl", '{"file_name": "g1_1.png", "label": "\\ud800"}'),
        ["g1_1.png: label = \\ud800 (expected one of the classes a, b"], {"classes": ["a", "b"]},
    ),
    "broken parquet": (
        metadata("metadata.parquet", parquet(pd.DataFrame({"file_name": ["g1_1.png"]}))[:-9]),
        ["metadata.parquet: not readable as PARQUET", "save it again as UTF-8 PARQUET"], {},
    ),
    "parquet without labels": (
        metadata("metadata.parquet", parquet(pd.DataFrame({"file_name": ["g1_1.png"]}))),
        ["metadata.parquet: no column 'label'; found file_name: add the column"], {},
    ),
    # Shards.
    "broken shard": (
        shards(b"x" * 3000), ["train-0.tar: not readable as a tar", "write it again"], {},
    ),
    "cut shard": (
        shards(SHARD[:3000]), ["train-0.tar: not readable as a tar", "damaged or cut off"], {},
    ),
    "shard cut between two members": (
        shards(shard(dict(list(SAMPLES.items())[:5])).rstrip(b"\0").ljust(2 * 512, b"\0")),
        ["train-0.tar: not readable as a tar"], {},
    ),
    "damage in a shard's midst": (
        shards(SHARD.replace(b"2.png", b"3.png", 1)),
        ["train-0.tar: not readable as a tar (damaged or cut off at byte"], {},
    ),
    "gzipped shard": (
        shards(shard(SAMPLES, "w:gz")),
        ["train-0.tar: not readable as a tar", "expected uncompressed WebDataset shards"], {},
    ),
    "shard of another name": (
        both(emptied, beside("images/train-0.tar.gz", SHARD)),
        ["found train-0.tar.gz; expected one of", "*.tar shards"], {},
    ),
    "empty shard": (shards(shard({})), ["no images; expected one row or file a labelled"], {}),
    "shard without labels": (
        shards(shard({"1.png": saved(noise(1), "PNG")})),
        ["train-0.tar/1.png: it has no label"], {"classes": ["0", "1"]},
    ),
    "bad JSON in a shard": (
        shards(shard(SAMPLES | {"2.json": b"{"})), ["train-0.tar/2.json: line 1: not JSON"], {},
    ),
    "binary label in a shard": (
        shards(shard(SAMPLES | {"2.cls": b"\xff\xfe"})),
        ["train-0.tar: 2.cls: not UTF-8 text; expected a label or JSON"], {},
    ),
    "shards beside metadata": (
        beside("images/train-0.tar", SHARD),
        ["found shards (train-0.tar) and metadata.csv; expected one layout: keep the shards"], {},
    ),
    "shards beside folders": (
        both(shards(SHARD), beside("images/cats/1.png")),
        ["found shards (train-0.tar) and cats; expected one layout"], {},
    ),
    # Classes and splits.
    "classes.txt with one class": (
        beside("images/classes.txt", "functional\n"),
        ["classes.txt: found ['functional']; expected at least two classes, each once"], {},
    ),
    "classes.txt with one class twice": (
        beside("images/classes.txt", "a\nb\na\n"), ["classes.txt: found ['a', 'b', 'a']"], {},
    ),
    "empty classes.txt": (beside("images/classes.txt"), ["classes.txt: found []"], {}),
    "binary classes.txt": (
        beside("images/classes.txt", b"\xff\xfe\x00"),
        ["classes.txt: not UTF-8 text; expected one class a line"], {},
    ),
    "unknown split": (
        column("split", lambda t: ["train"] * 47 + ["holdout"]),
        ["split = 'holdout'; expected train, val or test: correct the column"], USERS,
    ),
    "empty split": (
        both(column("split", split_by_group), edit("split", "")),
        ["1 images have no split (g1_1.png); expected train, val or test", "fill the column"],
        USERS,
    ),
    "no test split": (
        column("split", lambda t: ["train"] * len(t)),
        ["no image has the split test; expected some that measure the model: mark them"], USERS,
    ),
    "split folders beside another": (
        both(emptied, beside("images/train/a/1.png"), beside("images/test/a/1.png"),
             beside("images/extra/1.png")),
        ["found the folders test, train and extra; expected folders of splits alone", "take extra"],
        {},
    ),
    "no test folder": (
        into_train,
        ["no image has the split test", "without split folders"], {},
    ),
    "a class in one split only": (
        both(
            column("group", lambda t: t["group"] + t["label"]),
            column("split", split_by_label),
        ),
        ["defective in val: images = 0; defective in test: images = 0 (expected every class in",
         "every split: add groups of this class, or try another validate.seed or fold"],
        USERS,
    ),
    "too few groups for the folds": (
        column("group", lambda t: t["group"].str[1].astype(int) % 3),
        ["3 groups cannot be split into 4 folds without tearing one apart", "lower validate.folds"],
        {},
    ),
    "one group": (
        column("group", lambda t: ["g"] * len(t)),
        ["1 groups cannot be split into 4 folds"], {"min_groups_per_class": 1},
    ),
    "too few images for the folds": (
        lambda root: None, ["cannot be split into 20 folds", "add images, or lower validate.folds"],
        {"split": "random", "folds": 2, "val_folds": 20},
    ),
    "an uneven hash": (
        lambda root: None,
        ["test: share = ", "expected 0.25 ± 0.0001 of the images", "try another validate.seed"],
        {"split": "hash", "max_share_error": 0.0001, "seed": 3},
    ),
    # The user's own expectations.
    "own: a row": (
        own({"type": "expect_column_values_to_be_in_set", "column": "group",
             "value_set": [f"g{g}" for g in range(7)], "expected": "the first seven groups"}),
        ["g7_0.png: group = g7;", "and 1 more (expected the first seven groups)",
         "all of them in quarantine.csv"], {},
    ),
    "own: a column": (
        own({"type": "expect_column_mean_to_be_between", "column": "width", "max_value": 30}),
        ["width = 40.0 (expected column mean to be between, max_value 30)"], {},
    ),
    "own: the whole table": (
        own({"type": COUNT, "min_value": 100, "expected": "100 images or more"}),
        ["found 48 (expected 100 images or more)"], {},
    ),
    "own: two columns": (
        both(
            edit("group", "mono"),
            own({"type": "expect_column_pair_values_a_to_be_greater_than_b", "column_A": "domain",
                 "column_B": "group", "expected": "the domain after the group"}),
        ),
        ["g1_1.png: mono, mono (expected the domain after the group)"], {},
    ),
    "own: unknown type": (
        own({"type": "expect_miracles", "column": "width"}),
        ["expectations.yaml: expectation 1 (expect_miracles): Great Expectations has no such"], {},
    ),
    "own: no type": (own({"column": "width"}), ["expectation 1 (None): Great Expectations"], {}),
    "own: unknown column": (
        own({"type": COUNT, "min_value": 1},
            {"type": "expect_column_values_to_be_unique", "column": "serial"}),
        ["expectation 2 (expect_column_values_to_be_unique): no column 'serial'; there are file_n"],
        {},
    ),
    "own: unknown one of two columns": (
        own({"type": "expect_column_pair_values_to_be_equal", "column_A": "x", "column_B": "y"}),
        ["expect_column_pair_values_to_be_equal could not be evaluated", '"x"'], {},
    ),
    "own: missing argument": (
        own({"type": "expect_column_values_to_match_regex"}),
        ["expectation 1 (expect_column_values_to_match_regex)", "column field required"], {},
    ),
    "own: unknown argument": (
        own({"type": COUNT, "least": 1}), [f"expectation 1 ({COUNT})", "least extra fields"], {},
    ),
    "own: broken YAML": (
        beside("expectations.yaml", "- type: [\n"), ["expectations.yaml: not readable as YAML"], {},
    ),
    "own: binary": (
        beside("expectations.yaml", b"\xff\xfe"), ["expectations.yaml: not readable as YAML"], {},
    ),
    "own: impossible date": (
        beside("expectations.yaml", "- 2020-99-99\n"), ["expectations.yaml: not readable as YAML"],
        {},
    ),
    "own: no list": (
        beside("expectations.yaml", "type: expect\n"),
        ["expectations.yaml: expected a list of expectations, each with its type"], {},
    ),
    # Drift.
    "drift of the brightness": (
        accepted(mean={"edges": [10.0, 20.0], "shares": [0.3, 0.4, 0.3]}),
        ["mean has drifted from the accepted data: stability index", "expected at most 0.25",
         "accept them or raise validate.drift_fail"], {},
    ),
    "drift of the classes": (
        accepted(label={"defective": 0.05, "functional": 0.95}), ["label has drifted"], {},
    ),
    "broken accepted.json": (
        beside("accepted.json", '{"data": '), ["accepted.json: found no profile of accepted data"],
        {},
    ),
    "accepted.json without a profile": (
        beside("accepted.json", '{"data": {"label": {}}}'), ["accepted.json: found no profile"], {},
    ),
    # Leaks.
    "near duplicates": (
        near_copy,
        ["near duplicates or groups in two places: g1_1.png and g2_1.png; expected none",
         "or set validate.on_leak to move"], {"on_leak": "refuse"},
    ),
    "near duplicates in two given splits": (
        both(near_copy, column("split", split_by_group), edit("split", "train")),
        ["near duplicates or groups in two places: g1_1.png (its like is in test)"],
        USERS | {"on_leak": "refuse"},
    ),
    "a group in two given splits": (
        both(column("split", split_by_group), edit("split", "train")),
        ["g1_1.png (its like is in test); expected none: put them into one group"],
        USERS | {"on_leak": "refuse"},
    ),
    # Quarantine has a limit.
    "too much to leave out": (
        both(cut, content(b"", "g3_1.png")),
        ["2 bad images are more than validate.max_bad_fraction = 0.04 of all", "g1_1.png: not a",
         "g3_1.png: an empty file"], {"on_bad_image": "quarantine", "max_bad_fraction": 0.04},
    ),
    "own, of a whole column, in quarantine": (
        own({"type": "expect_column_mean_to_be_between", "column": "width", "max_value": 30}),
        ["width = 40.0 (expected column mean to be between, max_value 30)"],
        {"on_bad_image": "quarantine"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("docs", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("breakage", "words", "changes"), BROKEN.values(), ids=list(BROKEN))
def test_broken_input_is_named_and_stops(
    tmp_path: Path,
    image_folder: MakeFolder,
    breakage: Breakage,
    words: list[str],
    changes: dict[str, Any],
    docs: bool,
) -> None:
    image_folder()
    breakage(tmp_path)
    with pytest.raises(DataError) as caught:
        run(tmp_path, **changes)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert {p.name for p in (tmp_path / "out").iterdir()} <= SHOWN


def stage_process(root: Path, **changes: Any) -> "subprocess.Popen[str]":
    """`python -m stages.validate` in a workspace of its own."""
    sections = {"validate": PARAMS | changes, "resources": RESOURCES}
    (root / "params.yaml").write_text(json.dumps(sections))
    command = [sys.executable, "-m", "stages.validate"]
    chosen = paths(root)
    for name in validate.Paths.options():
        command += [f"--{name}", str(getattr(chosen, name))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["truncated PNG", pytest.param("bad JSON line", marks=pytest.mark.slow)]
)
def test_the_user_sees_one_line(tmp_path: Path, image_folder: MakeFolder, kind: str) -> None:
    image_folder()
    breakage, words, _ = BROKEN[kind]
    breakage(tmp_path)
    with stage_process(tmp_path) as running:
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 1
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: validate: ")
    assert [word for word in words if word not in lines[0]] == []
    shown = {p.name for p in (tmp_path / "out").iterdir()}
    if kind == "truncated PNG":
        assert shown == SHOWN
        assert [row["file_name"] for row in quarantined(tmp_path / "out")] == ["g1_1.png"]
    else:
        assert shown <= SHOWN


def test_a_good_folder_comes_out_whole(
    tmp_path: Path, image_folder: MakeFolder, docs: bool
) -> None:
    image_folder()
    out = run(tmp_path)
    data = load_dataset(out / "validated")
    assert data.pixels.shape == (48, 32, 32, 1)
    assert data.classes == ["defective", "functional"]
    by_split = {s: set(data.groups[data.rows(s)]) for s in ("train", "val", "test")}
    assert set.union(*by_split.values()) == set(range(8))
    assert sum(map(len, by_split.values())) == 8
    assert (data.pixels.mean((1, 2, 3)) > 125).tolist() == (data.labels == 1).tolist()
    assert quarantined(out) == []
    found = metrics(out)
    assert (found["images"], found["groups"], found["bad_images"]) == (48, 8, 0)
    assert {s: c["images"] for s, c in found["splits"].items()} == {
        s: len(data.rows(s)) for s in ("train", "val", "test")
    }
    outcomes = pd.read_csv(out / "outcomes")
    assert outcomes["passed"].all()
    assert len(outcomes) == found["expectations"]
    rows = manifest(out)
    assert {"bytes", "width", "height", "mode", "sha256", "phash", "sharpness"} <= set(rows)
    assert (rows["domain"] == "mono").all()
    pages = list((out / "docs").rglob("*.html"))
    assert pages
    assert not [page for page in pages if 'src="http' in page.read_text()]


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder()
    noise(1).save(folder / "more.png")
    near_copy(tmp_path)
    outputs = [f for f in validate.Paths.outputs() if f not in ("docs", "validated")]
    outputs += [f"validated/{file}" for file in ("pixels.npy", "manifest.csv", "profile.json")]
    out = run(tmp_path)
    first = {name: (out / name).read_bytes() for name in outputs}
    shutil.rmtree(tmp_path / "cache")
    run(tmp_path)
    assert {name: (out / name).read_bytes() for name in outputs} == first


@pytest.mark.parametrize("classes", ["params", "file", "neither"])
def test_the_order_of_the_classes(
    tmp_path: Path, image_folder: MakeFolder, classes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder()
    wanted = ["functional", "defective"]
    if classes == "file":
        (folder / "classes.txt").write_text("\ufefffunctional\r\n\ndefective\r\n")
    out = run(tmp_path, classes=wanted if classes == "params" else None)
    found = load_dataset(out / "validated").classes
    alphabetical = "classes, in alphabetical order: defective, functional"
    if classes == "neither":
        assert found == sorted(wanted)
        assert alphabetical in capsys.readouterr().out
    else:
        assert found == wanted
        assert alphabetical not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fold": 4}, "validate.fold = 4: should be less than folds"),
        ({"classes": ["a", "b", "a"]}, "each class should stand there once"),
        ({"classes": ["a"]}, "validate.classes"),
        ({"image_px": 48}, "validate.image_px = 48"),
        ({"split": "by_date"}, "validate.split = 'by_date'"),
        ({"max_bad_fraction": 1.5}, "validate.max_bad_fraction = 1.5"),
    ],
)
def test_params_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ParamsError, match=words):
        parse_section({"validate": PARAMS | changes}, "validate", validate.Params, source="")


def test_quarantine_lists_all_that_it_leaves_out(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder()
    cut(tmp_path)
    noise(9).save(folder / "unlisted.png")
    (folder / "notes.txt").write_text("")
    both(
        content(b"", "g3_1.png"),
        content(saved(noise(0, 8), "PNG"), "g5_3.png"),
        content(saved(Image.new("L", (40, 40)), "PNG"), "g0_1.png"),
        edit("label", "", "g4_1.png"),
        append("gone.png"),
        append("../out.png"),
    )(tmp_path)
    out = run(tmp_path, on_bad_image="quarantine")
    lines = {row["file_name"]: (row["kind"], row["reason"]) for row in quarantined(out)}
    expected = {
        "g1_1.png": "truncated", "g3_1.png": "an empty file", "g5_3.png": "width = 8",
        "g0_1.png": "contrast = 0.0", "g4_1.png": "it has no label", "gone.png": "no such file",
        "../out.png": "not a path inside", "unlisted.png": "not in metadata.csv",
        "notes.txt": "no image by its name",
    }  # fmt: skip
    assert {name: word in lines[name][1] for name, word in expected.items()} == dict.fromkeys(
        expected, True
    )
    assert set(lines) == set(expected)
    others = {"unlisted.png", "notes.txt"}
    assert {name for name, (kind, _) in lines.items() if kind == "not used"} == others
    assert {kind for name, (kind, _) in lines.items() if name not in others} == {"bad image"}
    kept = set(manifest(out)["file_name"])
    there = {p.name for p in folder.iterdir()} - {"metadata.csv"}
    assert kept | set(lines) == there | {"gone.png", "../out.png"}
    assert not kept & set(lines)
    assert metrics(out)["bad_images"] == 7
    assert metrics(out)["images"] == len(kept) == 43


def test_a_row_that_stands_twice_loses_its_second_only(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    image_folder()
    both(*[append("g2_1.png")] * 2, *[append("")] * 3)(tmp_path)
    out = run(tmp_path, on_bad_image="quarantine")
    rows = quarantined(out)
    assert len(rows) == 5
    assert [row["file_name"] for row in rows].count("g2_1.png") == 2
    assert manifest(out)["file_name"].tolist().count("g2_1.png") == 1
    assert len(manifest(out)) + len(rows) == len(listed(tmp_path))


def test_contradictions_are_left_out_together(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    copied(tmp_path)
    out = run(tmp_path, on_bad_image="quarantine")
    assert {row["file_name"] for row in quarantined(out)} == {"g1_1.png", "g2_2.png"}
    assert all("one label for one content" in row["reason"] for row in quarantined(out))
    assert len(manifest(out)) == 46


@pytest.mark.parametrize(("fraction", "passes"), [(2 / 48, True), (1.99 / 48, False)])
def test_quarantine_has_a_limit(
    tmp_path: Path, image_folder: MakeFolder, fraction: float, passes: bool
) -> None:
    image_folder()
    both(cut, content(b"", "g3_1.png"))(tmp_path)
    changes = {"on_bad_image": "quarantine", "max_bad_fraction": fraction}
    if passes:
        out = run(tmp_path, **changes)
        assert len(manifest(out)) == 46
    else:
        with pytest.raises(DataError, match="2 bad images are more than"):
            run(tmp_path, **changes)
    assert {row["file_name"] for row in quarantined(tmp_path / "out")} == {"g1_1.png", "g3_1.png"}


def test_the_limit_counts_all_kinds_together(tmp_path: Path, image_folder: MakeFolder) -> None:
    """One unreadable image, one against the user's own expectation, two that contradict."""
    image_folder()
    both(
        content(b"", "g3_1.png"),
        copied,
        edit("domain", "poly", "g5_5.png"),
        own({"type": "expect_column_values_to_be_in_set", "column": "domain",
             "value_set": ["mono"]}),
    )(tmp_path)  # fmt: skip
    changes = {"on_bad_image": "quarantine"}
    with pytest.raises(DataError, match="4 bad images are more than"):
        run(tmp_path, **changes, max_bad_fraction=3.5 / 48)
    out = run(tmp_path, **changes, max_bad_fraction=4 / 48)
    lines = {row["file_name"]: row["reason"] for row in quarantined(out)}
    assert set(lines) == {"g1_1.png", "g2_2.png", "g3_1.png", "g5_5.png"}
    assert "domain = poly" in lines["g5_5.png"]


def test_the_users_expectations_see_fit_images_only(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    """An unreadable image has a width of 0, which says nothing of the users' images."""
    image_folder()
    content(b"")(tmp_path)
    own({"type": "expect_column_mean_to_be_between", "column": "width", "min_value": 40})(tmp_path)
    out = run(tmp_path, on_bad_image="quarantine")
    outcomes = pd.read_csv(out / "outcomes")
    assert outcomes.loc[outcomes["suite"] == "own", "passed"].tolist() == [True]


def class_folders(root: Path, folder: Path, above: dict[str, str] | None = None) -> None:
    """The fixture's images as one folder a class, in split folders by group if so said."""
    for name, label, group in listed(root)[["file_name", "label", "group"]].to_numpy():
        place = folder / (above or {}).get(group, "") / label
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "images" / name, place / name)


def as_images(root: Path, folder: Path) -> None:
    shutil.rmtree(root / "images")
    folder.rename(root / "images")


def test_layouts_give_the_same_pixels(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder()
    table = listed(tmp_path).drop(columns="group")
    names = {
        "csv": "metadata.csv", "jsonl": "metadata.jsonl", "parquet": "metadata.parquet",
        "classes": "", "shards": "",
    }  # fmt: skip
    found = {}
    for layout, name in names.items():
        made = tmp_path / layout
        if layout == "classes":
            class_folders(tmp_path, made)
        elif layout == "shards":
            made.mkdir()
            for s in range(3):
                members = {}
                for file, label in table[["file_name", "label"]].to_numpy()[s::3]:
                    members[file] = (folder / file).read_bytes()
                    members[file.replace(".png", ".cls")] = label.encode()
                (made / f"train-{s}.tar").write_bytes(shard(members))
        else:
            shutil.copytree(folder, made)
            (made / "metadata.csv").unlink()
            if layout == "csv":
                table.to_csv(made / name, index=False)
            elif layout == "jsonl":
                table.to_json(made / name, orient="records", lines=True)
            else:
                table.to_parquet(made / name)
        root = tmp_path / f"run {layout}"
        root.mkdir()
        made.rename(root / "images")
        out = run(root, split="random")
        data = load_dataset(out / "validated")
        order = np.argsort([Path(file).name for file in data.files])
        assert sorted(Path(file).name for file in data.files) == sorted(table["file_name"])
        found[layout] = (data.pixels[order], data.labels[order])
        assert layout in metrics(out)["layout"] or layout == "classes"
    for pixels, labels in found.values():
        assert np.array_equal(pixels, found["csv"][0])
        assert np.array_equal(labels, found["csv"][1])


@pytest.mark.parametrize("metadata_in", ["none", "each", "top"])
def test_split_folders_are_respected(
    tmp_path: Path, image_folder: MakeFolder, metadata_in: str
) -> None:
    image_folder()
    places = {f"g{g}": ("Train", "Train", "Train", "Train", "valid", "valid", "test", "test")[g]
              for g in range(8)}  # fmt: skip
    table = listed(tmp_path)
    split = table["group"].map(places)
    made = tmp_path / "made"
    if metadata_in == "none":
        class_folders(tmp_path, made, places)
    else:
        for place, rows in table.groupby(split):
            (made / place).mkdir(parents=True)
            for name in rows["file_name"]:
                shutil.copy(tmp_path / "images" / name, made / place / name)
            if metadata_in == "each":
                rows.to_csv(made / place / "metadata.csv", index=False)
        if metadata_in == "top":
            names = split + "/" + table["file_name"]
            table.assign(file_name=names).to_csv(made / "metadata.csv", index=False)
    as_images(tmp_path, made)
    out = run(tmp_path)
    rows = manifest(out)
    assert len(rows) == 48
    assert metrics(out)["split_method"] == "column"
    assert "in split folders" in metrics(out)["layout"]
    plain = {"Train": "train", "valid": "val", "test": "test"}
    assert (rows["file_name"].str.split("/").str[0].map(plain) == rows["split"]).all()
    assert quarantined(out) == []


def test_grey_becomes_rgb_among_colours(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder()
    draws = np.random.default_rng(0).integers(150, 256, (40, 40), dtype=np.uint8)
    red = np.stack([draws, np.zeros_like(draws), np.zeros_like(draws)], 2)
    Image.fromarray(red).save(folder / "g1_1.png")
    out = run(tmp_path)
    data = load_dataset(out / "validated")
    assert data.pixels.shape == (48, 32, 32, 3)
    assert metrics(out)["channels"] == 3
    (row,) = np.flatnonzero(data.files == "g1_1.png")
    assert data.pixels[row, ..., 0].min() >= 130
    assert data.pixels[row, ..., 1:].max() == 0
    grey = np.delete(np.asarray(data.pixels), row, 0)
    assert (grey == grey[..., :1]).all()


def test_cmyk_and_sixteen_bits_are_fine(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder()
    draws = np.random.default_rng(0)
    cmyk = Image.fromarray(draws.integers(0, 256, (40, 40, 4), dtype=np.uint8), "CMYK")
    cmyk.save(folder / "g1_1.jpg")
    deep = Image.fromarray(draws.integers(0, 65536, (40, 40), dtype=np.uint16))
    deep.save(folder / "g2_2.png")
    edit("file_name", "g1_1.jpg")(tmp_path)
    out = run(tmp_path)
    modes = manifest(out).set_index("file_name")["mode"]
    assert (modes["g1_1.jpg"], modes["g2_2.png"]) == ("CMYK", "I;16")
    unlisted = {row["file_name"]: row["reason"] for row in quarantined(out)}
    assert unlisted == {"g1_1.png": "not in metadata.csv"}


def test_odd_text_comes_through(tmp_path: Path, image_folder: MakeFolder, docs: bool) -> None:
    image_folder()
    odd = {"functional": "<b>&\"'{{ x }} %s", "defective": "$x$ \\frac{ two\nlines"}
    both(
        column("label", lambda t: t["label"].map(odd)),
        column("group", lambda t: t["group"] + "</td>,;\t\u2028"),
        column("<b>", lambda t: "\u00e9\u597d"),
        column("problem", lambda t: "none"),
    )(tmp_path)
    out = run(tmp_path)
    rows = manifest(out)
    assert set(rows["label"]) == set(odd.values())
    assert rows["group"].tolist() == listed(tmp_path)["group"].tolist()
    assert set(rows["<b>"]) == {"\u00e9\u597d"}
    assert len(load_dataset(out / "validated").labels) == 48


def test_many_classes_in_shards(tmp_path: Path) -> None:
    members = {}
    for i in range(240):
        members[f"{i}.png"] = saved(noise(i), "PNG")
        about = {"label": i % 30, "group": i // 30 % 8, "split": "", "site": f"s{i}"}
        members[f"{i}.json"] = json.dumps(about).encode()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "all.tar").write_bytes(shard(members))
    out = run(tmp_path, min_per_class=8)
    rows = manifest(out)
    assert json.loads((out / "validated" / "classes.json").read_text()) == sorted(
        map(str, range(30))
    )
    assert rows["label"].value_counts().to_dict() == {str(c): 8 for c in range(30)}
    assert rows["site"].tolist() == [f"s{i}" for i in range(240)]
    assert rows.groupby("group")["split"].nunique().eq(1).all()


@pytest.mark.xfail(reason="load_dataset reads such labels as numbers", strict=True)
def test_classes_that_are_numbers(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    column("label", lambda t: t["label"].map({"functional": "0", "defective": "1"}))(tmp_path)
    out = run(tmp_path)
    data = load_dataset(out / "validated")
    assert data.classes == ["0", "1"]
    assert np.bincount(data.labels).tolist() == [24, 24]


def test_near_duplicates_share_a_split(
    tmp_path: Path, image_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder()
    near_copy(tmp_path)
    out = run(tmp_path)
    assert "1 groups joined with others that have near duplicates" in capsys.readouterr().out
    groups = manifest(out).set_index("file_name")["group"]
    assert groups["g1_1.png"] == groups["g2_3.png"] == "g1+g2"
    assert metrics(out)["duplicates"] == {
        "identical": 0, "near": 1, "across_groups": 1, "contradicting": 0,
    }  # fmt: skip
    assert metrics(out)["leaks"] == {"groups_joined": 1, "left_out": 0, "leaking": 0}


def test_what_leaks_out_of_a_given_split_is_left_out(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    image_folder()
    near_copy(tmp_path)
    column("split", lambda t: split_by_group(t.replace({"group": {"g2": "g5"}})))(tmp_path)
    out = run(tmp_path, split="column")
    lines = {row["file_name"]: (row["kind"], row["reason"]) for row in quarantined(out)}
    assert lines == {f"g2_{i}.png": ("leak", "its like is in test") for i in range(6)}
    assert metrics(out)["leaks"] == {"groups_joined": 0, "left_out": 6, "leaking": 0}
    assert len(manifest(out)) == 42


def test_a_random_split_is_marked_as_leaking(
    tmp_path: Path, image_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder()
    out = run(tmp_path, split="random")
    assert metrics(out)["split_tears_groups"] is True
    assert metrics(out)["leaks"]["leaking"] > 0
    assert "warning: a random split tears groups apart" in capsys.readouterr().out
    assert len(manifest(out)) == 48


def test_a_folder_that_grows_keeps_its_hashed_split(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    image_folder(groups=12)
    changes = {"split": "hash", "seed": 4}
    before = manifest(run(tmp_path, **changes)).set_index("file_name")["split"]
    for i in range(12):
        noise(50 + i).save(tmp_path / "images" / f"new_{i}.png")
        append(f"new_{i}.png")(tmp_path)
        edit("group", f"n{i // 3}", f"new_{i}.png")(tmp_path)
    after = manifest(run(tmp_path, **changes)).set_index("file_name")["split"]
    assert len(after) == len(before) + 12
    assert (after[before.index] == before).all()


def test_the_cache_forgets_images_that_are_gone(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    max_pixels = round(PARAMS["max_megapixels"] * 1e6)
    with closing(Cache(tmp_path / "cache", PARAMS["image_px"], max_pixels)) as cache:
        cache.add({str(i): Look() for i in range(49)})
    out = run(tmp_path)
    with closing(Cache(tmp_path / "cache", PARAMS["image_px"], max_pixels)) as cache:
        assert set(cache.known()) == set(manifest(out)["sha256"])


def test_drift_is_measured_against_the_accepted_data(
    tmp_path: Path, image_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder()
    out = run(tmp_path)
    assert metrics(out)["drift"] == {}
    profile = json.loads((out / "validated" / "profile.json").read_text())
    (tmp_path / "accepted.json").write_text(json.dumps({"data": profile}))
    assert set(metrics(run(tmp_path))["drift"].values()) == {0.0}
    assert "has drifted" not in capsys.readouterr().out
    for name in listed(tmp_path)["file_name"]:
        path = tmp_path / "images" / name
        Image.open(path).resize((60, 60)).save(path)
    found = metrics(run(tmp_path, drift_fail=100.0))["drift"]
    assert found["width"] > 1
    assert found["label"] == 0
    assert "warning: width has drifted: stability index" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_stage_leaves_the_next_run_right(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    out = run(tmp_path)
    files = ("pixels.npy", "manifest.csv", "classes.json", "profile.json")
    expected = {file: (out / "validated" / file).read_bytes() for file in files}
    for last in ("48 images: imagefolder", "@ 100% images", "classes, in", "48 images fulfil"):
        for place in ("out", "cache"):
            shutil.rmtree(tmp_path / place)
        with stage_process(tmp_path) as running:
            assert running.stdout
            while last not in running.stdout.readline():
                assert running.poll() is None
            running.kill()
        if running.returncode == -signal.SIGKILL:
            assert not (out / "metrics").exists()
        run(tmp_path)
        assert {file: (out / "validated" / file).read_bytes() for file in files} == expected
        assert {p.name for p in out.iterdir()} == set(validate.Paths.outputs())

"""Running the validate stage on a folder, and many ways to break one."""

import csv
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from stages import validate
from stages.core.runner import stage
from stages.core.runner.params import load_yaml, parse_section
from stages.core.runner.runtime import Resources
from tests.conftest import ROOT

PARAMS: dict[str, Any] = {
    "classes": None, "symmetries": None, "image_px": 32, "fit": "stretch", "min_source_px": 16,
    "max_megapixels": 0.5,
    "bit_depth": None, "min_contrast": 1.0, "min_per_class": 10, "min_groups_per_class": 3,
    "on_bad_image": "fail", "max_bad_fraction": 0.2, "on_gaps": "refuse", "background": "none",
    "min_background_images": 5, "on_small_group": "refuse",
    "near_duplicate_bits": 10, "on_leak": "move",
    "split": "stratified_group", "folds": 4, "fold": 0, "val_folds": 3,
    "val_split": "representative", "seed": 0,
    "max_share_error": 0.5, "target_domain": None, "labelled_share": 1.0,
    "labelled_by": "image", "labelled_draw": 0, "scarce_images": None,
    "drift_warn": 0.1, "drift_fail": 0.25,
}  # fmt: skip

RESOURCES = load_yaml(ROOT / "params.yaml")["resources"] | {"device": "cpu", "threads": 1}

# What is there even when validation has failed, to show why.
SHOWN = {"docs", "outcomes", "quarantine", "complaints"}

# `g1_1.png` of the fixture's folder is the image that most breakages break.
Breakage = Callable[[Path], None]


def paths(root: Path) -> validate.Paths:
    inputs = {"dir": "images", "expectations": "expectations.yaml", "accepted": "accepted.json"}
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


def metrics(out: Path) -> dict[str, Any]:
    actual: dict[str, Any] = json.loads((out / "metrics").read_text())
    return actual


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


def shard(members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
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
    built = (source + faint).clip(0, 255).astype(np.uint8)
    Image.fromarray(built).save(root / "images" / "g2_1.png")


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

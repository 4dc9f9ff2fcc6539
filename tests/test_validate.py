"""Bad images and bad metadata: one line that names the file and the reason, and nothing written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import validate
from stages.core.data import load_dataset
from stages.core.errors import DataError
from stages.core.runtime import Resources
from tests.conftest import ROOT, MakeFolder

PARAMS = validate.Params(
    classes=["functional", "defective"], modes=["L", "RGB"], image_px=32, min_source_px=16,
    min_per_class=10, folds=4, fold=0, val_folds=3, seed=0,
)  # fmt: skip


def paths(root: Path, images: Path) -> validate.Paths:
    return validate.Paths(
        images=images,
        validated=root / "validated",
        docs=root / "docs",
        metrics=root / "metrics.json",
        plot=root / "classes.csv",
        grid=root / "grid.png",
    )


def run(root: Path, images: Path) -> None:
    validate.run(PARAMS, paths=paths(root, images), resources=Resources(device="cpu", threads=1))


def truncate(folder: Path) -> None:
    file = folder / "g1_1.png"
    file.write_bytes(file.read_bytes()[:-200])


def relabel(folder: Path) -> None:
    edit(folder, "g1_1.png", "label", "broken")


def empty_class(folder: Path) -> None:
    table = pd.read_csv(folder / "metadata.csv")
    table["label"] = "functional"
    table.to_csv(folder / "metadata.csv", index=False)


def edit(folder: Path, name: str, column: str, value: str) -> None:
    table = pd.read_csv(folder / "metadata.csv", dtype=str)
    table.loc[table["file_name"] == name, column] = value
    table.to_csv(folder / "metadata.csv", index=False)


def leave(folder: Path) -> None:
    edit(folder, "g1_1.png", "file_name", "../../etc/passwd")


def absolute(folder: Path) -> None:
    edit(folder, "g1_1.png", "file_name", "/etc/passwd")


def link(folder: Path) -> None:
    (folder / "g1_1.png").unlink()
    (folder / "g1_1.png").symlink_to("/etc/hostname")


def delete(folder: Path) -> None:
    (folder / "g1_1.png").unlink()


def no_image(folder: Path) -> None:
    (folder / "g1_1.png").write_text("not an image")


def copy_image(folder: Path) -> None:
    (folder / "g1_1.png").write_bytes((folder / "g2_1.png").read_bytes())


def twice(folder: Path) -> None:
    edit(folder, "g1_1.png", "file_name", "g2_1.png")


def small(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "g1_1.png")


def cmyk(folder: Path) -> None:
    (folder / "g1_1.png").unlink()
    Image.fromarray(np.zeros((40, 40, 4), np.uint8), "CMYK").save(folder / "g1_1.jpg")
    edit(folder, "g1_1.png", "file_name", "g1_1.jpg")


def no_metadata(folder: Path) -> None:
    (folder / "metadata.csv").unlink()


def no_label_column(folder: Path) -> None:
    table = pd.read_csv(folder / "metadata.csv").drop(columns="label")
    table.to_csv(folder / "metadata.csv", index=False)


def no_rows(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,label\n")


def binary_metadata(folder: Path) -> None:
    (folder / "metadata.csv").write_bytes(bytes(range(256)))


def one_group(folder: Path) -> None:
    table = pd.read_csv(folder / "metadata.csv")
    table["group"] = "g"
    table.to_csv(folder / "metadata.csv", index=False)


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (truncate, ["g1_1.png", "not a whole image", "truncated"]),
        (relabel, ["g1_1.png: label = broken", "functional, defective"]),
        (empty_class, ["defective: images = 0", "at least 10 images"]),
        (leave, ["../../etc/passwd", "not a path inside the folder"]),
        (absolute, ["/etc/passwd", "not a path inside the folder"]),
        (link, ["g1_1.png", "a link that leaves the folder"]),
        (delete, ["g1_1.png", "no such file"]),
        (no_image, ["g1_1.png", "not a readable image"]),
        (copy_image, ["g1_1.png", "g2_1.png", "no two files with the same content"]),
        (twice, ["g2_1.png: file_name", "each file listed once"]),
        (small, ["g1_1.png: width = 8", "at least 16 px"]),
        (cmyk, ["g1_1.jpg: mode = CMYK", "L, RGB"]),
        (no_metadata, ["metadata.csv: no such file", "imagefolder"]),
        (no_label_column, ["metadata.csv: no column 'label'", "file_name, group, domain"]),
        (no_rows, ["metadata.csv: no rows"]),
        (binary_metadata, ["metadata.csv", "not readable as CSV"]),
        (one_group, ["1 groups cannot be split into 4 folds"]),
    ],
)
def test_bad_input(
    tmp_path: Path,
    image_folder: MakeFolder,
    breakage: Callable[[Path], None],
    words: list[str],
) -> None:
    folder = image_folder()
    breakage(folder)
    with pytest.raises(DataError) as caught:
        run(tmp_path, folder)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "metrics.json").exists()


def test_good_input(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder()
    run(tmp_path, folder)
    data = load_dataset(tmp_path / "validated")
    assert data.pixels.shape == (48, 32, 32, 1)
    assert data.classes == ["functional", "defective"]
    by_split = {s: set(data.groups[data.rows(s)]) for s in ("train", "val", "test")}
    assert by_split["train"] | by_split["val"] | by_split["test"] == set(range(8))
    assert not by_split["train"] & by_split["test"]
    assert not by_split["val"] & (by_split["train"] | by_split["test"])
    bright = data.pixels.mean((1, 2, 3)) > 125
    assert (bright == (data.labels == 0)).all()
    assert (tmp_path / "docs" / "index.html").exists()


def test_colour_is_kept(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder()
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(folder / "g1_1.png")
    run(tmp_path, folder)
    data = load_dataset(tmp_path / "validated")
    (row,) = np.flatnonzero(data.files == "g1_1.png")
    assert data.pixels.shape == (48, 32, 32, 3)
    assert data.pixels[row, 5, 5].tolist() == [200, 0, 0]


def test_the_user_sees_one_line(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder()
    truncate(folder)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    words = {"images": folder}
    words |= {n: tmp_path / n for n in ("validated", "docs", "metrics", "plot", "grid")}
    command = [sys.executable, "-m", "stages.validate"]
    for name, path in words.items():
        command += [f"--{name}", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: validate: ")
    assert "g1_1.png" in lines[0]
    left = {p.name for p in tmp_path.iterdir()} - {"images", "docs", "data"}
    assert left == {"params.yaml"}

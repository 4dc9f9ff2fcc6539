"""The front door: every layout, image mode and kind of label comes through."""

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from stages.core.dataset.data import load_dataset
from stages.core.runner.errors import ParamsError
from tests.conftest import MakeFolder
from tests.helpers.front_door import (
    both,
    column,
    edit,
    list_again,
    listed,
    manifest,
    metrics,
    noise,
    quarantined,
    run,
    saved,
    shard,
)

pytestmark = pytest.mark.usefixtures("quick")


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
    actual = {}
    for layout, name in names.items():
        built = tmp_path / layout
        if layout == "classes":
            class_folders(tmp_path, built)
        elif layout == "shards":
            built.mkdir()
            for s in range(3):
                members = {}
                for file, label in table[["file_name", "label"]].to_numpy()[s::3]:
                    members[file] = (folder / file).read_bytes()
                    members[file.replace(".png", ".cls")] = label.encode()
                (built / f"train-{s}.tar").write_bytes(shard(members))
        else:
            shutil.copytree(folder, built)
            (built / "metadata.csv").unlink()
            if layout == "csv":
                table.to_csv(built / name, index=False)
            elif layout == "jsonl":
                table.to_json(built / name, orient="records", lines=True)
            else:
                table.to_parquet(built / name)
        root = tmp_path / f"run {layout}"
        root.mkdir()
        built.rename(root / "images")
        out = run(root, split="random")
        data = load_dataset(out / "validated")
        order = np.argsort([Path(file).name for file in data.files])
        assert sorted(Path(file).name for file in data.files) == sorted(table["file_name"])
        actual[layout] = (data.pixels[order], data.labels[order])
        assert layout in metrics(out)["layout"] or layout == "classes"
    for pixels, labels in actual.values():
        assert np.array_equal(pixels, actual["csv"][0])
        assert np.array_equal(labels, actual["csv"][1])


@pytest.mark.parametrize("metadata_in", ["none", "each", "top"])
def test_split_folders_are_respected(
    tmp_path: Path, image_folder: MakeFolder, metadata_in: str
) -> None:
    image_folder()
    places = {f"g{g}": ("Train", "Train", "Train", "Train", "valid", "valid", "test", "test")[g]
              for g in range(8)}  # fmt: skip
    table = listed(tmp_path)
    split = table["group"].map(places)
    built = tmp_path / "made"
    if metadata_in == "none":
        class_folders(tmp_path, built, places)
    else:
        for place, rows in table.groupby(split):
            (built / place).mkdir(parents=True)
            for name in rows["file_name"]:
                shutil.copy(tmp_path / "images" / name, built / place / name)
            if metadata_in == "each":
                rows.to_csv(built / place / "metadata.csv", index=False)
        if metadata_in == "top":
            names = split + "/" + table["file_name"]
            table.assign(file_name=names).to_csv(built / "metadata.csv", index=False)
    as_images(tmp_path, built)
    out = run(tmp_path)
    rows = manifest(out)
    assert len(rows) == 48
    assert metrics(out)["split_method"] == "column"
    assert "in split folders" in metrics(out)["layout"]
    plain = {"Train": "train", "valid": "val", "test": "test"}
    assert (rows["file_name"].str.split("/").str[0].map(plain) == rows["split"]).all()
    assert quarantined(out) == []


@pytest.mark.parametrize("given", ["folders", "column"])
def test_splits_that_are_given_have_one_fold(
    tmp_path: Path, image_folder: MakeFolder, given: Literal["folders", "column"]
) -> None:
    image_folder()
    if given == "folders":
        places = {f"g{g}": "test" if g < 2 else "train" for g in range(8)}
        class_folders(tmp_path, tmp_path / "made", places)
        as_images(tmp_path, tmp_path / "made")
    else:
        column("split", lambda t: "test")(tmp_path)
    with pytest.raises(ParamsError, match=r"validate\.fold = 1: the test split of .* is given"):
        run(tmp_path, fold=1, split="column" if given == "column" else "stratified_group")


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
        column("group", lambda t: "</td>,;\t\u2028" + t["group"]),
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


def test_classes_that_are_numbers(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    column("label", lambda t: t["label"].map({"functional": "0", "defective": "1"}))(tmp_path)
    out = run(tmp_path)
    data = load_dataset(out / "validated")
    assert data.classes == ["0", "1"]
    assert np.bincount(data.labels).tolist() == [24, 24]


def test_columns_called_as_what_is_measured_are_kept(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    image_folder()
    table = listed(tmp_path)
    list_again(tmp_path, table.assign(width=7, sharpness="much"))
    actual = manifest(run(tmp_path))
    assert (actual["width"] == "40").all()
    assert (actual["given_width"] == "7").all()
    assert (actual["given_sharpness"] == "much").all()

"""The front door: what is fit comes out whole, what is left out has a line."""

import json
import shutil
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import validate
from stages.core.contract import Contract
from stages.core.data import load_dataset
from stages.core.errors import DataError, ParamsError
from stages.core.images import Cache, Look
from stages.core.params import parse_section
from tests.conftest import MakeFolder
from tests.front_door import (
    PARAMS,
    append,
    both,
    column,
    content,
    copied,
    cut,
    edit,
    list_again,
    listed,
    manifest,
    metrics,
    near_copy,
    noise,
    own,
    quarantined,
    run,
    saved,
    shard,
    split_by_group,
    stage_process,
)


@pytest.fixture
def docs() -> bool:
    """For tests that want Data Docs."""
    return True


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data Docs take half of the time."""
    if "docs" not in request.fixturenames or not request.getfixturevalue("docs"):
        monkeypatch.setattr(Contract, "document", lambda _: None)


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
    found = manifest(run(tmp_path))
    assert (found["width"] == "40").all()
    assert (found["given_width"] == "7").all()
    assert (found["given_sharpness"] == "much").all()


def test_near_duplicates_share_a_split(
    tmp_path: Path, image_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder()
    near_copy(tmp_path)
    out = run(tmp_path)
    assert "near duplicates of them: 1" in capsys.readouterr().out
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

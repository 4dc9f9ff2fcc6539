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
from stages.core.dataset.data import HAS_GROUP, load_dataset
from stages.core.intake.backgrounds import divide
from stages.core.intake.images import Cache, Look
from stages.core.release import predict
from stages.core.runner.errors import DataError, ParamsError
from stages.core.runner.params import parse_section
from tests.conftest import MakeFolder
from tests.helpers.front_door import (
    PARAMS,
    append,
    both,
    column,
    content,
    copied,
    cut,
    edit,
    listed,
    manifest,
    metrics,
    near_copy,
    noise,
    own,
    quarantined,
    run,
    saved,
    split_by_group,
    stage_process,
)

pytestmark = pytest.mark.usefixtures("quick")


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
    actual = metrics(out)
    assert (actual["images"], actual["groups"], actual["bad_images"]) == (48, 8, 0)
    assert {s: c["images"] for s, c in actual["splits"].items()} == {
        s: len(data.rows(s)) for s in ("train", "val", "test")
    }
    outcomes = pd.read_csv(out / "outcomes")
    assert outcomes["passed"].all()
    assert len(outcomes) == actual["expectations"]
    rows = manifest(out)
    assert {"bytes", "width", "height", "mode", "sha256", "phash", "sharpness"} <= set(rows)
    assert HAS_GROUP not in rows
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
    actual = load_dataset(out / "validated").classes
    alphabetical = "classes, in alphabetical order: defective, functional"
    if classes == "neither":
        assert actual == sorted(wanted)
        assert alphabetical in capsys.readouterr().out
    else:
        assert actual == wanted
        assert alphabetical not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fold": 4}, "validate.fold = 4: should be less than folds"),
        ({"classes": ["a", "b", "a"]}, "should name each class once"),
        ({"classes": ["a"]}, "validate.classes"),
        ({"image_px": 48}, "validate.image_px = 48"),
        ({"symmetries": "flips"}, "validate.symmetries = 'flips'"),
        ({"fit": "squash"}, "validate.fit = 'squash'"),
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
        edit("label", "odd", "g4_1.png"),
        append("gone.png"),
        append("../out.png"),
    )(tmp_path)
    out = run(tmp_path, on_bad_image="quarantine", classes=["functional", "defective"])
    lines = {row["file_name"]: (row["kind"], row["reason"]) for row in quarantined(out)}
    expected = {
        "g1_1.png": "truncated", "g3_1.png": "an empty file", "g5_3.png": "width = 8",
        "g0_1.png": "contrast = 0.0", "g4_1.png": "label = odd", "gone.png": "no such file",
        "../out.png": "not a path inside", "unlisted.png": "not in metadata.csv",
        "notes.txt": "no image by name or content",
    }  # fmt: skip
    assert {name: word in lines[name][1] for name, word in expected.items()} == dict.fromkeys(
        expected, True
    )
    assert set(lines) == set(expected)
    others = {"unlisted.png", "notes.txt"}
    assert {name for name, (kind, _) in lines.items() if kind == "not used"} == others
    assert {kind for name, (kind, _) in lines.items() if name not in others} == {"bad image"}
    remaining = set(manifest(out)["file_name"])
    there = {p.name for p in folder.iterdir()} - {"metadata.csv"}
    assert remaining | set(lines) == there | {"gone.png", "../out.png"}
    assert not remaining & set(lines)
    assert metrics(out)["bad_images"] == 7
    assert metrics(out)["images"] == len(remaining) == 43


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


def test_near_duplicates_without_groups_form_none_that_figures_are_within(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    image_folder()
    near_copy(tmp_path)
    file = tmp_path / "images" / "metadata.csv"
    pd.read_csv(file).drop(columns="group").to_csv(file, index=False)
    out = run(tmp_path)
    data = load_dataset(out / "validated")
    group = dict(zip(data.files, data.groups, strict=True))
    assert group["g1_1.png"] == group["g2_1.png"]
    assert len(set(data.groups)) == 47
    assert (data.groups < 0).all()


def test_what_leaks_out_of_a_given_split_is_left_out(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    image_folder()
    near_copy(tmp_path)
    column("split", lambda t: split_by_group(t.replace({"group": {"g2": "g5"}})))(tmp_path)
    out = run(tmp_path, split="column")
    lines = {row["file_name"]: (row["kind"], row["reason"]) for row in quarantined(out)}
    assert lines == {
        f"g2_{i}.png": ("leak", "a near duplicate, or its group, is in the test split")
        for i in range(6)
    }
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


def test_a_target_domains_labels_are_not_kept(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder(groups=24)
    poly = {f"g{k}" for k in range(0, 24, 2)}
    column("domain", lambda t: t["group"].map(lambda g: "poly" if g in poly else "mono"))(tmp_path)
    out = run(tmp_path, target_domain="poly")
    data, rows = load_dataset(out / "validated"), manifest(out)
    unlabelled = rows["split"] == "unlabelled"
    assert set(rows.loc[unlabelled, "label"]) == {""}
    assert set(rows.loc[~unlabelled, "label"]) == {"functional", "defective"}
    assert (data.labels[data.rows("unlabelled")] == -1).all()
    assert (data.labels[data.rows("test")] >= 0).all()
    assert set(data.domains[data.rows("test")]) == {"poly"}
    assert set(data.domains[data.rows("train")]) == {"mono"}
    actual = metrics(out)
    assert actual["unlabelled"] == unlabelled.sum() > 0
    assert actual["images"] == len(rows)
    assert sum(s["images"] for s in actual["splits"].values()) == (~unlabelled).sum()
    left_out = {row["file_name"]: (row["kind"], row["reason"]) for row in quarantined(out)}
    everything = {p.name for p in (tmp_path / "images").glob("*.png")}
    assert set(left_out) == everything - set(rows["file_name"]) != set()
    assert set(left_out.values()) == {("not used", "of the domain mono, which is not measured")}


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
    actual = metrics(run(tmp_path, drift_fail=100.0))["drift"]
    assert actual["width"] > 1
    assert actual["label"] == 0
    assert "warning: width has drifted: stability index" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_stage_leaves_the_next_run_right(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    out = run(tmp_path)
    files = ("pixels.npy", "manifest.csv", "classes.json", "profile.json", "views.json")
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


def divided(out: Path, images: Path) -> tuple[Any, Any]:
    """What validation has made of a folder's images, and what it should have, by the manifest."""
    rows, data = manifest(out), load_dataset(out / "validated")
    raw = np.stack([
        predict.read((images / name).read_bytes(), image_px=32, max_pixels=10**6).pixels
        for name in rows["file_name"]
    ])  # fmt: skip
    expected = np.empty_like(raw)
    group = rows["file_name"].str.split("_").str[0]
    for name in set(group):
        chosen = (group == name).to_numpy()
        ground = np.floor(np.median(raw[chosen], axis=0) + 0.5).clip(16)
        expected[chosen] = np.floor(raw[chosen].astype(float) * 128 / ground + 0.5).clip(0, 255)
    assert data.raw is not None
    assert np.array_equal(data.raw, raw[data.rows("test")])
    images_given, grounds = data.model_inputs(data.rows("test")[::-1])
    assert np.array_equal(images_given, raw[data.rows("test")[::-1]])
    quotients = np.stack([divide(*both) for both in zip(images_given, grounds, strict=True)])
    assert np.array_equal(quotients, expected[data.rows("test")[::-1]])
    return data.pixels, expected


def test_images_are_divided_by_their_groups_background(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    images = image_folder()
    assert {p.name for p in (run(tmp_path) / "validated").iterdir()} == {
        "pixels.npy", "manifest.csv", "classes.json", "rules.json", "views.json",
        "profile.json",
    }  # fmt: skip
    profile = (tmp_path / "out" / "validated" / "profile.json").read_text()
    out = run(tmp_path, background="group")
    actual, expected = divided(out, images)
    assert np.array_equal(actual, expected)
    assert {p.name for p in (out / "validated").iterdir()} == {
        "pixels.npy", "manifest.csv", "classes.json", "rules.json", "views.json",
        "profile.json", "raw.npy", "backgrounds.npy",
    }  # fmt: skip
    # Drift is the camera's.
    assert (out / "validated" / "profile.json").read_text() == profile
    rules = load_dataset(out / "validated").rules
    assert (rules.background, rules.background_images) == ("group", 5)
    assert metrics(out)["background"] == {"kind": "group", "min_images": 5, "groups": 8, "kept": 0}
    stacked = load_dataset(run(tmp_path, background="both") / "validated")
    assert stacked.channels == 3
    assert np.array_equal(stacked.pixels[..., 1:2], expected)


def test_a_joined_group_keeps_its_own_background(tmp_path: Path, image_folder: MakeFolder) -> None:
    """Of the groups g1 and g2, which share a file: found although its two hashes differ."""
    images = image_folder()
    shutil.copy(images / "g1_1.png", images / "g2_1.png")
    column("background", lambda _: "the user's own")(tmp_path)
    assert set(manifest(run(tmp_path))["background"]) == {"the user's own"}
    out = run(tmp_path, background="group")
    rows = manifest(out).set_index("file_name")
    assert rows.loc["g1_1.png", "phash"] != rows.loc["g2_1.png", "phash"]
    assert rows.loc["g1_1.png", "group"] == rows.loc["g2_5.png", "group"] == "g1+g2"
    assert metrics(out)["duplicates"]["identical"] == 1
    actual, expected = divided(out, images)
    assert np.array_equal(actual, expected)
    assert set(rows["given_background"]) == {"the user's own"}
    assert rows.loc["g1_1.png", "background"] != rows.loc["g2_1.png", "background"]


def test_small_groups_keep_their_background(
    tmp_path: Path, image_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_folder()
    edit("group", "", "g1_1.png")(tmp_path)
    edit("group", "other", "g2_2.png")(tmp_path)
    changes = {"background": "group", "on_gaps": "allow", "split": "hash"}
    with pytest.raises(DataError, match=r"g1_1.png: images = 1; other: images = 1 \(expected at"):
        run(tmp_path, **changes)
    out = run(tmp_path, **changes, on_small_group="keep")
    assert (
        "groups with fewer than 5 images, images without a group among them: 2; their images (2) "
        "are not divided" in capsys.readouterr().out
    )
    data, rows = load_dataset(out / "validated"), manifest(out)
    for name in ("g1_1.png", "g2_2.png"):
        (row,) = np.flatnonzero(rows["file_name"] == name)
        content = (images / name).read_bytes()
        raw = predict.read(content, image_px=32, max_pixels=10**6).pixels
        assert np.array_equal(data.pixels[row], raw)
        assert rows["background"][row] == "0"
    assert metrics(out)["background"]["kept"] == 2
    with pytest.raises(DataError, match="expected at least 7 images of each group"):
        run(tmp_path, **changes, on_small_group="keep", min_background_images=7)

"""Unlabelled images teach what is not measured, and change nothing for those with labels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.core.dataset.data import load_dataset
from stages.core.intake.splits import Method
from stages.core.runner.errors import DataError
from tests.conftest import MakeFolder
from tests.helpers.front_door import (
    column,
    edit,
    list_again,
    listed,
    manifest,
    metrics,
    noise,
    own,
    quarantined,
    run,
    split_by_group,
)

pytestmark = pytest.mark.usefixtures("quick")

METHODS = ("stratified_group", "hash", "column", "random")
LEAK = "a near duplicate, or its group, is in the {} split"


def add(root: Path, name: str, image: Image.Image, group: str, **more: str) -> None:
    """One more image without a label."""
    image.save(root / "images" / name)
    row = pd.DataFrame([{"file_name": name, "label": "", "group": group, "domain": "mono", **more}])
    list_again(root, pd.concat([listed(root), row]).fillna(""))


def nearly(root: Path, name: str, seed: int = 5) -> Image.Image:
    """A near duplicate of an image."""
    pixels = np.asarray(Image.open(root / "images" / name)).astype(int)
    faint = np.random.default_rng(seed).integers(-1, 2, pixels.shape)
    return Image.fromarray((pixels + faint).clip(0, 255).astype(np.uint8))


def labelled(out: Path) -> pd.DataFrame:
    rows = manifest(out)
    rows = rows[rows["split"] != "unlabelled"].set_index("file_name")
    return rows[["label", "group", "split"]]


def left_out(out: Path) -> dict[str, tuple[str, str]]:
    return {row["file_name"]: (row["kind"], row["reason"]) for row in quarantined(out)}


@pytest.fixture
def ready(tmp_path: Path, image_folder: MakeFolder) -> Callable[[Method], dict[str, str]]:
    """Makes a folder, splits it, and gives for each split one of its images."""

    def make(method: Method) -> dict[str, str]:
        image_folder(groups=16)
        column("split", split_by_group)(tmp_path)
        rows = manifest(run(tmp_path, split=method))
        return {name: str(rows["file_name"][rows["split"] == name].iloc[0]) for name in
                ("train", "val", "test")}  # fmt: skip

    return make


@pytest.mark.parametrize("method", METHODS)
def test_labelled_images_stay_where_they_are(
    tmp_path: Path, ready: Callable[[Method], dict[str, str]], method: Method
) -> None:
    """Though unlabelled ones are in their groups, like them, or like two of them at once."""
    places = ready(method)
    before = labelled(run(tmp_path, split=method))
    for i in range(30):
        add(tmp_path, f"u{i}.png", noise(100 + i), f"g{i}")
    for split, name in places.items():
        add(tmp_path, f"like {split}.png", nearly(tmp_path, name), f"of {split}")
    between = Image.open(tmp_path / "images" / places["train"])
    add(tmp_path, "copy.png", between, "copies")
    add(tmp_path, "like test again.png", nearly(tmp_path, places["test"], 6), "copies")
    out = run(tmp_path, split=method)
    assert labelled(out).equals(before)
    assert metrics(out)["unlabelled"] > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_what_is_measured_teaches_nothing(
    tmp_path: Path, ready: Callable[[Method], dict[str, str]], method: Method, split: str
) -> None:
    places = ready(method)
    groups = listed(tmp_path).set_index("file_name")["group"]
    same = nearly(tmp_path, places[split])
    add(tmp_path, "same group.png", noise(1), groups[places[split]])
    add(tmp_path, "copy.png", Image.open(tmp_path / "images" / places[split]), "new 1")
    add(tmp_path, "near.png", same, "new 2")
    add(tmp_path, "with near.png", noise(2), "new 2")
    add(tmp_path, "alone.png", noise(3), "new 3")
    out = run(tmp_path, split=method)
    gone = left_out(out)
    assert set(gone) == {"same group.png", "copy.png", "near.png", "with near.png"}
    kinds = {kind for kind, _ in gone.values()}
    assert kinds == {"leak"}
    # A random split may have the group in both.
    assert {reason for _, reason in gone.values()} <= {LEAK.format("val"), LEAK.format("test")}
    rows = manifest(out).set_index("file_name")
    assert rows.loc["alone.png", "split"] == "unlabelled"
    assert metrics(out)["leaks"]["left_out"] == 4
    assert metrics(out)["unlabelled"] == 1


@pytest.mark.parametrize("method", METHODS[:3])
def test_what_trains_may_teach_without_labels(
    tmp_path: Path, ready: Callable[[Method], dict[str, str]], method: Method
) -> None:
    places = ready(method)
    groups = listed(tmp_path).set_index("file_name")["group"]
    add(tmp_path, "same group.png", noise(1), groups[places["train"]])
    add(tmp_path, "near.png", nearly(tmp_path, places["train"]), "new")
    out = run(tmp_path, split=method, on_leak="refuse")
    assert left_out(out) == {}
    rows = manifest(out).set_index("file_name")
    assert set(rows.loc[["same group.png", "near.png"], "split"]) == {"unlabelled"}
    assert metrics(out)["duplicates"]["contradicting"] == 0


def test_a_chain_of_unlabelled_images_leaks(tmp_path: Path, image_folder: MakeFolder) -> None:
    """One like a test image, one of its group, one like that; but none beyond a training image."""
    image_folder()
    column("split", split_by_group)(tmp_path)
    bridge = noise(9)
    add(tmp_path, "like test.png", nearly(tmp_path, "g0_1.png"), "new 1")
    add(tmp_path, "in between.png", bridge, "new 1")
    bridge.save(tmp_path / "images" / "bridge.png")
    add(tmp_path, "like it.png", nearly(tmp_path, "bridge.png"), "new 2")
    add(tmp_path, "like train.png", nearly(tmp_path, "g6_1.png"), "new 3")
    out = run(tmp_path, split="column")
    gone = {name for name, (kind, _) in left_out(out).items() if kind == "leak"}
    assert gone == {"like test.png", "in between.png", "like it.png"}


def test_likeness_is_passed_on_by_what_is_left_out(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    """A training image of a group that is tested, too: it goes, and so does what is like it."""
    image_folder()
    column("split", split_by_group)(tmp_path)
    edit("split", "train", "g0_1.png")(tmp_path)
    add(tmp_path, "like it.png", nearly(tmp_path, "g0_1.png"), "new")
    out = run(tmp_path, split="column")
    assert left_out(out) == {name: ("leak", LEAK.format("test")) for name in
                             ("g0_1.png", "like it.png")}  # fmt: skip
    assert metrics(out)["leaks"]["left_out"] == 2


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_the_user_has_put_to_measure_does_not_teach(
    tmp_path: Path, image_folder: MakeFolder, split: str
) -> None:
    image_folder()
    column("split", split_by_group)(tmp_path)
    for name, place in (("a", split), ("b", "train"), ("c", ""), ("d", "unlabeled")):
        add(tmp_path, f"{name}.png", noise(ord(name)), name, split=place)
    out = run(tmp_path, split="column")
    why = f"it has no label, and the {split} split is measured by labels"
    assert left_out(out) == {"a.png": ("not used", why)}
    rows = manifest(out).set_index("file_name")["split"]
    assert set(rows[["b.png", "c.png", "d.png"]]) == {"unlabelled"}
    # The user's splits do not count; nothing says then that it is to measure.
    assert left_out(run(tmp_path)) == {}


def test_what_counts_counts_labelled_images(tmp_path: Path, image_folder: MakeFolder) -> None:
    """Classes, contradictions, drift of the labels, and how large the test split is."""
    image_folder(groups=12)
    before = run(tmp_path, split="hash", seed=5, max_share_error=0.05)
    profile = json.loads((before / "validated" / "profile.json").read_text())
    (tmp_path / "accepted.json").write_text(json.dumps({"data": profile}))
    for i in range(100):
        add(tmp_path, f"u{i}.png", noise(100 + i), f"new {i}")
    add(tmp_path, "twin.png", Image.open(tmp_path / "images" / "g1_1.png"), "new")
    changes: dict[str, Any] = {"split": "hash", "seed": 5, "drift_fail": 100.0}
    out = run(tmp_path, max_share_error=0.05, **changes)
    after = json.loads((out / "validated" / "profile.json").read_text())
    assert after["label"] == profile["label"] == {"defective": 0.5, "functional": 0.5}
    assert after["images"] > 160
    assert metrics(out)["drift"]["label"] == 0
    assert metrics(out)["drift"]["mean"] > 0
    assert metrics(out)["duplicates"]["identical"] == 1
    assert metrics(out)["duplicates"]["contradicting"] == 0
    with pytest.raises(DataError, match="defective: images = 36; functional: images = 36"):
        run(tmp_path, min_per_class=37, **changes)


def test_the_users_expectations_see_them(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    edit("label", "")(tmp_path)
    own({"type": "expect_column_values_to_be_in_set", "column": "label",
         "value_set": ["functional", "defective"], "expected": "a label"})(tmp_path)  # fmt: skip
    with pytest.raises(DataError, match=r"g1_1\.png: label = .*expected a label"):
        run(tmp_path)


@pytest.mark.parametrize("bare", ["poly", "mono", "third"])
def test_a_target_domain_goes_with_them(
    tmp_path: Path, image_folder: MakeFolder, bare: str
) -> None:
    image_folder(groups=24)
    poly = {f"g{k}" for k in range(0, 24, 2)}
    column("domain", lambda t: t["group"].map(lambda g: "poly" if g in poly else "mono"))(tmp_path)
    before = manifest(run(tmp_path, target_domain="poly"))
    test = before[before["split"] == "test"].iloc[0]
    add(tmp_path, "alone.png", noise(1), "new", domain=bare)
    add(tmp_path, "leaks.png", noise(2), test["group"], domain=bare)
    out = run(tmp_path, target_domain="poly")
    rows = manifest(out)
    assert rows["split"].value_counts()["unlabelled"] == metrics(out)["unlabelled"]
    assert metrics(out)["unlabelled"] == (before["split"] == "unlabelled").sum() + 1
    assert left_out(out)["leaks.png"] == ("leak", LEAK.format("test"))
    data = load_dataset(out / "validated")
    assert (data.labels[data.rows("unlabelled")] == -1).all()
    assert "alone.png" in data.files[data.distillation_rows]
    assert set(data.domains[data.rows("train")]) == {"mono"}


def test_a_target_domain_needs_labels_to_be_measured(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    image_folder()
    add(tmp_path, "u.png", noise(1), "new", domain="poly")
    with pytest.raises(DataError, match=r"target_domain = 'poly': found the domains 'mono'"):
        run(tmp_path, target_domain="poly")


@pytest.mark.parametrize("by", ["group", "image"])
@pytest.mark.parametrize("method", METHODS)
def test_hidden_labels(
    tmp_path: Path, ready: Callable[[Method], dict[str, str]], method: Method, by: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """They are gone from what trains, and nothing else changes."""
    ready(method)
    changes: dict[str, Any] = {"split": method, "min_per_class": 40}
    before = manifest(run(tmp_path, **changes)).set_index("file_name")
    out = run(tmp_path, **changes, labelled_share=0.25, labelled_by=by, labelled_draw=1)
    after = manifest(out).set_index("file_name")
    hidden = after["split"] == "unlabelled"
    assert hidden.any()
    assert f"labels hidden on purpose: {hidden.sum()} of" in capsys.readouterr().out
    assert set(before.loc[hidden, "split"]) == {"train"}
    assert set(after.loc[hidden, "label"]) == {""}
    assert after[~hidden].equals(before[~hidden])
    assert after.drop(columns=["split", "label"]).equals(before.drop(columns=["split", "label"]))
    train = after[after["split"] == "train"]
    assert set(train["label"]) == {"functional", "defective"}
    if by == "group":
        assert not set(train["group"]) & set(after.loc[hidden, "group"])
    assert metrics(out)["unlabelled"] == hidden.sum()
    assert metrics(out)["splits"]["train"]["images"] == len(train)
    data = load_dataset(out / "validated")
    assert (data.labels[data.rows("unlabelled")] == -1).all()


def test_hidden_labels_with_unlabelled_images_and_a_target_domain(
    tmp_path: Path, image_folder: MakeFolder
) -> None:
    image_folder(groups=24)
    poly = {f"g{k}" for k in range(0, 24, 2)}
    column("domain", lambda t: t["group"].map(lambda g: "poly" if g in poly else "mono"))(tmp_path)
    add(tmp_path, "alone.png", noise(1), "new")
    before = metrics(run(tmp_path, target_domain="poly"))
    after = metrics(run(tmp_path, target_domain="poly", labelled_share=0.5))
    trained, remaining = (each["splits"]["train"]["images"] for each in (before, after))
    assert remaining == trained / 2
    assert after["unlabelled"] == before["unlabelled"] + remaining
    assert after["images"] == before["images"]


def test_the_draw_of_all_labels_is_none(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    files = ("pixels.npy", "manifest.csv", "classes.json", "profile.json")
    contents = []
    for draw, by in ((0, "image"), (3, "group")):
        out = run(tmp_path, labelled_share=1.0, labelled_draw=draw, labelled_by=by)
        contents.append([(out / "validated" / file).read_bytes() for file in files])
    assert contents[0] == contents[1]


def test_the_rarest_class_can_be_made_scarce(
    tmp_path: Path, image_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only in training, and never without a trace."""
    image_folder(groups=24)
    before = manifest(run(tmp_path)).set_index("file_name")
    few, more = (
        manifest(run(tmp_path, scarce_images=n, labelled_draw=3)).set_index("file_name")
        for n in (3, 7)
    )
    counts = before[before["split"] == "train"]["label"].value_counts()
    rarest = counts.sort_index().idxmin()
    for after, count in ((few, 3), (more, 7)):
        left_out = before.index.difference(after.index)
        assert len(left_out) == counts[rarest] - count
        assert set(before.loc[left_out, "split"]) == {"train"}
        assert set(before.loc[left_out, "label"]) == {rarest}
        assert after.equals(before.loc[after.index])
    assert set(few.index) < set(more.index)
    said = f"training images left out on purpose: {counts[rarest] - 3} of the rarest class"
    assert said in capsys.readouterr().out

"""Which symmetries training shows: from the params, the folder or the default, to every view."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stages import augment, export, ingest, teacher
from stages.core.dataset.data import load_dataset
from stages.core.dataset.resize import resize
from stages.core.dataset.symmetries import Symmetries
from stages.core.dataset.views import Views
from stages.core.gan import translate
from stages.core.nets.files import save_net
from stages.core.nets.net import build
from stages.core.nets.weights import packaged
from stages.core.runner.params import load_section
from tests.conftest import RESOURCES, ROOT, MakeFolder
from tests.corpus.folders import classes, elongated, rows, shard
from tests.helpers.classroom import LITE, filled, validated
from tests.helpers.front_door import metrics, run
from tests.helpers.shapes import arrows, as_folder, digits
from tests.helpers.teaching import params, paths_of

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("by_params", "by_folder", "expected"),
    [
        (None, None, "mirror"), (None, "all\n", "all"), (None, "\ufeffrotations\r\n", "rotations"),
        ("none", "all", "none"), ("all", None, "all"),
    ],
)  # fmt: skip
def test_who_says_which(
    tmp_path: Path,
    image_folder: MakeFolder,
    capsys: pytest.CaptureFixture[str],
    by_params: str | None,
    by_folder: str | None,
    expected: str,
) -> None:
    folder = image_folder()
    if by_folder:
        (folder / "symmetries.txt").write_text(by_folder, encoding="utf-8")
    out = run(tmp_path, symmetries=by_params)
    assert load_dataset(out / "validated").symmetries == expected
    assert metrics(out)["symmetries"] == expected
    assert metrics(out)["other_files"] == 0
    is_default = by_params is None and by_folder is None
    assert ("symmetries: mirror (" in capsys.readouterr().out) == is_default


LAYOUTS = {"class folders": classes("a", "b"), "imagefolder": rows(), "webdataset": shard(str)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_may_have_the_file(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path / "images")
    (tmp_path / "images" / "symmetries.txt").write_text("none")
    out = run(tmp_path)
    assert load_dataset(out / "validated").symmetries == "none"
    assert metrics(out)["layout"].startswith(layout)
    assert metrics(out)["other_files"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeff\n CC BY 4.0, by A \r\nmore\n", "CC BY 4.0, by A"),
        ("", None),
        ("x" * 999, "x" * 300),
    ],
)
def test_a_licence_comes_along(
    tmp_path: Path, image_folder: MakeFolder, text: str, expected: str | None
) -> None:
    (image_folder() / "licence.txt").write_text(text, encoding="utf-8")
    out = run(tmp_path)
    assert metrics(out).get("licence") == expected
    assert metrics(out)["other_files"] == 0


def test_look_alikes_give_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_folder(tmp_path / "images", digits(6, 8, 9, count=40), ["6", "8", "9"])
    by_choice = {}
    for choice in ("none", "mirror", "rotations", "all"):
        out = run(tmp_path, symmetries=choice, near_duplicate_bits=0)
        by_choice[choice] = metrics(out)["look_alikes"]
        lines = capsys.readouterr().out.splitlines()
        warnings = [line for line in lines if "training shows these classes" in line]
        assert len(warnings) == bool(by_choice[choice])
    assert by_choice == {
        "none": {}, "mirror": {}, "rotations": {"6 and 9": "a half turn"},
        "all": {"6 and 9": "a half turn"},
    }  # fmt: skip
    assert warnings == [
        "warning: with symmetries = all, training shows these classes as each other: 6 and 9 (a "
        "half turn); set validate.symmetries to none or mirror, unless something else tells them "
        "apart"
    ]


def test_the_default_warns_of_left_and_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_folder(tmp_path / "images", arrows(0, 2, 1), ["right", "left", "up"])
    as_folder(tmp_path / "images", arrows(3, count=5), ["unlabelled"])
    out = run(tmp_path)
    assert metrics(out)["look_alikes"] == {"left and right": "mirrored left to right"}
    assert "set validate.symmetries to none or rotations, unless" in capsys.readouterr().out


def test_6_and_9_are_told_apart_where_symmetries_let_them() -> None:
    """A small classifier of views, as students learn from: turns cost it what 6 and 9 differ in."""
    pixels, labels = digits(6, 9)
    train = np.arange(len(labels)) % 2 == 0

    def accuracy(symmetries: Symmetries) -> float:
        views = Views(pixels[train], seed=1, jitter=0.2, symmetries=symmetries)
        rows = np.arange(train.sum())
        seen = [
            resize(views.batch(rows, view), 8).numpy().reshape(len(rows), -1) for view in range(8)
        ]
        x = np.concatenate(seen) / 255
        model = LogisticRegression(max_iter=1000).fit(x, np.tile(labels[train], 8))
        plain = Views(pixels[~train], 0, 0, "none").plain(np.arange((~train).sum()))
        return float(
            model.score(resize(plain, 8).numpy().reshape(len(plain), -1) / 255, labels[~train])
        )

    without, mirrored, turned = (accuracy(choice) for choice in ("none", "mirror", "all"))
    assert without > 0.97
    assert turned < without - 0.1
    assert mirrored > turned


def test_elongated_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way to fit them, written where the release's script and its users look."""
    elongated(tmp_path / "images")
    packed = {}
    for fit in ("stretch", "pad", "crop"):
        out = run(tmp_path, fit=fit)
        data = load_dataset(out / "validated")
        rules = json.loads((out / "validated" / "rules.json").read_text())
        assert data.rules.fit == rules["fit"] == metrics(out)["fit"] == fit
        packed[fit] = np.array(data.pixels)
        told = "not square, and stretched to squares: 24 images, the longest 3.0 : 1"
        assert (told in capsys.readouterr().out) == (fit == "stretch")
    assert not np.array_equal(packed["stretch"], packed["pad"])
    assert not np.array_equal(packed["stretch"], packed["crop"])


class Captured(Exception):
    """What a stage was about to use."""


def captured(*arguments: Any, **named: Any) -> None:
    raise Captured(arguments, named)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Validated images with symmetries = mirror and fit = pad."""
    return validated(tmp_path / "validated")


def test_the_teacher_shows_the_datas_symmetries(tmp_path: Path, data: Path) -> None:
    paths = paths_of(tmp_path / "teacher", data)
    trainer = teacher.TeacherTrainer(params(), paths, load_dataset(data), RESOURCES)
    assert trainer.views.symmetries == "mirror"


def test_the_gan_shows_the_datas_symmetries(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate, "RealImages", captured)
    section = load_section(ROOT / "params.yaml", "augment", augment.Params)
    images = load_dataset(data)
    task = augment.find_task(section, images)
    with pytest.raises(Captured) as caught:
        augment.find_makers(section, images, task, torch.device("cpu"), tmp_path)
    assert caught.value.args[0][3] == "mirror"


def test_the_exported_file_says_how_images_were_fitted(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build(LITE, packaged(LITE), out_indices=[0], data=load_dataset(data))
    save_net(tmp_path / "student", net)
    monkeypatch.setattr(export, "export", captured)
    section = load_section(ROOT / "params.yaml", "export", export.Params)
    inputs = dict.fromkeys(("refined", "targets"), tmp_path / "student") | {"validated": data}
    paths = filled(export.Paths, tmp_path / "export", **inputs)
    with pytest.raises(Captured) as caught:
        export.run(section, paths=paths, resources=RESOURCES)
    assert caught.value.args[1]["metadata"]["fit"] == "pad"


def test_the_built_in_cells_look_alike_however_they_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ingest.Params(classes="defect", defective_above=0.5, max_cells=420)
    places = {name: tmp_path / name for name in ingest.Paths.outputs()}
    paths = ingest.Paths(modules=ROOT / "data" / "elpv_modules.csv", **places)
    ingest.run(how, paths=paths, resources=RESOURCES)
    out = run(tmp_path, min_per_class=2, min_groups_per_class=1)
    assert metrics(out)["symmetries"] == "all"
    assert metrics(out)["look_alikes"] == {}
    assert "warning" not in capsys.readouterr().out

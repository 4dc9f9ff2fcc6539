"""Whether synthetic images help: two ways of learning that differ in these alone."""

import dataclasses
import json
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from stages import refine
from stages.core.dataset.data import Rows
from stages.core.dataset.views import Views
from stages.core.nets.files import load_net
from stages.core.nets.inference import logits_of
from stages.core.nets.net import Net, build
from stages.core.results import metrics, predictions
from stages.core.results.schema.base import Gain
from stages.core.training.student import Lesson
from stages.core.training.supplement import Supplement, save_supplement, seen
from tests.conftest import RECIPE, RESOURCES, RowsFitted
from tests.helpers.classroom import Classroom, filled

pytestmark = pytest.mark.usefixtures("one_thread")

REFINE = refine.Params.model_validate(
    {
        "added_share": 0.25, "added_alpha": 0.5, "temperature": 2.0, "alpha": 0.5,
        "frozen_groups": 2, "recipe": RECIPE, "seeds": 2, "seed": 5,
    }
)  # fmt: skip


def supplement(classroom: Classroom, grey: int, count: int) -> tuple[Any, Supplement]:
    """Images of one grey, of the first class, in two views."""
    pixels = np.full((count, 16, 16, 1), grey, np.uint8)
    views = seen(pixels, classroom.data, 0, 0.1)
    logits = np.zeros((2, count, 2), np.float32)
    return pixels, Supplement(views, np.zeros(count, np.int64), logits)


def refine_paths(classroom: Classroom, name: str, *, count: int = 2) -> refine.Paths:
    """Paths of a refinement with two black images as synthetic ones, two white ones as real."""
    augmented = classroom.root / f"augmented {name}"
    for kind, grey in {"synthetic": 0, "real": 255}.items():
        save_supplement(augmented / kind, *supplement(classroom, grey, count))
    paths: refine.Paths = filled(
        refine.Paths, classroom.root / name, validated=classroom.validated,
        targets=classroom.targets, student=classroom.distil().paths.student, augmented=augmented,
    )  # fmt: skip
    return paths


@pytest.mark.parametrize(
    ("lows", "accepted"),
    [
        ((0.001, 0.002), True),
        ((0.001, -0.001), False),
        ((-0.001, 0.002), False),
        ((0.001, None), False),
    ],
)
def test_synthetic_images_must_be_shown_to_help(
    lows: tuple[float, float | None],
    accepted: bool,
    classroom: Classroom,
    rows_fitted: RowsFitted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Over real images alone and over no refinement, each clear of zero; a gain is not enough."""
    paths = refine_paths(classroom, f"refine {lows}")
    rows_fitted()
    real = metrics.mean_paired_gain
    gains = [Gain(gain=0.01, low=low, high=None if low is None else 0.02) for low in lows]

    def on_validation(*arrays: Any) -> Gain:
        return gains.pop(0) if gains else real(*arrays)

    monkeypatch.setattr(metrics, "mean_paired_gain", on_validation)
    refine.run(REFINE, paths=paths, resources=RESOURCES)
    figures = json.loads(paths.metrics.read_text())
    assert figures["accepted"] is accepted
    assert figures["winner"] == ("synthetic" if accepted else "distilled")
    keys = ("val_gain_over_real", "val_gain_over_distilled")
    assert tuple(figures[key]["low"] for key in keys) == lows
    files = [
        {file.name: file.read_bytes() for file in folder.iterdir()}
        for folder in (paths.refined, paths.student)
    ]
    assert files[0].keys() == files[1].keys()
    if not accepted:
        assert files[0] == files[1]
    assert ("not shown to help" in capsys.readouterr().out) is not accepted


def test_refinement_learns_from_what_the_student_did(
    classroom: Classroom, rows_fitted: RowsFitted
) -> None:
    root, data = classroom.root, classroom.data
    paths = refine_paths(classroom, "refine")
    refine.run(REFINE, paths=paths, resources=RESOURCES)
    figures = json.loads(paths.metrics.read_text())
    assert np.isfinite(figures["real"]["nll"])
    distilled, images = load_net(paths.student), Views(data.pixels, 0, 0, "all").plain
    on_val, on_test = (
        metrics.ranking(logits_of(distilled, images, rows), data.labels[rows], data.groups[rows])
        for rows in (data.rows("val"), data.rows("test"))
    )
    assert figures["val_auroc"]["distilled"] == pytest.approx(on_val.auroc)
    within = figures["val_auroc_within_groups"]["distilled"]
    assert within == pytest.approx(on_val.auroc_within_groups)
    assert figures["distilled"]["auroc"] == pytest.approx(on_test.auroc)
    within = figures["distilled"]["auroc_within_groups"]
    assert within == pytest.approx(on_test.auroc_within_groups)
    assert "within_groups" in figures["gain_over_real"]
    table = pd.read_csv(paths.predictions)
    assert table["file_name"].tolist() == data.files[data.rows("test")].tolist()
    real = predictions.logits(table, "real")
    assert metrics.auroc(real, table["label"].to_numpy()) == pytest.approx(figures["real"]["auroc"])
    assert predictions.logits(table, "synthetic").shape == real.shape

    fitted = rows_fitted()
    again = {name: root / f"refine again {name}" for name in refine.Paths.outputs()}
    refine.run(REFINE, paths=dataclasses.replace(paths, **again), resources=RESOURCES)
    # Two ways, two seeds each.
    assert len(fitted) == 4
    for rows in fitted:
        assert np.array_equal(rows, data.distillation_rows)
    assert (data.labels[data.distillation_rows] < 0).any()


def test_both_ways_differ_in_what_is_added_alone(classroom: Classroom) -> None:
    """With the real images in the synthetic ones' place, both ways end with the same student."""
    paths = refine_paths(classroom, "refine alike")
    twin = paths.augmented / "synthetic"
    for file in (paths.augmented / "real").iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    refine.run(REFINE, paths=paths, resources=RESOURCES)
    table = pd.read_csv(paths.predictions)
    for seed in ("", " 1"):
        real, synthetic = (predictions.logits(table, f"{k}{seed}") for k in refine.ADDED)
        assert np.array_equal(real, synthetic)
    figures = json.loads(paths.metrics.read_text())
    assert figures["gain_over_real"]["gain"] == 0
    assert figures["seeds"] == 2
    assert not np.array_equal(
        predictions.logits(table, "real"), predictions.logits(table, "real 1")
    )


def test_added_images_do_not_move_the_statistics(classroom: Classroom) -> None:
    """BatchNorm of a student from scratch learns from the real images alone."""
    _, added = supplement(classroom, 255, 4)
    lesson = Lesson(method="kd", standardize_logits=False, temperature=1.0, alpha=0.5)

    def statistics(share: float | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = build("lcnet_050", None, out_indices=[0], data=classroom.data).train()

        def real(net: Net, rows: Rows, _: int) -> torch.Tensor:
            images = torch.from_numpy(classroom.data.pixels[rows])
            return cast(torch.Tensor, net(images)).square().mean()

        loss = real if share is None else refine.with_supplement(real, added, lesson, share, 0)
        torch.autograd.backward(loss(net, np.arange(8), 0))
        return {name: x for name, x in net.state_dict().items() if "running" in name}

    alone, with_added = statistics(None), statistics(0.5)
    assert alone
    assert all(torch.equal(alone[name], with_added[name]) for name in alone)


def test_without_synthetic_images_the_student_goes_through(classroom: Classroom) -> None:
    paths = refine_paths(classroom, "refine nothing", count=0)
    refine.run(REFINE, paths=paths, resources=RESOURCES)
    figures = json.loads(paths.metrics.read_text())
    assert figures.keys() == {"accepted", "winner", "distilled"}
    assert not figures["accepted"]
    for file in paths.student.iterdir():
        assert (paths.refined / file.name).read_bytes() == file.read_bytes()
    assert len(pd.read_csv(paths.predictions)) == len(classroom.data.rows("test"))
    assert paths.picture.exists()

"""Synthetic images: what they are made from, and what must be refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import augment
from stages.core.dataset.data import Dataset
from stages.core.gan import paste, translate
from stages.core.gan.judge import Jury
from stages.core.gan.making import Made, Makers, Task
from stages.core.nets.files import load_teacher
from stages.core.results.schema.synthetic import AugmentMetrics
from stages.core.runner.errors import ParamsError, TrainingDiverged
from stages.core.runner.params import parse_section
from stages.core.training.supplement import load_supplement
from tests.conftest import RESOURCES, ROOT
from tests.helpers.classroom import Classroom, filled

pytestmark = pytest.mark.usefixtures("one_thread")

GAN = {
    "width": 8, "steps": 3, "batch_size": 4, "learning_rate": 1e-3, "penalty": 1.0,
    "penalty_every": 2, "average_decay": 0.9,
}  # fmt: skip
# The toy's teacher knows nothing, and so its filter is not asked.
OPEN = {"min_kept": -1.0, "min_authentic": 0.0, "min_coverage": 0.0, "keep_quantile": 1.0}


def params(**changes: Any) -> augment.Params:
    values = {
        "mode": "translate", "to": "class", "translate": GAN | {"sparsity": 0.1},
        "paste": {"area": 0.4}, "synthesize": GAN | {"image_px": 16, "noise": 4}, "images": 12,
        "view_count": 2, "jitter": 0.1, "judge_backbone": "tf_efficientnet_lite1",
        "judge_out_indices": [0], "probe_c": 0.01, "seed": 1, **OPEN,
    }  # fmt: skip
    section = {"augment": values | changes}
    return parse_section(section, "augment", augment.Params, source="here")


@pytest.fixture
def run(classroom: Classroom, tmp_path: Path) -> Callable[..., tuple[Any, augment.Paths]]:
    def run(**changes: Any) -> tuple[Any, augment.Paths]:
        inputs = {"validated": classroom.validated, "teacher": classroom.teacher}
        paths = filled(augment.Paths, tmp_path / f"run{len(list(tmp_path.iterdir()))}", **inputs)
        augment.run(params(**changes), paths=paths, resources=RESOURCES)
        AugmentMetrics.model_validate_json(paths.metrics.read_text())
        return json.loads(paths.metrics.read_text()), paths

    return run


def test_the_params_here_are_those_of_the_file() -> None:
    text = (ROOT / "params.yaml").read_text()
    for key in params().model_dump():
        assert f"\n  {key}:" in text[text.index("\naugment:") : text.index("\nrefine:")]


@pytest.mark.parametrize("mode", ["translate", "paste", "synthesize"])
def test_each_mode_ends_with_a_supplement_and_its_control(
    mode: str, run: Callable[..., Any], classroom: Classroom
) -> None:
    figures, paths = run(mode=mode)
    data = classroom.data
    sets = {k: load_supplement(paths.augmented / k, data) for k in ("synthetic", "real")}
    synthetic, real = sets["synthetic"], sets["real"]
    assert figures["mode"] == mode
    assert figures["to"] == "cracked"
    assert figures["images"] == len(synthetic) == len(real) > 0
    assert (synthetic.labels == 1).all()
    assert np.array_equal(synthetic.labels, real.labels)
    assert synthetic.logits.shape == real.logits.shape == (2, len(real), 2)
    assert ("snapshot" in figures) is (mode != "paste")
    assert figures["refused"] is None
    stored = np.load(paths.augmented / "real" / "pixels.npy")
    assert stored.shape[1] == (16 if mode == "synthesize" else data.image_px)
    assert stored.shape == np.load(paths.augmented / "synthetic" / "pixels.npy").shape
    # What stands in the control are real training images of the class.
    if mode != "synthesize":
        train = data.rows("train")
        wanted = {x.tobytes() for x in data.pixels[train[data.labels[train] == 1]]}
        assert {x.tobytes() for x in stored} <= wanted
    for file in (paths.samples, paths.probabilities, paths.curves):
        assert file.stat().st_size


def test_the_teachers_logits_are_of_the_very_views(
    run: Callable[..., Any], classroom: Classroom
) -> None:
    _, paths = run(mode="paste")
    supplement = load_supplement(paths.augmented / "synthetic", classroom.data)
    rows = np.arange(len(supplement))
    teacher = load_teacher(paths.teacher).eval()
    for view in (0, 1, 2):
        images, _, logits = supplement.batch(rows, view)
        assert np.allclose(teacher(images).detach(), logits, atol=1e-4)


def test_images_of_another_domain_keep_their_labels(
    run: Callable[..., Any], classroom: Classroom
) -> None:
    figures, paths = run(to="domain")
    data = classroom.data
    real = load_supplement(paths.augmented / "real", data)
    assert figures["to"] == "poly"
    assert "classification_score" not in figures["real"]
    assert set(real.labels) == {0, 1}
    train = data.rows("train")
    label_of = {data.pixels[row].tobytes(): data.labels[row] for row in train}
    pixels = np.load(paths.augmented / "real" / "pixels.npy")
    assert [label_of[x.tobytes()] for x in pixels] == real.labels.tolist()


@pytest.mark.parametrize("mode", ["paste", "synthesize"])
def test_only_translation_makes_another_domain(mode: str) -> None:
    """And that is said before anything runs."""
    with pytest.raises(ParamsError, match=r"augment\.to = 'domain': expected class"):
        params(mode=mode, to="domain")


def test_another_domain_must_be_there(run: Callable[..., Any], classroom: Classroom) -> None:
    data = classroom.data
    here = dataclasses.replace(data, domains=np.full(len(data.labels), "mono", object))
    with pytest.raises(ParamsError, match=r"expected validate\.target_domain, or"):
        augment.find_task(params(to="domain"), here)


def test_from_three_images_nothing_is_made(
    run: Callable[..., Any],
    classroom: Classroom,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The images are no must, so the run goes on without them; their label is no command."""
    data = classroom.data
    train = data.rows("train")
    wanted = train[data.labels[train] == 1]
    splits = data.splits.copy()
    splits[wanted[3:]] = ""
    few = dataclasses.replace(data, splits=splits, classes=["sound", "\x1b[31mcracked"])
    monkeypatch.setattr(augment, "load_dataset", lambda _: few)
    figures, paths = run()
    assert figures["refused"] == (
        "there are only 3 real training images of \x1b[31mcracked; to make others like them takes 4"
    )
    assert "images of \\x1b[31mcracked; to" in capsys.readouterr().out
    assert "real" not in figures
    assert not len(np.load(paths.augmented / "synthetic" / "labels.npy"))
    assert paths.samples.stat().st_size


def test_where_a_gan_diverges_nothing_is_made(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: Any) -> Makers:
        raise TrainingDiverged("GAN diverged: a loss is not finite in step 1")

    monkeypatch.setattr(translate, "makers", diverges)
    figures, _ = run()
    assert figures["refused"] == "GAN diverged: a loss is not finite in step 1"
    assert figures["images"] == 0


def test_backgrounds_stay_consistent(classroom: Classroom) -> None:
    """Of three channels, the third is the source's, and the second the quotient of both."""
    data = classroom.data
    draws = np.random.default_rng(0)
    pixels = draws.integers(20, 200, (4, 8, 8, 3), dtype=np.uint8)
    rules = dataclasses.replace(data.rules, background="both")
    three = dataclasses.replace(data, rules=rules, pixels=pixels)
    new = draws.integers(20, 200, (2, 8, 8, 3), dtype=np.uint8)
    made = Made(new, np.ones(2, np.int64), np.arange(2))
    whole = augment.consistent(made, three)
    assert np.array_equal(whole.pixels[..., 0], made.pixels[..., 0])
    assert np.array_equal(whole.pixels[..., 2], pixels[:2, ..., 2])
    quotient = 128 * whole.pixels[..., 0].astype(float) / whole.pixels[..., 2]
    assert np.abs(whole.pixels[..., 1] - quotient.clip(0, 255)).max() <= 1
    assert augment.consistent(made, data) is made


def plant(monkeypatch: pytest.MonkeyPatch, pick: Callable[[Dataset, Task, int], Any]) -> None:
    """In place of what a mode makes: what `pick` gives of the real images."""

    genuine = paste.makers

    def makers(_: Any, data: Dataset, task: Task) -> Makers:
        real = genuine(paste.Params(area=0.4), data, task)

        def make(count: int, seed: int) -> Made:
            made = real.by_step[0](count, seed)
            return Made(pick(data, task, count), made.labels, made.sources)

        return Makers({0: make}, data.image_px, real.curves)

    monkeypatch.setattr(paste, "makers", makers)


def replays(data: Dataset, task: Task, count: int) -> Any:
    return data.pixels[np.resize(task.wanted, count)]


def one_image(data: Dataset, task: Task, count: int) -> Any:
    """The same one, with some noise."""
    noise = np.random.default_rng(0).integers(-30, 31, (count, *data.pixels.shape[1:]))
    return (data.pixels[task.wanted[0]] + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("pick", "gate", "words"),
    [
        (
            replays,
            "min_authentic",
            "authentic, the share of them that are no copies of real ones, is 0.000",
        ),
        (
            one_image,
            "min_coverage",
            "coverage, the share of real images that have a neighbour here, is ",
        ),
    ],
)
def test_replays_and_a_single_image_are_refused(
    pick: Any, gate: str, words: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, pick)
    monkeypatch.setattr(augment, "FEWEST_JUDGED", 4)
    figures, paths = run(mode="paste", **{gate: 0.9})
    assert words in figures["refused"]
    assert figures["images"] == 0
    assert not len(np.load(paths.augmented / "synthetic" / "pixels.npy"))
    assert not len(np.load(paths.augmented / "real" / "labels.npy"))
    assert run(mode="paste")[0]["refused"] is None


@pytest.mark.parametrize("quantile", [0.5, 1.0])
def test_the_filters_threshold_is_that_of_real_validation_images(
    quantile: float, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """These pass it themselves in the share that is asked for."""

    def held_out(data: Dataset, task: Task, count: int) -> Any:
        val = data.rows("val")
        return data.pixels[np.resize(val[data.labels[val] == task.label], count)]

    plant(monkeypatch, held_out)
    figures, _ = run(mode="paste", keep_quantile=quantile)
    assert figures["kept_share"] == pytest.approx(quantile, abs=0.2)


def test_what_the_filter_rejects_is_refused(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Jury, "likely", lambda _, labels, *__: np.zeros(len(labels), bool))
    figures, _ = run(mode="paste")
    assert figures["kept_share"] == 0
    assert figures["synthetic"] is None
    assert figures["refused"] == "the teacher's filter kept 0.0% of them, fewer than two"


def test_images_that_nothing_was_done_to_are_refused(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the filter lets most of them through."""
    genuine = paste.makers

    def makers(how: paste.Params, data: Dataset, task: Task) -> Makers:
        def make(count: int, seed: int) -> Made:
            made = genuine(how, data, task).by_step[0](count, seed)
            assert made.sources is not None
            return dataclasses.replace(made, pixels=data.pixels[made.sources])

        return Makers({0: make}, data.image_px, pd.DataFrame({"step": []}))

    monkeypatch.setattr(paste, "makers", makers)
    figures, _ = run(mode="paste", min_kept=0.01)
    assert figures["kept_share"] == figures["untouched_share"] > 0.5
    assert figures["images"] == 0
    share = f"{figures['kept_share']:.1%}"
    assert figures["refused"] == (
        f"the teacher's filter kept {share} of them, and {share} of their sources; min_kept asks "
        "for 1% more"
    )
    assert run(mode="synthesize", min_kept=0.01)[0]["refused"] is None


def test_the_state_that_teaches_a_probe_most_is_taken(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the last one; and validation, which decides in the end, has no part in it."""
    genuine = paste.makers

    def makers(how: paste.Params, data: Dataset, task: Task) -> Makers:
        def maker(rows: Any) -> Callable[[int, int], Made]:
            def make(count: int, seed: int) -> Made:
                made = genuine(how, data, task).by_step[0](count, seed)
                return dataclasses.replace(made, pixels=data.pixels[np.resize(rows, count)])

            return make

        rows = {10: task.sources, 20: task.wanted, 30: task.sources}
        by_step = {step: maker(each) for step, each in rows.items()}
        return Makers(by_step, data.image_px, pd.DataFrame({"step": []}))

    monkeypatch.setattr(paste, "makers", makers)
    best_step = augment.best_step

    def without_validation(*arguments: Any) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(Jury, "score", None)
            return best_step(*arguments)

    monkeypatch.setattr(augment, "best_step", without_validation)
    assert run(mode="paste")[0]["snapshot"] == 20


def test_the_teacher_is_no_judge_of_itself(run: Callable[..., Any]) -> None:
    with pytest.raises(ParamsError, match="the teacher is such a network, and would judge itself"):
        run(mode="paste", judge_backbone="tf_efficientnet_lite0")

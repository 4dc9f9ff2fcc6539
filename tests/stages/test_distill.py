import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import distill
from stages.core.dataset.views import Views
from stages.core.nets.files import load_net, load_teacher, save_teacher
from stages.core.nets.inference import logits_of
from stages.core.results import metrics, predictions
from stages.core.runner.errors import ParamsError
from stages.core.training.targets import load_targets
from tests.conftest import RESOURCES, RowsFitted
from tests.helpers.classroom import LITE, Classroom, close, enrolled, params, same

pytestmark = pytest.mark.usefixtures("one_thread")

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def heirs(classroom: Classroom) -> tuple[Path, Tensors, Tensors]:
    """A teacher of two, the first with weights that are not the packaged ones; and theirs."""
    shallow, deep = load_teacher(classroom.teacher).each()
    with torch.no_grad():
        for parameter in deep.backbone.parameters():
            parameter.mul_(1.1)
    save_teacher(classroom.root / "of heirs", [deep, shallow])
    first, second = (net.backbone.model.state_dict() for net in (deep, shallow))
    return classroom.root / "of heirs", first, second


def heir(classroom: Classroom, teacher: Path, **changes: Any) -> Tensors:
    """The backbone of a student that starts from a teacher."""
    paths = classroom.paths(f"heir {sorted(changes)}")
    how = {"weights": "teacher", "own_statistics": 0.0} | changes
    paths = dataclasses.replace(paths, teacher=teacher)
    distill.run(params(**how), paths=paths, resources=RESOURCES)
    result: Tensors = load_net(paths.student).backbone.model.state_dict()
    return result


def test_students_can_start_from_the_teachers_own_layers(
    classroom: Classroom, heirs: tuple[Path, Tensors, Tensors]
) -> None:
    teacher, taught, before = heirs
    student = heir(classroom, teacher)
    frozen = [name for name in student if name.startswith(("conv_stem", "bn1", "blocks.0"))]
    assert frozen
    assert all(torch.equal(student[name], taught[name]) for name in frozen)
    assert not torch.equal(student["conv_stem.weight"], before["conv_stem.weight"])


def test_thin_students_can_start_from_a_selection_of_them(
    classroom: Classroom, heirs: tuple[Path, Tensors, Tensors]
) -> None:
    teacher, taught, _ = heirs
    paths = dataclasses.replace(classroom.paths("thin heir"), teacher=teacher)
    targets = load_targets(classroom.targets, classroom.data)
    how = params(weights="teacher", width=0.5, frozen_groups=0)
    trainer = distill.StudentTrainer(how, paths, classroom.data, targets, RESOURCES)
    student = trainer.untrained(3).backbone.model.state_dict()
    name = "blocks.0.0.conv_pw.weight"
    rows, columns = (torch.linspace(0, n - 1, k).round().long() for n, k in ((16, 8), (32, 32)))
    assert student[name].shape == (8, 32, 1, 1)
    assert torch.equal(student[name], taught[name][rows][:, columns])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "none"}, "random weights"),
        ({"width": 0.5}, "a selection of weights"),
        ({"depth": 0.5, "weights": "teacher"}, "a selection of weights"),
    ],
)
def test_layers_that_must_learn_are_not_frozen(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ParamsError, match=rf"distill\.frozen_groups = 2: would freeze {words}"):
        params(**changes)
    params(frozen_groups=0, **changes)


def test_what_the_teacher_does_not_have_is_refused(
    classroom: Classroom, heirs: tuple[Path, Tensors, Tensors]
) -> None:
    paths = dataclasses.replace(classroom.paths("no heir"), teacher=heirs[0])
    with pytest.raises(ParamsError, match=rf"'teacher': expected .*{LITE}\), found 'tf_.*lite1'"):
        distill.initial_weights(params(weights="teacher", backbone="tf_efficientnet_lite1"), paths)
    with pytest.raises(
        ParamsError, match=r"the teacher's deepest feature map is 2; .* found \[0, 3\]"
    ):
        distill.initial_weights(params(weights="teacher", out_indices=[0, 3]), paths)


def test_both_have_the_statistics_of_all_that_the_student_learns_from(
    classroom: Classroom, rows_fitted: RowsFitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr(distill, "adapt_statistics", lambda *args: measured.append(args[2:]))
    rows_fitted()
    distill.run(params(own_statistics=0.5), paths=classroom.paths("measured"), resources=RESOURCES)
    assert len(measured) == 2
    for rows, share in measured:
        assert np.array_equal(rows, classroom.data.distillation_rows)
        assert share == 0.5


def test_the_first_seeds_student_ships(classroom: Classroom) -> None:
    one, two = classroom.distil(), classroom.distil(seeds=2)
    assert same(one.weights, two.weights)
    assert not same(two.weights, classroom.distil(seed=4).weights)
    logits_by = logits_of(
        load_net(two.paths.student),
        Views(two.data.pixels, 0, 0, "all").plain,
        two.data.rows("test"),
    )
    assert np.allclose(two.logits_by("student"), logits_by, rtol=1e-4, atol=1e-5)


def test_predictions_have_the_students_and_controls_of_all_seeds(classroom: Classroom) -> None:
    one, two, next_seed = classroom.distil(), classroom.distil(seeds=2), classroom.distil(seed=4)
    names = ["teacher", "student", "control", "student 1", "control 1"]
    result = [name.rsplit("/", 1)[0] for name in two.table.columns if "/" in name]
    assert result == [name for name in names for _ in range(2)]
    for name in ("student", "control"):
        assert np.array_equal(two.logits_by(name), one.logits_by(name))
        assert np.array_equal(two.logits_by(f"{name} 1"), next_seed.logits_by(name))
        assert not np.array_equal(two.logits_by(f"{name} 1"), two.logits_by(name))
        assert len(predictions.of_all_seeds(two.table, name)) == 2
    assert two.table["file_name"].tolist() == list(two.data.files[two.data.rows("test")])


def test_figures_are_those_of_the_predictions(classroom: Classroom) -> None:
    two = classroom.distil(seeds=2)
    test = two.data.rows("test")
    plain = load_targets(classroom.targets, two.data).plain[test]
    assert np.allclose(two.logits_by("teacher"), plain, rtol=1e-4, atol=1e-5)
    auroc = {
        name: metrics.auroc(two.logits_by(name), two.labels)
        for name in ("teacher", "student", "control", "student 1", "control 1")
    }
    within = {
        name: metrics.auroc_within_groups(two.logits_by(name), two.labels, two.data.groups[test])
        for name in auroc
    }
    for name in ("student", "control"):
        loss = metrics.negative_log_likelihood(two.logits_by(name), two.labels)
        assert two.metrics[name]["nll"] == pytest.approx(loss, rel=1e-4)
        assert two.metrics[name]["auroc"] == pytest.approx(auroc[name])
        assert two.metrics[name]["auroc_within_groups"] == pytest.approx(within[name])
        mean = (auroc[name] + auroc[f"{name} 1"]) / 2
        assert two.metrics["seeds"][name]["mean"] == pytest.approx(mean)
    assert two.metrics["seeds"]["count"] == 2
    gains = [auroc["student"] - auroc["control"], auroc["student 1"] - auroc["control 1"]]
    assert two.metrics["gain_over_control"]["gain"] == pytest.approx(np.mean(gains))
    inside = np.array([within[name] for name in ("student", "student 1", "control", "control 1")])
    gain = inside[:2].mean() - inside[2:].mean()
    assert two.metrics["gain_over_control"]["within_groups"]["gain"] == pytest.approx(gain)
    assert all("auroc_within_groups" in each for each in two.metrics["validation"].values())
    gain = two.metrics["gain_over_teacher"]["gain"]
    assert gain == pytest.approx(auroc["student"] - auroc["teacher"])
    assert set(two.metrics["validation"]) == {"student", "control", "student 1", "control 1"}


def test_the_student_listens_to_the_teacher_and_the_control_does_not(classroom: Classroom) -> None:
    def swap(folder: Path) -> None:
        logits = np.load(folder / "views.npy")
        np.save(folder / "views.npy", logits[:, :, ::-1])

    result, other = classroom.distil(), classroom.distil(classroom.changed("swapped", swap))
    assert np.array_equal(result.logits_by("control"), other.logits_by("control"))
    assert not close(result.logits_by("student"), other.logits_by("student"), 0.05)
    assert not close(result.logits_by("student"), result.logits_by("control"), 0.05)
    assert not same(result.weights, other.weights)
    assert np.array_equal(result.logits_by("teacher"), other.logits_by("teacher"))


def test_both_learn_on_the_views_of_the_targets(classroom: Classroom) -> None:
    def show_others(folder: Path) -> None:
        (folder / "views.json").write_text('{"seed": 7, "jitter": 0.1, "mix": "none"}')

    result, other = classroom.distil(), classroom.distil(classroom.changed("others", show_others))
    for name in ("student", "control"):
        assert not close(result.logits_by(name), other.logits_by(name), 0.05)


def test_the_control_is_the_student_without_the_teacher(tmp_path: Path) -> None:
    nearly = enrolled(tmp_path, target=False).distil(alpha=1e-7)
    assert close(nearly.logits_by("student"), nearly.logits_by("control"), 0.02)


def test_of_unlabelled_images_the_teacher_tells_the_student_alone(classroom: Classroom) -> None:
    data = classroom.data
    unlabelled = np.flatnonzero(data.labels[data.distillation_rows] < 0)
    assert len(unlabelled) == 16

    def contradict(folder: Path) -> None:
        logits = np.load(folder / "views.npy")
        logits[:, unlabelled] = logits[:, unlabelled, ::-1]
        np.save(folder / "views.npy", logits)

    changed = classroom.changed("contradicted", contradict)
    result, other = classroom.distil(), classroom.distil(changed)
    assert not close(result.logits_by("student"), other.logits_by("student"), 0.05)


@pytest.mark.parametrize("count", [8, 20, 27])
def test_rows_are_repeated_without_favour(count: int) -> None:
    rows = np.arange(100, 108)
    result = distill.repeated(rows, count, 0)
    often = np.unique(result, return_counts=True)[1]
    assert len(result) == count
    assert len(often) == 8
    assert often.max() - often.min() <= 1
    assert np.array_equal(result[:8], rows)
    more = [distill.repeated(rows, 12, seed)[8:].tolist() for seed in range(20)]
    assert more[0] == distill.repeated(rows, 12, 0)[8:].tolist()
    # Sorted by class, the first four would be of one.
    assert len({tuple(sorted(each)) for each in more}) > 10


def test_the_control_takes_as_many_steps_on_labelled_images(
    classroom: Classroom, rows_fitted: RowsFitted
) -> None:
    fitted = rows_fitted()
    distill.run(params(), paths=classroom.paths("steps"), resources=RESOURCES)
    data = classroom.data
    student, control = fitted
    everything = set(data.rows("train")) | set(data.rows("unlabelled"))
    assert set(student) == everything
    assert len(student) == len(everything) == len(control)
    assert set(control) == set(data.rows("train"))


def test_features_teach_too(classroom: Classroom) -> None:
    kd, result = classroom.distil(), classroom.distil(method="feature")
    assert np.array_equal(result.logits_by("control"), kd.logits_by("control"))
    assert not close(result.logits_by("student"), kd.logits_by("student"), 0.05)
    assert not close(result.logits_by("student"), result.logits_by("control"), 0.05)


def test_features_that_are_not_there_are_refused(classroom: Classroom) -> None:
    paths = classroom.paths("without features", classroom.featureless)
    words = r"distill\.method = 'feature': set targets\.features to true"
    with pytest.raises(ParamsError, match=words):
        distill.run(params(method="feature"), paths=paths, resources=RESOURCES)
    assert not paths.student.exists()
    assert not paths.curves.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "dkd"}, "method 'dkd': with two classes"),
        ({"method": "dist"}, "method 'dist': with two classes"),
        ({"standardize_logits": True}, "standardize_logits: with two classes"),
        ({"method": "feature", "alpha": 1.0}, "'feature' with alpha = 1"),
    ],
)
def test_what_teaches_nothing_is_refused(
    classroom: Classroom, changes: dict[str, Any], words: str
) -> None:
    paths = classroom.paths(f"refused {changes}")
    with pytest.raises(ParamsError, match=words):
        distill.run(params(**changes), paths=paths, resources=RESOURCES)
    assert not paths.student.exists()
    assert not paths.curves.exists()

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import targets
from stages.core.dataset.views import Views
from stages.core.nets.files import load_teacher
from stages.core.results import metrics
from stages.core.runner.errors import ParamsError
from stages.core.runner.params import parse_section
from stages.core.training.targets import load_targets
from tests.conftest import RESOURCES
from tests.helpers.classroom import VIEWS, Classroom, close, filled

pytestmark = pytest.mark.usefixtures("one_thread")


def params(**changes: Any) -> targets.Params:
    values: dict[str, Any] = {"view_count": VIEWS, "features": True, "jitter": 0.1, "seed": 2}
    values |= {"mix": "none", "average_views": False}
    return parse_section({"targets": values | changes}, "targets", targets.Params, source="here")


@pytest.mark.parametrize("view", range(VIEWS))
def test_targets_are_what_the_teacher_says_of_its_views(classroom: Classroom, view: int) -> None:
    data, teacher = classroom.data, load_teacher(classroom.teacher)
    loaded = load_targets(classroom.targets, data)
    assert (loaded.view_count, loaded.views.seed, loaded.views.jitter) == (VIEWS, 2, 0.1)
    assert loaded.views.symmetries == "mirror"
    rows = data.rows("train")[[5, 0, 11, 3]]
    images = Views(data.pixels, 2, 0.1, "mirror").batch(rows, view)
    with torch.inference_mode():
        each = [net.head.standardize(net.features(images)) for net in teacher.each()]
        logits = teacher(images)
        assert not close(teacher.each()[0](images), logits, 0.1)
    # Logits and features are stored as float16.
    assert close(loaded.logits(rows, view), logits)
    assert not close(loaded.logits(rows, (view + 1) % VIEWS), logits, 0.1)
    assert close(loaded.features(rows, view), torch.cat(each, 1), 0.05)
    assert not close(loaded.features(rows, (view + 1) % VIEWS), torch.cat(each, 1), 0.5)


def test_targets_go_on_after_the_last_finished_view(
    classroom: Classroom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"validated": classroom.validated, "teacher": classroom.teacher}
    paths = filled(targets.Paths, tmp_path / "killed", **inputs)
    how = params()
    real, asked = targets.FrozenTeacher.outputs, []

    def outputs(self: targets.FrozenTeacher, rows: Any, view: int | None, progress: Any) -> Any:
        asked.append(view)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return real(self, rows, view, progress)

    monkeypatch.setattr(targets.FrozenTeacher, "outputs", outputs)
    with pytest.raises(KeyboardInterrupt):
        targets.run(how, paths=paths, resources=RESOURCES)
    targets.run(how, paths=paths, resources=RESOURCES)
    assert asked == [0, 1, 1, 2, None]
    for name in ("views.npy", "features.npy", "plain.npy", "views.json"):
        assert (paths.targets / name).read_bytes() == (classroom.targets / name).read_bytes()


def test_targets_have_every_image_as_it_is(classroom: Classroom) -> None:
    data, teacher = classroom.data, load_teacher(classroom.teacher)
    loaded = load_targets(classroom.targets, data)
    assert (data.labels == -1).any()
    with torch.inference_mode():
        plain = teacher(loaded.views.plain(np.arange(len(data.labels))))
    assert close(loaded.plain, plain, 1e-3)
    train = data.rows("train")
    written = json.loads((classroom.targets.parent / "metrics").read_text())
    for name, logits in (("view", loaded.logits(train, 0)), ("plain", loaded.plain[train])):
        auroc = metrics.auroc(np.asarray(logits), data.labels[train])
        assert written[f"{name}_auroc"] == pytest.approx(auroc, abs=1e-3)


def test_targets_may_be_the_mean_over_the_views(classroom: Classroom, tmp_path: Path) -> None:
    inputs = {"validated": classroom.validated, "teacher": classroom.teacher}
    paths = filled(targets.Paths, tmp_path / "averaged", **inputs)
    targets.run(params(average_views=True, features=False), paths=paths, resources=RESOURCES)
    each, averaged = (load_targets(at, classroom.data) for at in (classroom.targets, paths.targets))
    rows = classroom.data.distillation_rows
    mean = torch.stack([each.logits(rows, view) for view in range(VIEWS)]).mean(0)
    for view in range(VIEWS):
        assert close(averaged.logits(rows, view), mean, 0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mix": "mixup", "view_count": 1}, "mix = 'mixup': .*view_count is 1: expected 2"),
        ({"average_views": True, "mix": "cutmix"}, "average_views = True: .*: set mix to none"),
        ({"average_views": True}, "average_views = True: .*: set features to false"),
    ],
)
def test_what_has_no_effect_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ParamsError, match=rf"^here: targets\.{words}"):
        params(**changes)


def test_the_teacher_sees_the_mixed_images(classroom: Classroom, tmp_path: Path) -> None:
    inputs = {"validated": classroom.validated, "teacher": classroom.teacher}
    paths = filled(targets.Paths, tmp_path / "mixed", **inputs)
    targets.run(params(mix="mixup"), paths=paths, resources=RESOURCES)
    data = classroom.data
    each, mixed = (load_targets(at, data) for at in (classroom.targets, paths.targets))
    rows = data.distillation_rows
    assert torch.equal(mixed.logits(rows, 0), each.logits(rows, 0))
    assert set(mixed.views.partners) == set(data.rows("train")) < set(rows)
    with torch.inference_mode():
        logits = load_teacher(classroom.teacher)(mixed.views.batch(rows, 1))
    assert close(mixed.logits(rows, 1), logits)
    assert not close(each.logits(rows, 1), logits, 0.1)

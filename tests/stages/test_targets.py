import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import targets
from stages.core.dataset.views import Views
from stages.core.nets.net import load_teacher
from stages.core.results import metrics
from stages.core.training.targets import load_targets
from tests.helpers.classroom import VIEWS, Classroom, close, enrolled, filled
from tests.stages.test_teacher import RESOURCES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Classroom:
    return enrolled(tmp_path_factory.mktemp("targets"), target=True)


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
    how = targets.Params(view_count=VIEWS, features=True, jitter=0.1, seed=2)
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

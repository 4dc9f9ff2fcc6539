"""The last good release stays until a better one replaces it: the check stage under real DVC."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.checked import Project
from tests.helpers.imagined import change


@pytest.mark.slow
def test_the_last_good_release_stays(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.dvc("repro", "check")
    good = project.release()
    assert good["model.onnx"] == b"a good model"
    assert project.passed

    project.model.write_bytes(b"a worse model")
    project.set_gate("min_auroc", 1.0)
    output = project.dvc("repro", "check", fails=True)
    assert "error: check: AUROC of the exported model is " in output
    assert project.release() == good
    assert not project.passed
    project.kill_in_the_middle()
    assert project.release() == good

    change(project.reports / "export" / "metrics.json", "auroc", 0.99)
    project.set_gate("min_auroc", 0.9)
    project.kill_in_the_middle()
    after = project.release()
    assert after == good or after["model.onnx"] == b"a worse model"
    assert set(after) == set(good)
    project.dvc("repro", "check")
    better = project.release()
    assert better["model.onnx"] == b"a worse model"
    assert project.passed
    assert "didn't change" in project.dvc("repro", "check")
    assert project.release() == better

    # Whoever spoils it, or deletes it, gets it again.
    (tmp_path / "data" / "release" / "labels.json").write_text("[]")
    project.dvc("repro", "check")
    assert project.release() == better
    shutil.rmtree(tmp_path / "data" / "release")
    project.dvc("checkout", "--quiet")
    assert project.release() == better

"""The whole chain on a few hundred real solar cells, through Prefect and through DVC alone."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stages.core.nets.variants import USUAL
from tests.helpers.tiny import DETERMINISTIC, TRAIN, Workspace, make, marks

FILES = {
    "data/elpv": ["classes.txt", "images", "licence.txt", "metadata.csv", "symmetries.txt"],
    "data/validated": [
        "classes.json",
        "manifest.csv",
        "pixels.npy",
        "profile.json",
        "rules.json",
        "views.json",
    ],
    "data/models/teacher": ["member_0"],
    "data/models/teacher/member_0": ["config.json", "model.safetensors"],
    "data/targets": ["plain.npy", "views.json", "views.npy"],
    "data/models/student": ["config.json", "model.safetensors"],
    "data/augmented": ["real", "synthetic"],
    "data/augmented/synthetic": ["labels.npy", "logits.npy", "pixels.npy", "views.json"],
    "data/models/refined": ["config.json", "model.safetensors"],
    "data/models/onnx": ["evidence.onnx", "fp16.onnx", "fp32.onnx", f"{USUAL.name}.onnx"],
    "data/release": [
        "MODEL_CARD.md",
        "evidence.onnx",
        "labels.json",
        "manifest.json",
        "metrics.json",
        "model.onnx",
        "predict.py",
    ],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, str]]:
    for workspace in make(tmp_path_factory.mktemp("flow")):
        yield workspace, workspace.run(TRAIN)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Workspace]:
    yield from make(tmp_path)


def test_a_run_writes_exactly_its_files(trained: tuple[Workspace, str]) -> None:
    workspace, output = trained
    assert marks(output) == dict.fromkeys([*DETERMINISTIC, "benchmark", "check"], "done")
    for folder, names in FILES.items():
        assert sorted(p.name for p in (workspace.root / folder).iterdir()) == names
    assert not list((workspace.root / "data").rglob(".partial*"))
    assert "up to date" in workspace.run([sys.executable, "-m", "dvc", "status"])


def test_each_auroc_and_gain_has_one_within_groups(trained: tuple[Workspace, str]) -> None:
    workspace, output = trained

    def overall_only(content: dict[str, Any], name: str) -> list[str]:
        names = [] if "auroc_within_groups" in content or "auroc" not in content else [name]
        names += [name] if "low" in content and "within_groups" not in content else []
        for key, value in content.items():
            # Calibration gains in cross-entropy; what else has a low end is no gain in AUROC.
            others = (
                "within_groups", "val_calibration_gain", "thresholds",
                "recall_margin", "false_alarm_margin",
            )  # fmt: skip
            if isinstance(value, dict) and key not in others:
                names += overall_only(value, f"{name}.{key}")
        return names

    for stage in ("teacher", "distill", "refine", "export"):
        assert overall_only(workspace.metrics(stage), stage) == []
    assert "val_auroc_within_groups" in workspace.metrics("refine")
    gates = workspace.metrics("check")["gates"]
    gains = {
        "auroc_within_groups": workspace.metrics("export")["gain_over_chance"],
        "gain_over_control_within_groups": workspace.metrics("distill")["gain_over_control"],
    }
    for name, gain in gains.items():
        assert (name in gates) is (gain["within_groups"]["low"] is not None)
    assert output.count("\n  within groups ") == 3
    assert "try it" in output


def test_metrics_are_stable(trained: tuple[Workspace, str]) -> None:
    workspace, _ = trained
    teacher, distill = workspace.metrics("teacher"), workspace.metrics("distill")
    assert {"probe", "finetuned", "parameters"} <= set(teacher)
    assert {"student", "control", "parameters"} <= set(distill)
    assert {"synthetic", "real", "other"} <= set(workspace.metrics("augment"))
    assert {"accepted", "winner"} <= set(workspace.metrics("refine"))
    assert workspace.metrics("export")["parity"]["decisions_changed"] == 0
    rows = workspace.metrics("benchmark")["rows"]
    assert isinstance(rows, dict)
    assert {"p50_ms", "p90_ms", "p99_ms", "images_per_s"} <= set(rows["student_ort_cpu_b1"])
    output = workspace.run([sys.executable, "-m", "dvc", "metrics", "show", "--json"])
    assert json.loads(output)


def test_progress_is_on_the_runs_page(trained: tuple[Workspace, str]) -> None:
    workspace, _ = trained
    with closing(sqlite3.connect(workspace.prefect / "prefect.db")) as database:
        rows = database.execute("SELECT key, data FROM artifact WHERE type = 'progress'")
        percent = dict(rows)
    stages = ("validate", "teacher", "targets", "distill", "augment", "refine", "benchmark")
    assert {f"{stage}-progress" for stage in stages} <= set(percent)
    assert {percent[f"{stage}-progress"] for stage in stages} == {100}


def test_provenance_is_what_dvc_recorded(trained: tuple[Workspace, str]) -> None:
    import onnx

    workspace, _ = trained
    model = onnx.load(workspace.root / "data/models/onnx/fp32.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    inputs = json.loads(metadata["inputs"])
    assert inputs["refined"] == workspace.md5s()["data/models/refined"]
    assert inputs["validated"] == workspace.md5s()["data/validated"]


def test_the_release_works_alone(trained: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, _ = trained
    image = next((workspace.root / "data/elpv/images").iterdir())
    command = [sys.executable, str(workspace.root / "data/release/predict.py"), str(image)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    label, probability, file = ended.stdout.split("\t")
    assert label in ("functional", "defective")
    assert 0.5 <= float(probability) <= 1
    assert file.strip() == str(image)


def test_then_cached_then_one_key(trained: tuple[Workspace, str]) -> None:
    workspace, _ = trained
    stages = [*DETERMINISTIC, "benchmark", "check"]
    assert marks(workspace.run(TRAIN)) == dict.fromkeys(stages, "cached")
    workspace.set("check", "min_auroc", 1.0)
    output = workspace.run(TRAIN, fails=True)
    assert marks(output) == dict.fromkeys(stages[:-1], "cached") | {"check": "failed"}
    assert "error: check: AUROC of the exported model is " in output
    assert "report   data/reports/index.html" in output
    assert "Traceback" not in output
    workspace.set("check", "min_auroc", 0.0)
    assert marks(workspace.run(TRAIN))["check"] == "done"


def test_once_a_stage_has_failed_no_other_is_run(trained: tuple[Workspace, str]) -> None:
    workspace, _ = trained
    workspace.set("distill", "out_indices", [0, 99])
    workspace.set("augment", "seed", 99)
    output = workspace.run(TRAIN, fails=True)
    workspace.set("distill", "out_indices", [0, 1, 2])
    workspace.set("augment", "seed", 0)
    states = marks(output)
    assert states["distill"] == "failed"
    assert {states[name] for name in ("augment", "refine", "export", "check")} == {"not"}


def test_bad_params_are_refused_before_the_first_stage(trained: tuple[Workspace, str]) -> None:
    workspace, _ = trained
    workspace.set("teacher", "dropout", 1.5)
    output = workspace.run(TRAIN, fails=True)
    workspace.set("teacher", "dropout", 0.2)
    assert marks(output) == {}
    assert "params.yaml: teacher.dropout = 1.5: should be less than 1" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_dvc_alone_gives_the_same(trained: tuple[Workspace, str], fresh: Workspace) -> None:
    workspace, _ = trained
    fresh.run([sys.executable, "-m", "dvc", "repro", "-q", "check"])
    assert fresh.md5s() == workspace.md5s()
    assert set(marks(fresh.run(TRAIN)).values()) == {"cached"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["teacher", "distill", "refine", "augment"])
def test_kill_and_go_on(trained: tuple[Workspace, str], fresh: Workspace, stage: str) -> None:
    workspace, _ = trained
    run = subprocess.Popen(
        TRAIN, cwd=fresh.root, env=fresh.environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    # The line of the first finished epoch, or of the GAN's first checkpoint.
    for line in run.stdout:
        if line.startswith(stage) and (", loss " in line or ", generator " in line):
            break
    time.sleep(0.5)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=20)
    output = fresh.run(TRAIN)
    assert "going on from checkpoint" in output
    assert fresh.md5s() == workspace.md5s()
    assert fresh.states("flow_run") == ["COMPLETED", "CRASHED"]
    assert "RUNNING" not in fresh.states("task_run")

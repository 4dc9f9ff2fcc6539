import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages import check
from stages.core.runner import stage
from stages.core.runner.errors import GateFailed
from stages.core.runner.params import load_section
from stages.core.runner.runtime import Resources
from tests.conftest import ROOT

RESOURCES = Resources(device="cpu", threads=1, processes=1, cache_gb=1)
PICTURES = {
    "validate": ["grid", "complaints"], "teacher": ["curves"], "distill": ["curves"],
    "augment": ["samples"], "benchmark": ["latency"],
}  # fmt: skip


def quality(auroc: float) -> dict[str, Any]:
    figures = dict.fromkeys(("accuracy", "macro_f1", "ece", "nll"), 0.5)
    return {"auroc": auroc, **figures, "recall": {"functional": 0.9, "defective": 0.7}}


GAIN = {"gain": 0.02, "low": 0.001, "high": 0.04}


def reports(root: Path) -> dict[str, dict[str, Any]]:
    split = {"groups": 3, "images": 100, "classes": {"functional": 60, "defective": 40}}
    row = {"engine": "ort", "provider": "cpu", "precision": "fp32", "p90_ms": 1.0, "p99_ms": 1.0}
    row |= {"model": "student", "batch": 1, "p50_ms": 0.9, "images_per_s": 1111.0}
    absent = {"model": "student", "engine": "ort", "provider": "cuda", "batch": 1}
    found: dict[str, dict[str, Any]] = {
        "validate": {
            "images": 300, "expectations": 9, "image_px": 32, "bit_depth": 8, "channels": 1,
            "layout": "class folders", "bad_images": 2, "other_files": 1,
            "split_tears_groups": False, "leaks": {"groups_joined": 1, "left_out": 0},
            "duplicates": {"identical": 0, "near": 3, "across_groups": 1, "contradicting": 0},
            "splits": dict.fromkeys(("train", "val", "test"), split),
        },
        "teacher": {
            "backbone": "b", "parameters": 1000, "probe": quality(0.80),
            "finetuned": quality(0.85), "finetuning_gain": GAIN,
        },
        "targets": {"views": 2},
        "distill": {
            "parameters": 100, "student": quality(0.86), "control": quality(0.84),
            "gain_over_control": GAIN, "gain_over_teacher": GAIN,
        },
        "augment": {
            "class": "defective", "images": 9, "kept_share": 0.9, "kid": 1.0, "kid_real": 0.1,
        },
        "refine": {
            "accepted": False, "val_auroc": {"distilled": 0.8, "real": 0.8, "synthetic": 0.7},
            "distilled": quality(0.86), "real": quality(0.86), "synthetic": quality(0.8),
            "gain_over_real": GAIN,
        },
        "export": {
            "auroc": 0.86, "bytes": 250_000, "temperature": 1.1,
            "parity": {"max_abs": 1e-7, "decisions_changed": 0, "images": 100},
            "calibrated": quality(0.86), "uncalibrated": quality(0.86),
        },
        "benchmark": {
            "device": "cpu", "threads": 2, "bytes": {"teacher": 12_000_000},
            "rows": {"student_ort_cpu_b1": row, "x": {**absent, "unavailable": "not here"}},
            "speed_up": {
                "student_ort_over_teacher_torch_b1": 9.0, "student_ort_over_teacher_ort_b1": 4.0,
            },
        },
    }  # fmt: skip
    for name, metrics in found.items():
        (root / name).mkdir()
        (root / name / "metrics.json").write_text(json.dumps(metrics))
        for picture in PICTURES.get(name, ()):
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / name / f"{picture}.png")
    return found


@pytest.fixture
def paths(tmp_path: Path) -> check.Paths:
    reports(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "fp32.onnx").write_bytes(b"onnx")
    return check.Paths(
        **{name: tmp_path / name for name in check.REPORTS},
        onnx=tmp_path / "onnx",
        release=tmp_path / "release",
        page=tmp_path / "index.html",
        metrics=tmp_path / "check.json",
    )


def run(paths: check.Paths) -> None:
    params = load_section(ROOT / "params.yaml", "check", check.Params)
    with stage.staged(paths) as partial:
        check.run(params, paths=partial, resources=RESOURCES)


def test_a_good_model_is_released(paths: check.Paths) -> None:
    run(paths)
    assert sorted(p.name for p in paths.release.iterdir()) == [
        "MODEL_CARD.md", "labels.json", "model.onnx", "predict.py",
    ]  # fmt: skip
    assert json.loads(paths.metrics.read_text())["passed"] is True
    assert json.loads((paths.release / "labels.json").read_text()) == ["functional", "defective"]
    page = paths.page.read_text()
    assert 'src="data:image/png' in page
    assert "http" not in page
    assert "not here" in page


@pytest.mark.parametrize(
    ("stage_name", "key", "value", "gate"),
    [
        ("export", "auroc", 0.5, "auroc"),
        ("teacher", "probe.auroc", 0.9, "finetuning_gain"),
        ("teacher", "finetuned.auroc", 0.95, "retention"),
        ("distill", "gain_over_control.low", -0.3, "gain_over_control_low"),
        ("distill", "parameters", 500, "parameter_share"),
        ("export", "parity.max_abs", 0.01, "parity_max_abs"),
        ("export", "parity.decisions_changed", 1, "decisions_changed"),
        ("export", "bytes", 5_000_000, "megabytes"),
        ("benchmark", "speed_up.student_ort_over_teacher_torch_b1", 1.0, "speed_up"),
    ],
)
def test_each_gate_catches_what_it_is_for(
    paths: check.Paths, stage_name: str, key: str, value: float, gate: str
) -> None:
    file = getattr(paths, stage_name) / "metrics.json"
    metrics = json.loads(file.read_text())
    inner = metrics
    *parents, last = key.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    file.write_text(json.dumps(metrics))
    with pytest.raises(GateFailed, match=rf"{gate} = .*limit .*margin -"):
        run(paths)
    judged = json.loads(paths.metrics.read_text())
    assert judged["passed"] is False
    assert judged["gates"][gate]["passed"] is False
    assert "not passed" in paths.page.read_text()
    assert not paths.release.exists()

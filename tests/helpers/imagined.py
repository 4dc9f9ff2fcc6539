"""Reports of an imagined run, for `check` to judge."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from stages import check
from stages.core.results.every_stage import STAGES
from stages.core.results.schema.shipped import Disturbed
from stages.core.runner import stage
from stages.core.runner.params import load_section
from tests.conftest import RESOURCES, ROOT

PICTURES = {
    "validate": ["grid", "complaints"], "teacher": ["curves"], "distill": ["curves"],
    "augment": ["samples", "probabilities"], "export": ["ranking", "reliability", "mistakes"],
    "benchmark": ["latency", "distribution"],
}  # fmt: skip


def quality(auroc: float) -> dict[str, Any]:
    figures = dict.fromkeys(("accuracy", "macro_f1", "nll"), 0.5) | {"ece": 0.04}
    recall = {"functional": 0.9, "defective": 0.7}
    return {"auroc": auroc, "auroc_within_groups": auroc - 0.05, **figures, "recall": recall}


WITHIN = {"gain": 0.03, "low": 0.011, "high": 0.05}
GAIN: dict[str, Any] = {"gain": 0.02, "low": 0.001, "high": 0.04, "within_groups": WITHIN}
PROMISE: dict[str, Any] = {
    "label": "defective", "min_recall": 0.95, "max_false_alarms": 0.1,
    "thresholds": {"low": 0.1234, "high": 2.0},
    "test": {"recall": 0.91, "false_alarms": 0.0, "asked": 0.4321},
    "recall_margin": {"gain": -0.04, "low": -0.1, "high": 0.011},
    "false_alarm_margin": {"gain": 0.1, "low": 0.08, "high": 0.1},
}  # fmt: skip
EASIER = PROMISE | {
    "min_recall": 0.9, "recall_margin": {"gain": 0.01, "low": -0.05, "high": 0.06},
}  # fmt: skip
PARITY = {"providers": "cpu", "max_abs": 1e-7, "decisions_changed": 0, "images": 100}
PARTS = """kind,name,images,accuracy,auroc
group,<i>odd</i>,40,0.5000,
group,module 3,60,0.9000,0.9512
"""
OVER_CHANCE = {
    "gain": 0.36, "low": 0.3149, "high": 0.41,
    "within_groups": {"gain": 0.31, "low": 0.2251, "high": 0.39},
}  # fmt: skip
NOT_SHOWN = {"gain": 0.012, "low": -0.003, "high": 0.027}
FIDELITY = {
    **dict.fromkeys(("precision", "recall", "density", "coverage", "authentic"), 0.5),
    "probability": 0.4, "kernel_distance": {"mean": 0.3, "deviation": 0.1},
    "classification_score": {"auroc": 0.7, "auroc_within_groups": 0.6},
}  # fmt: skip


def predicted(margins: NDArray[np.float64]) -> pd.DataFrame:
    """What a model answers for 100 images of ten groups."""
    number = np.arange(100)
    label = (np.linspace(-1, 1, 100) + np.random.default_rng(0).normal(size=100) / 2 > 0).astype(
        int
    )
    return pd.DataFrame({
        "file_name": [f"{n}.png" for n in number], "group": [f"m{n % 10}" for n in number],
        "label": label, "shipped/functional": 0.0, "shipped/defective": margins,
    })  # fmt: skip


def reports(root: Path) -> None:
    """Reports as the stages before write them, of an imagined run."""
    split = {"groups": 3, "images": 100, "classes": {"functional": 60, "defective": 40}}
    latency = {"model": "student", "engine": "ort", "precision": "fp32", "batch": 1, "threads": 2}
    figures = {
        "calls": 9, "p50_ms": 0.9, "p90_ms": 1.0, "p95_ms": 1.0, "p99_ms": 1.0, "p999_ms": 1.0,
        "max_ms": 7.0, "images_per_s": 1111.0, "spread": 0.02, "is_stable": True,
        "rounds_ms": {"1": 0.9, "2": 0.9},
    }  # fmt: skip
    start = {"cold_start_ms": 30.0, "warm_start_ms": 20.0, "first_ms": 2.0, "peak_mb": 90.0}
    metrics: dict[str, dict[str, Any]] = {
        "validate": {
            "images": 300, "expectations": 9, "image_px": 32, "bit_depth": 8, "channels": 1,
            "fit": "stretch", "symmetries": "all", "look_alikes": {},
            "groups": 9, "groups_given": True, "layout": "class folders",
            "bad_images": 2, "other_files": 1,
            "split_method": "stratified_group", "split_tears_groups": False,
            "leaks": {"groups_joined": 1, "left_out": 0, "leaking": 0},
            "duplicates": {"identical": 0, "near": 3, "across_groups": 1, "contradicting": 0},
            "splits": dict.fromkeys(("train", "val", "test"), split), "unlabelled": 0, "drift": {},
        },
        "teacher": {
            "backbone": "b", "members": 1, "parameters": 1000, "macs": 10, "probe": quality(0.80),
            "finetuned": quality(0.85), "finetuning_gain": GAIN, "validation": {"auroc": 0.8},
        },
        "targets": {"views": 2, "view_auroc": 0.9, "plain_auroc": 0.9},
        "distill": {
            "backbone": "b", "parameters": 100, "macs": 1, "student": quality(0.86),
            "control": quality(0.84), "gain_over_control": GAIN, "gain_over_teacher": GAIN,
            "seeds": {"count": 1, "student": {"mean": 0.86}, "control": {"mean": 0.84}},
            "validation": {"student": {"auroc": 0.8}, "control": {"auroc": 0.8}},
        },
        "augment": {
            "mode": "translate", "to": "defective", "images": 9, "kept_share": 0.9,
            "refused": None, "ended_early": None, "snapshot": 1000,
            **dict.fromkeys(("synthetic", "real", "other"), FIDELITY),
        },
        "refine": {
            "accepted": False, "winner": "distilled", "seeds": 2,
            "val_auroc": {"distilled": 0.8, "real": 0.8, "synthetic": 0.7},
            "val_auroc_within_groups": {"distilled": 0.81, "real": 0.82, "synthetic": 0.71},
            "distilled": quality(0.86), "real": quality(0.86), "synthetic": quality(0.8),
            "gain_over_real": GAIN,
            "val_gain_over_real": GAIN, "val_gain_over_distilled": NOT_SHOWN,
        },
        "export": {
            "auroc": 0.86, "auroc_within_groups": 0.81, "bytes": 250_000, "test_files": "",
            "temperature": 1.0,
            "gain_over_chance": OVER_CHANCE, "gain_over_teacher": GAIN,
            "operating_point": None, "promises": {"90%": EASIER},
            "confusion": {
                "functional": {"functional": 54, "defective": 6},
                "defective": {"functional": 12, "defective": 28},
            },
            "fitted_temperature": 1.63, "val_calibration_gain": NOT_SHOWN,
            "robustness": {kind: GAIN | {"gain": -0.02} for kind in get_args(Disturbed)},
            "parity": PARITY, "evidence_parity": PARITY, "variants": {}, "failed_variants": {},
            "calibrated": quality(0.86), "uncalibrated": quality(0.86),
        },
        "benchmark": {
            "machine": {"CPU flags": "avx2"}, "starts": {"student_ort_cpu": start},
            "load": {}, "highest_rate": None,
            "device": "cpu", "threads": 2, "bytes": {"teacher": 12_000_000, "student": 250_000},
            "rows": {
                "student_ort_cpu_b1": {**latency, "provider": "cpu", **figures},
                "student_ort_cuda_b1": {**latency, "provider": "cuda", "unavailable": "not here"},
            },
            "speed_up": {
                "student_ort_over_teacher_torch_b1": 9.0, "student_ort_over_teacher_ort_b1": 4.0,
            },
        },
    }  # fmt: skip
    for name, content in metrics.items():
        (root / name).mkdir()
        if name == "export":
            (root / name / "parts.csv").write_text(PARTS)
            predicted(np.linspace(-1, 1, 100)).to_csv(root / name / "predictions.csv", index=False)
        (root / name / "metrics.json").write_text(json.dumps(content))
        for picture in PICTURES.get(name, ()):
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / name / f"{picture}.png")


def reported(folder: Path) -> check.Paths:
    """The paths of `check` in a folder, with the reports of an imagined run."""
    reports(folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "fp32.onnx").write_bytes(b"onnx")
    (folder / "onnx" / "evidence.onnx").write_bytes(b"evidence")
    (folder / "accepted.json").write_text("{}")
    return check.Paths(
        **{name: folder / name for name in STAGES},
        onnx=folder / "onnx",
        accepted=folder / "accepted.json",
        release=folder / "release",
        page=folder / "index.html",
        metrics=folder / "check.json",
    )


def run(paths: check.Paths, **changes: Any) -> dict[str, Any]:
    """Run `check` with other params than params.yaml's; returns its gates."""
    params = load_section(ROOT / "params.yaml", "check", check.Params)
    with stage.staged(paths) as partial:
        check.run(params.model_copy(update=changes), paths=partial, resources=RESOURCES)
    gates: dict[str, Any] = json.loads(paths.metrics.read_text())["gates"]
    return gates


def change(file: Path, key: str, value: Any) -> None:
    """Set a key of a metrics file; dots go down."""
    metrics = json.loads(file.read_text())
    inner = metrics
    *parents, last = key.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    file.write_text(json.dumps(metrics))


def rename(paths: check.Paths, old: str, new: str) -> None:
    """Give a class another name in the metrics of all stages."""
    for name in STAGES:
        file = getattr(paths, name) / "metrics.json"
        renamed = file.read_text().replace(f'"{old}"', json.dumps(new))
        file.write_text(renamed)


def recall_many(paths: check.Paths) -> None:
    """Let the model have 25 classes, c0 to c24, with a recall of 0 to 24 of 30."""
    recall = {f"c{n}": n / 30 for n in range(25)}
    change(paths.export / "metrics.json", "calibrated.recall", recall)
    counts = {name: dict.fromkeys(recall, 1) for name in recall}
    change(paths.export / "metrics.json", "confusion", counts)

import json
from pathlib import Path
from typing import Any

import pytest

from flows.release import check_files
from stages import check
from stages.core.release import page as page_of
from stages.core.results.escape import markdown_cell
from stages.core.results.every_stage import STAGES, read_reports
from stages.core.runner.errors import DataError, GateFailed
from tests.helpers.imagined import GAIN, PARITY, change, reported, run


@pytest.fixture
def paths(tmp_path: Path) -> check.Paths:
    return reported(tmp_path)


def test_a_good_model_is_released(paths: check.Paths) -> None:
    run(paths)
    assert sorted(p.name for p in paths.release.iterdir()) == [
        "MODEL_CARD.md", "evidence.onnx", "labels.json", "manifest.json", "metrics.json",
        "model.onnx", "predict.py",
    ]  # fmt: skip
    check_files(paths.release)
    released = json.loads((paths.release / "metrics.json").read_text())
    assert released == json.loads((paths.export / "metrics.json").read_text())
    assert json.loads(paths.metrics.read_text())["passed"] is True
    assert json.loads((paths.release / "labels.json").read_text()) == ["functional", "defective"]
    page = paths.page.read_text()
    assert 'src="data:image/png' in page
    assert "http" not in page
    assert "not here" in page
    assert "background" not in (paths.release / "MODEL_CARD.md").read_text()


def test_a_failed_gate_leaves_the_last_good_release(paths: check.Paths) -> None:
    run(paths)
    before = {p.name: p.read_bytes() for p in paths.release.iterdir()}
    (paths.onnx / "fp32.onnx").write_bytes(b"a worse model")
    change(paths.export / "metrics.json", "auroc", 0.5)
    with pytest.raises(GateFailed):
        run(paths)
    assert {p.name: p.read_bytes() for p in paths.release.iterdir()} == before
    change(paths.export / "metrics.json", "auroc", 0.9)
    run(paths)
    assert (paths.release / "model.onnx").read_bytes() == b"a worse model"


INT8 = "int8_u8s8_channel_minmax"


@pytest.mark.parametrize(
    ("changes", "ms", "reason"),
    [
        ({}, 0.5, ""),
        ({}, 0.8, "it is 1.12 times as fast as float32; check.min_variant_speed_up is 1.15"),
        ({}, None, "it could not be timed"),
        ({"val_loss": 0.0061}, 0.5, "its accuracy on the validation split is lower by 0.0061"),
        ({"loss": 0.02}, 0.5, "its accuracy on the test split is lower by 0.0200; check.max_var"),
        (
            {"gain": {"gain": -0.36, "low": -0.4, "high": -0.3}},
            0.5,
            "its AUROC on the test split changes by -0.360 [-0.400, -0.300]; check.max",
        ),
        ({"gain": {"gain": -0.01, "low": -0.02, "high": 0.0}}, 0.5, ""),
    ],
)
def test_another_format_ships_if_it_earns_it(
    paths: check.Paths, changes: dict[str, Any], ms: float | None, reason: str
) -> None:
    answers = {
        "val_loss": 0.002, "loss": -0.001, "gain": GAIN, "recall": {"a": 1.0},
        "operating_point": None,
        "parity": PARITY | {"max_abs": 0.03, "decisions_changed": 2}, **changes,
    }  # fmt: skip
    variant = {"bytes": 99_000, "on": {"cpu": answers}}
    names = [INT8, f"{INT8}_float_ends", "fp16"]
    change(paths.export / "metrics.json", "variants", dict.fromkeys(names, variant))
    rows = json.loads((paths.benchmark / "metrics.json").read_text())["rows"]
    known = dict(rows["student_ort_cpu_b1"])
    for name, value in zip(names, (ms, ms and 1.02 * ms, 2.0), strict=True):
        (paths.onnx / f"{name}.onnx").write_bytes(name.encode())
        if value:
            rows[f"student_ort_cpu_b1_{name}"] = known | {
                "p50_ms": value, "precision": name, "rounds_ms": {"1": value, "2": value * 0.5},
            }  # fmt: skip
    change(paths.benchmark / "metrics.json", "rows", rows)
    run(paths)
    listed = json.loads(paths.metrics.read_text())["offers"]
    offers = {offer["precision"]: offer for offer in listed.values()}
    card, page = (paths.release / "MODEL_CARD.md").read_text(), paths.page.read_text()
    assert [(offer["precision"], offer["provider"]) for offer in listed.values()] == [
        (name, "cpu") for name in names
    ]
    assert "fp16 | 0.45, cpu | not: " in card
    file = paths.release / "model_int8_cpu.onnx"
    if reason:
        assert offers[INT8]["reason"].startswith(reason)
        assert not file.exists()
        assert f"| {INT8} |" in card
        assert markdown_cell(reason) in card
        assert reason in page
    else:
        assert offers[INT8]["file"] == "model_int8_cpu.onnx"
        assert file.read_bytes() == INT8.encode()
        assert offers[names[1]]["reason"] == "another is faster"
        assert f"| {INT8} | 1.80, cpu | `model_int8_cpu.onnx` |" in card
        assert "ships as model_int8_cpu.onnx" in page
    check_files(paths.release)
    # fp16 is slower than others that are as good, if these were timed: off the front.
    by_name = {c.name: c for c in page_of.choices(read_reports(folders(paths)))}
    assert by_name["student, ort, fp16"].is_best == (ms is None)
    assert by_name[min(by_name, key=lambda name: by_name[name].ms)].is_best
    assert "Accuracy against latency" in page


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_a_format_ships_for_the_provider_that_it_was_judged_on(
    paths: check.Paths, loss: float
) -> None:
    answers = {
        "val_loss": 0.0, "loss": 0.0, "gain": GAIN, "recall": {"a": 1.0}, "operating_point": None,
        "parity": PARITY,
    }  # fmt: skip
    variants = {
        "fp16": {"bytes": 9, "on": {"cpu": answers, "cuda": answers | {"loss": loss}}},
        "int8": {"bytes": 9, "on": {"cpu": answers}},
    }
    change(paths.export / "metrics.json", "variants", variants)
    rows = json.loads((paths.benchmark / "metrics.json").read_text())["rows"]
    usual = rows["student_ort_cpu_b1"]
    for provider, name, ms in (
        ("cuda", "", 0.9), ("cpu", "_fp16", 0.3), ("cuda", "_fp16", 0.3), ("cpu", "_int8", 0.4),
        ("cuda", "_int8", 0.2),
    ):  # fmt: skip
        rows[f"student_ort_{provider}_b1{name}"] = usual | {
            "provider": provider, "precision": name[1:] or "fp32", "rounds_ms": {"1": ms, "2": ms},
        }  # fmt: skip
    change(paths.benchmark / "metrics.json", "rows", rows)
    for name in variants:
        (paths.onnx / f"{name}.onnx").write_bytes(name.encode())
    run(paths)
    offers = {
        (offer["precision"], offer["provider"]): offer["file"] or offer["reason"]
        for offer in json.loads(paths.metrics.read_text())["offers"].values()
    }
    lost = "its accuracy on the test split is lower by 0.0200; check.max_variant_loss is 0.005"
    assert offers == {
        ("fp16", "cpu"): "model_fp16_cpu.onnx",
        ("int8", "cpu"): "another is faster",
        ("fp16", "cuda"): lost if loss else "model_fp16_cuda.onnx",
        ("int8", "cuda"): "its answers there were not measured",
    }
    assert (paths.release / "model_fp16_cpu.onnx").read_bytes() == b"fp16"
    assert (paths.release / "model_fp16_cuda.onnx").exists() == (not loss)


def folders(paths: check.Paths) -> dict[str, Path]:
    return {name: getattr(paths, name) for name in STAGES}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"accepted\.json: .*only `python -m flows\.release` writes it"),
        ("[]", r"accepted\.json: .*take it back from a commit"),
        ('{"champion": {"version": "1.0"}}', r"champion\.version: String should match"),
        ('{"champion": []}', r"accepted\.json: champion"),
    ],
)
def test_a_broken_history_is_named(paths: check.Paths, content: str, words: str) -> None:
    paths.accepted.write_text(content)
    with pytest.raises(DataError, match=words):
        run(paths)


def test_metrics_of_other_code_are_refused_by_name(paths: check.Paths) -> None:
    file = paths.teacher / "metrics.json"
    metrics = json.loads(file.read_text())
    del metrics["finetuned"]
    file.write_text(json.dumps(metrics))
    with pytest.raises(DataError, match=r"teacher/metrics\.json: finetuned: .*run its stage again"):
        run(paths)

"""What the gates of `check` let pass, and what they stop."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from stages import check
from stages.core.results.champion import Champion, fingerprint, pack
from stages.core.results.every_stage import STAGES
from stages.core.results.gates import LEAST_GROUP, MEANINGS
from stages.core.results.predictions import logits
from stages.core.results.schema.shipped import Disturbed
from stages.core.runner.errors import GateFailed, ParamsError
from stages.core.runner.params import load_yaml
from tests.conftest import ROOT
from tests.helpers.imagined import (
    GAIN,
    NOT_SHOWN,
    PARITY,
    PARTS,
    PROMISE,
    change,
    predicted,
    recall_many,
    reported,
    run,
)


@pytest.fixture
def paths(tmp_path: Path) -> check.Paths:
    return reported(tmp_path)


@pytest.mark.parametrize(
    ("stage_name", "key", "value", "gate"),
    [
        ("export", "auroc", 0.5, "auroc"),
        ("export", "auroc_within_groups", 0.6, "auroc_within_groups"),
        ("export", "calibrated.ece", 0.3, "ece"),
        ("teacher", "finetuning_gain.high", -0.001, "finetuning_gain"),
        ("export", "gain_over_teacher.high", -0.04, "gain_over_teacher"),
        ("distill", "gain_over_control.high", -0.001, "gain_over_control"),
        (
            "distill",
            "gain_over_control.within_groups.high",
            -0.001,
            "gain_over_control_within_groups",
        ),
        ("distill", "parameters", 500, "parameter_share"),
        ("export", "parity.max_abs", 0.01, "parity_max_abs"),
        ("export", "parity.decisions_changed", 1, "decisions_changed"),
        ("export", "evidence_parity.max_abs", 0.01, "parity_max_abs"),
        ("export", "bytes", 5_000_000, "megabytes"),
        ("benchmark", "speed_up.student_ort_over_teacher_torch_b1", 1.0, "speed_up"),
    ],
)
def test_each_gate_catches_what_it_is_for(
    paths: check.Paths, stage_name: str, key: str, value: float, gate: str
) -> None:
    change(getattr(paths, stage_name) / "metrics.json", key, value)
    parameter, meaning, advice = MEANINGS[gate]
    limits = load_yaml(ROOT / "params.yaml")["check"]
    with pytest.raises(GateFailed) as caught:
        run(paths)
    message = str(caught.value)
    assert f"{meaning} is " in message
    assert f", but check.{parameter} is {limits[parameter]:g}" in message
    assert "No release was written, and an earlier one stays; the report shows" in message
    verdict = json.loads(paths.metrics.read_text())
    assert verdict["passed"] is False
    assert verdict["gates"][gate]["passed"] is False
    page = paths.page.read_text()
    assert "not passed" in page
    assert f"to try: {advice}" in message
    assert f"to try: {advice}." in page
    assert not paths.release.exists()


def without_within(value: Any) -> Any:
    """Metrics less their figures within groups."""
    if not isinstance(value, dict):
        return value
    return {k: without_within(v) for k, v in value.items() if not k.endswith("within_groups")}


def test_a_folder_without_groups_has_no_gates_within_them(paths: check.Paths) -> None:
    every = run(paths)
    for name in STAGES:
        file = getattr(paths, name) / "metrics.json"
        file.write_text(json.dumps(without_within(json.loads(file.read_text()))))
    left = run(paths)
    assert every.keys() - left.keys() == {
        "auroc_within_groups", "gain_over_control_within_groups",
    }  # fmt: skip
    for document in (paths.page, paths.release / "MODEL_CARD.md"):
        assert "ithin groups" not in document.read_text()


def test_classes_and_groups_may_have_gates_of_their_own(paths: check.Paths) -> None:
    gates = run(paths, min_recall={"defective": 0.7}, min_worst_group_accuracy=0.5)
    assert gates["recall defective"]["value"] == 0.7
    assert gates["worst_group_accuracy"]["value"] == 0.5
    with pytest.raises(GateFailed, match=r"of defective is 0\.7, but check\.min_recall\['def"):
        run(paths, min_recall={"defective": 0.71})
    with pytest.raises(GateFailed, match=r"in a group of 20 images or more is 0\.5, but"):
        run(paths, min_worst_group_accuracy=0.6)
    small = PARTS.replace(",40,", f",{LEAST_GROUP - 1},")
    (paths.export / "parts.csv").write_text(small)
    assert run(paths, min_worst_group_accuracy=0.6)["worst_group_accuracy"]["value"] == 0.9


def test_a_misspelt_class_costs_no_report(paths: check.Paths) -> None:
    with pytest.raises(ParamsError, match=r"min_recall: cat: no such class; there are func"):
        run(paths, min_recall={"cat": 0.5, "defective": 0.5})
    verdict = json.loads(paths.metrics.read_text())
    assert verdict["passed"] is False
    assert [name for name in verdict["gates"] if "recall" in name] == ["recall defective"]
    page = paths.page.read_text()
    assert "not passed" in page
    assert "check.min_recall: cat: no such class; there are functional, defective." in page
    assert not paths.release.exists()


@pytest.mark.parametrize("side", ["recall", "false_alarm"])
def test_a_promise_that_is_clearly_broken_ships_nothing(paths: check.Paths, side: str) -> None:
    assert not any(name.endswith("_margin") for name in run(paths)), "nothing is promised"
    file = paths.export / "metrics.json"
    change(file, "operating_point", PROMISE)
    gates = run(paths)
    assert {"recall_margin", "false_alarm_margin"} <= gates.keys()
    assert gates["recall_margin"]["value"] == -0.04, "missed, but not clearly"
    broken = {"gain": -0.09, "low": -0.12, "high": -0.001}
    change(file, f"operating_point.{side}_margin", broken)
    with pytest.raises(GateFailed, match=r"export\.operating_point promises is -0\.09 \["):
        run(paths)
    assert f"{side}_margin" in run(paths, min_promise_margin=-0.01)
    assert f"{side}_margin" not in run(paths, min_promise_margin=None)
    for nothing in (None, {"gain": -0.09, "low": None, "high": None}):
        change(file, f"operating_point.{side}_margin", nothing)
        assert f"{side}_margin" not in run(paths), "promised to nobody, or by too few groups"


def test_a_format_has_to_keep_floors_and_promises_too(paths: check.Paths) -> None:
    broken = {"gain": -0.09, "low": -0.12, "high": -0.001}
    answers = {
        "val_loss": 0.0, "loss": 0.0, "gain": GAIN, "parity": PARITY,
        "recall": {"functional": 0.9, "defective": 0.6}, "operating_point": PROMISE,
    }  # fmt: skip
    file = paths.export / "metrics.json"
    change(file, "operating_point", PROMISE)
    change(file, "variants", {"int8": {"bytes": 9, "on": {"cpu": answers}}})
    metrics = json.loads((paths.benchmark / "metrics.json").read_text())
    usual = metrics["rows"]["student_ort_cpu_b1"]
    quick = {**usual, "precision": "int8", "rounds_ms": {"1": 0.45, "2": 0.45}}
    change(
        paths.benchmark / "metrics.json",
        "rows",
        metrics["rows"] | {"student_ort_cpu_b1_int8": quick},
    )
    (paths.onnx / "int8.onnx").write_bytes(b"int8")

    def reason(**changes: Any) -> str:
        run(paths, **changes)
        words: str = json.loads(paths.metrics.read_text())["offers"]["int8_cpu"]["reason"]
        return words

    assert reason() == ""
    assert "recall of defective is 0.6, but check.min_recall" in reason(
        min_recall={"defective": 0.65}
    )
    change(
        file,
        "variants.int8.on.cpu.operating_point",
        PROMISE | {"recall_margin": broken},
    )
    assert "how far recall is above what export.operating_point promises is -0.09" in reason()


def test_disturbed_images_may_have_gates(paths: check.Paths) -> None:
    change(paths.export / "metrics.json", "robustness.blur.high", -0.11)
    with pytest.raises(
        GateFailed, match=r"images \(blur\) over .*min_gain_under\['blur'\] is -0\.1"
    ):
        run(paths, min_gain_under={"blur": -0.1, "noise": -0.1})
    gates = json.loads(paths.metrics.read_text())["gates"]
    assert (gates["under blur"]["passed"], gates["under noise"]["passed"]) == (False, True)


def test_what_an_interval_leaves_open_stops_no_release(paths: check.Paths) -> None:
    change(paths.teacher / "metrics.json", "finetuning_gain", NOT_SHOWN | {"gain": -0.002})
    gates = run(paths)
    assert gates["finetuning_gain"]["passed"]
    assert gates["finetuning_gain"]["margin"] == NOT_SHOWN["high"]
    assert '<td class="n">-0.003 to +0.027</td>' in paths.page.read_text()
    assert (
        "| finetuning_gain | -0.002 | 0 | open |" in (paths.release / "MODEL_CARD.md").read_text()
    )
    change(paths.teacher / "metrics.json", "finetuning_gain.low", None)
    change(paths.teacher / "metrics.json", "finetuning_gain.high", None)
    with pytest.raises(
        GateFailed, match=r"linear probe is -0\.002, but check\.min_finetuning_gain"
    ):
        run(paths)


def test_limits_are_suggested_that_a_run_as_good_clears(paths: check.Paths) -> None:
    gates = run(paths)
    assert {name: gate["suggested"] for name, gate in gates.items() if gate["suggested"]} == {
        "auroc": 0.81, "auroc_within_groups": 0.73, "ece": 0.05, "parameter_share": 0.12,
        "megabytes": 0.31, "speed_up": 4.5,
    }  # fmt: skip
    limits = {MEANINGS[name].parameter: gate["suggested"] for name, gate in gates.items()}
    run(paths, **{name: limit for name, limit in limits.items() if limit is not None})
    change(paths.export / "metrics.json", "gain_over_chance.low", None)
    assert run(paths)["auroc"]["suggested"] is None


def not_set(paths: check.Paths) -> dict[str, str]:
    """The parameters of the gates that the report says are not set, and suggested limits."""
    _, _, after = paths.page.read_text().partition("<p>Gates that are not set:</p>")
    table = after.partition("</table>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td>.*?<td class=\"n soft\">(.*?)</td></tr>", table)
    return {unescape(parameter): limit for parameter, limit in rows}


def test_the_report_lists_gates_that_are_not_set(paths: check.Paths) -> None:
    recall = {"min_recall['defective']": "0.62", "min_recall['functional']": "0.87"}
    worst = {"min_worst_group_accuracy": "0.37"}
    under = {f"min_gain_under['{kind}']": "0.001" for kind in get_args(Disturbed)}
    run(paths)
    assert not_set(paths) == recall | worst | under
    text = paths.page.read_text()
    assert "<td>recall of defective</td>" in text
    assert "<td>lowest accuracy in a group of 20 images or more</td>" in text

    # None that is set, nor one that says nothing here.
    change(paths.export / "metrics.json", "operating_point", PROMISE)
    change(paths.export / "metrics.json", "robustness.blur.low", -0.1234)
    run(
        paths,
        min_recall={"defective": 0.62},
        min_worst_group_accuracy=0.37,
        min_auroc_within_groups=None,
        min_gain_over_control_within_groups=None,
    )
    assert not_set(paths) == under | {
        "min_gain_under['blur']": "-0.12", "max_asked": "0.54", "min_auroc_within_groups": "0.73",
        "min_gain_over_control_within_groups": "",
    }  # fmt: skip
    (paths.export / "parts.csv").write_text(PARTS.splitlines(keepends=True)[0])
    run(paths, min_gain_under=dict.fromkeys(get_args(Disturbed), 0.0), max_asked=0.54)
    assert not_set(paths) == recall


def test_a_suggested_limit_is_never_above_the_value(paths: check.Paths) -> None:
    for value in (0.0, 0.1, 0.5, 0.994, 0.9961, 1.0):
        change(paths.export / "metrics.json", "calibrated.recall.defective", value)
        gate = run(paths, min_recall={"defective": 0.0})["recall defective"]
        assert 0 <= gate["suggested"] <= value


def test_of_many_classes_few_gates_are_offered(paths: check.Paths) -> None:
    recall_many(paths)
    run(paths)
    offered = [name for name in not_set(paths) if name.startswith("min_recall")]
    assert offered == [f"min_recall['c{n}']" for n in range(6)]


def test_gates_within_groups_may_be_left_out(paths: check.Paths) -> None:
    limits = dict.fromkeys(("min_auroc_within_groups", "min_gain_over_control_within_groups"))
    change(paths.export / "metrics.json", "auroc_within_groups", 0.1)
    change(paths.distill / "metrics.json", "gain_over_control.within_groups.high", -0.9)
    assert not any("within" in name for name in run(paths, **limits))


def test_a_pair_of_images_decides_nothing_within_groups(paths: check.Paths) -> None:
    """One group has both classes, an image of one of them: no interval, and so no gate."""
    change(paths.export / "metrics.json", "auroc_within_groups", 0.0)
    chance = {"gain": -0.5, "low": None, "high": None}
    change(paths.export / "metrics.json", "gain_over_chance.within_groups", chance)
    assert "auroc_within_groups" not in run(paths)


def in_use(paths: check.Paths, margins: NDArray[np.float64]) -> None:
    """Another model, as the last release left it."""
    table = predicted(margins)
    champion = Champion(
        version="1.2.3", release="0" * 32, before=None, auroc=0.8765, decisions=2,
        test_split=fingerprint(table, ""), logits=pack(logits(table, "shipped")),
    )  # fmt: skip
    paths.accepted.write_text(json.dumps({"champion": champion.model_dump()}))


def test_a_candidate_has_to_hold_its_own_against_the_model_in_use(paths: check.Paths) -> None:
    run(paths)
    assert "No model is in use yet." in paths.page.read_text()
    first = {file.name: file.read_bytes() for file in paths.release.iterdir()}

    in_use(paths, np.linspace(-1, 1, 100))
    gates = run(paths)
    page = paths.page.read_text()
    assert "Model v1.2.3 is in use, AUROC 0.876; this one" in page
    assert "This test split has decided 2 releases:" in page
    assert gates["gain_over_champion"]["value"] == 0
    again = {file.name: file.read_bytes() for file in paths.release.iterdir()}
    assert again == first, "what is in use changes nothing in the release"

    in_use(paths, np.where(predicted(np.zeros(100))["label"] == 1, 1.0, -1.0))
    with pytest.raises(
        GateFailed, match=r"over the one in use is -0\.\d+ \[.*check\.min_gain_over_ch"
    ):
        run(paths)
    assert "gain_over_champion" in paths.page.read_text()

    # On other images, nothing can be compared.
    table = pd.read_csv(paths.export / "predictions.csv")
    table.assign(label=1 - table["label"]).to_csv(paths.export / "predictions.csv", index=False)
    run(paths)
    assert "measured on another test split, so the two are not compared" in paths.page.read_text()

"""What the release's own script answers: tables, CSV and JSON, whatever stands in them."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from stages.core.release import predict
from tests.helpers.released import CLASSES, SOUND, call, lines, with_metadata
from tests.helpers.scenes import scene

ODD_NAMES = ["\x1b[31mred.png", "two\nlines.png", os.fsdecode(b"caf\xe9.png"), "\u202egnp.png"]


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "latin-1:strict"])
def test_odd_names_reach_no_terminal(release: Path, tmp_path: Path, encoding: str) -> None:
    for name in [*ODD_NAMES, "größe.png"]:
        (tmp_path / name).write_bytes(SOUND)
        (tmp_path / f"bad {name}").write_bytes(b"")
    ended = call(release, tmp_path, at=tmp_path, PYTHONIOENCODING=encoding)
    for output, count in ((ended.stdout, 5), (ended.stderr, 6)):
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", output)
        assert len(output.splitlines()) == count
    for escaped in (b"\\x1b[31mred.png", b"two\\nlines.png", b"caf\\udce9.png", b"\\u202egnp.png"):
        assert escaped in ended.stdout
        assert escaped in ended.stderr


def test_class_names_are_escaped(release: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(SOUND)
    shutil.copytree(release, tmp_path / "release")
    odd = ["\x1b]0;title\x07", "=1+1\n"]
    model = onnx.load(release / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "classes":
            entry.value = json.dumps(odd)
    onnx.save(model, tmp_path / "release" / "model.onnx")
    (tmp_path / "release" / "labels.json").write_text(json.dumps(odd))
    for form in ("table", "csv", "json"):
        ended = call(tmp_path / "release", "--format", form, "x.png", at=tmp_path)
        assert ended.returncode == 0
        assert b"\x1b" not in ended.stdout
        assert b"\x07" not in ended.stdout


def test_csv_holds_no_formulas(release: Path, tmp_path: Path) -> None:
    names = [
        "=1+1.png",
        "+1.png",
        "-1.png",
        "@1.png",
        "\t1.png",
        "\r1.png",
        'a "b", c.png',
        "a.png",
    ]
    for name in names:
        (tmp_path / name).write_bytes(SOUND)
    ended = call(release, "--format", "csv", "--", *names, at=tmp_path)
    head, *rows = csv.reader(io.StringIO(ended.stdout.decode()))
    assert head == ["file", "class", "probability"]
    assert [row[0] for row in rows] == [
        "'=1+1.png", "'+1.png", "'-1.png", "'@1.png", "'\\t1.png", "'\\r1.png", 'a "b", c.png',
        "a.png",
    ]  # fmt: skip
    assert all(0.5 <= float(row[2]) <= 1 for row in rows)


def test_json_is_json_whatever_fails(release: Path, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(SOUND)
    (tmp_path / "bad.png").write_bytes(b"")
    ended = call(release, "--format", "json", tmp_path, at=tmp_path)
    (row,) = json.loads(ended.stdout)
    assert os.fsencode(row["file"]) == os.fsencode(tmp_path) + b"/\xff.png"
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    nothing = call(release, "--format", "json", "bad.png", at=tmp_path)
    assert json.loads(nothing.stdout) == []
    assert nothing.returncode == 1


def test_what_thresholds_leave_open_goes_to_a_person(release: Path, tmp_path: Path) -> None:
    for seed in range(12):
        scene(width=80 + seed, height=70).save(tmp_path / f"{seed:02d}.png")
    ended = call(release, "--format", "json", tmp_path, at=tmp_path)
    rows = json.loads(ended.stdout)
    assert all("decision" not in row for row in rows)
    scores = sorted(row["probabilities"]["defective"] for row in rows)
    low, high = (scores[3] + scores[4]) / 2, (scores[7] + scores[8]) / 2
    decider = tmp_path / "release"
    shutil.copytree(release, decider)
    with_metadata(release, decider, thresholds=json.dumps([1, low, high]))
    expected = {
        row["file"]: "defective" if (p := row["probabilities"]["defective"]) >= high
        else "functional" if p < low else None
        for row in rows
    }  # fmt: skip
    assert (
        sorted(map(str, expected.values())) == ["None"] * 4 + ["defective"] * 4 + ["functional"] * 4
    )
    by_form = {
        form: call(decider, "--format", form, tmp_path, at=tmp_path).stdout
        for form in ("json", "csv", "table")
    }
    decided = {row["file"]: row["decision"] for row in json.loads(by_form["json"])}
    assert decided == expected
    words = {file: name or "ask a person" for file, name in expected.items()}
    table = list(csv.DictReader(io.StringIO(by_form["csv"].decode())))
    assert {row["file"]: row["decision"] for row in table} == words
    assert {row["class"] for row in table} <= set(CLASSES)
    table_rows = (line.split("\t") for line in lines(by_form["table"]))
    shown = {file: (name, float(p)) for name, p, file in table_rows}
    for row in rows:
        p, best, answer = row["probabilities"], row["class"], expected[row["file"]]
        name = answer or f"ask a person ({best}?)"
        assert shown[row["file"]][0] == name
        assert shown[row["file"]][1] == pytest.approx(p[answer or best], abs=6e-4)


def test_the_table_has_the_probability_of_the_class_that_it_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model: Any = SimpleNamespace(classes=["good", "bad"], thresholds=(1, 0.2, 0.3))
    rows = [predict.Answer("x.png", np.array([1 - p, p], np.float32), "") for p in (0.3, 0.25, 0.1)]
    predict._write("table", model, rows)
    assert lines(capsys.readouterr().out.encode()) == [
        "bad\t0.300\tx.png", "ask a person (good?)\t0.750\tx.png", "good\t0.900\tx.png"
    ]  # fmt: skip


def test_of_several_classes_the_most_probable_other_one_is_the_answer() -> None:
    model: Any = SimpleNamespace(classes=["a", "b", "c"], thresholds=(1, 0.2, 0.5))
    for row, answer in (
        ([0.1, 0.5, 0.4], "b"), ([0.7, 0.2, 0.1], None), ([0.45, 0.19, 0.36], "a"),
        ([0.1, 0.1, 0.8], "c"), ([0.0, 0.9, 0.1], "b"),
    ):  # fmt: skip
        assert predict.decision(model, np.array(row, np.float32)) == answer
    model.thresholds = None
    assert predict.decision(model, np.array([0.3, 0.1, 0.6], np.float32)) == "c"


def test_thresholds_are_not_rounded_to_the_probabilities() -> None:
    above = float(np.nextafter(0.5, 1))
    model: Any = SimpleNamespace(classes=["a", "b"], thresholds=(1, 0.5, above))
    assert predict.decision(model, np.array([0.5, 0.5], np.float32)) is None
    model.thresholds = (1, above, above)
    assert predict.decision(model, np.array([0.5, 0.5], np.float32)) == "a"


@pytest.mark.parametrize(("high", "colour"), [(0.5, 2), (0.3, 0)])
def test_evidence_is_for_the_answer(high: float, colour: int, tmp_path: Path) -> None:
    """Not for the most probable class, where thresholds decide for another; red speaks for it."""
    model: Any = SimpleNamespace(classes=["good", "bad"], thresholds=(1, high, high))
    evidence = np.stack([np.zeros((4, 4)), np.ones((4, 4))]).astype(np.float32)
    seen = predict.Seen(np.full((8, 8, 1), 100, np.uint8), evidence)
    answer = predict.Answer("x.png", np.array([0.6, 0.4], np.float32), "", seen)
    assert list(predict.drawn(model, [answer], tmp_path)) == [answer]
    (file,) = tmp_path.iterdir()
    picture = np.asarray(Image.open(file))[:, 8:]
    assert picture[..., colour].min() > picture[..., 2 - colour].max()


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_streams_that_are_closed_or_full(release: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "a.png").write_bytes(SOUND)
    (tmp_path / "b.png").write_bytes(b"")
    usual = call(release, "a.png", "b.png", "--format", form, at=tmp_path)
    command = f"'{sys.executable}' '{release / 'predict.py'}' a.png b.png --format {form}"
    full = b"error: the output cannot be written (No space left on device); make room, or write it "
    for redirected, status, out, err in (
        ("2>&-", 1, usual.stdout, b""),
        (">&-", 1, b"", usual.stderr),
        (">&- 2>&-", 1, b"", b""),
        (">/dev/full", 2, b"", full + b"elsewhere\n"),
    ):
        words = ["sh", "-c", f"{command} {redirected}"]
        ended = subprocess.run(words, cwd=tmp_path, capture_output=True)
        assert (ended.returncode, ended.stdout, ended.stderr) == (status, out, err), redirected


def test_a_reader_that_has_seen_enough(release: Path, tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"{i:0200}.png").write_bytes(SOUND)
    command = f"'{sys.executable}' '{release / 'predict.py'}' . | head -n 1"
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True)
    assert ended.stderr == b""
    assert ended.stdout.count(b"\n") == 1

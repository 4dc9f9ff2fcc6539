"""The table at the end of a run: what this run made, and nothing else."""

import shutil
from pathlib import Path

import pytest

from flows import summary
from stages.core.results.every_stage import STAGES
from tests.conftest import ROOT
from tests.helpers.imagined import change
from tests.helpers.tiny import TRAIN, make


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A project with the committed figures of somebody else's run."""
    for stage in (*STAGES, "check"):
        folder = tmp_path / "data" / "reports" / stage
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "data" / "reports" / stage / "metrics.json", folder)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def test_only_the_stages_of_this_run_are_shown(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(clone / "data/reports/validate/metrics.json", "images", 321)
    summary.show(clone, ["validate"], "stages run: 1, up to date: 0")
    text = capsys.readouterr().out
    assert "stages run: 1" in text
    assert "321" in text
    for word in ("AUROC", "gates", "report ", "model", "try it", "0.908"):
        assert word not in text


def test_unlabelled_images_stand_beside_the_splits(clone: Path) -> None:
    reports = clone / "data" / "reports"
    assert "unlabelled" not in summary.rows(reports, ["validate"])[0][2]
    change(reports / "validate" / "metrics.json", "unlabelled", 1234)
    assert summary.rows(reports, ["validate"])[0][2].endswith(", unlabelled 1,234")


@pytest.mark.parametrize("count", range(len(STAGES) + 2))
def test_each_target_has_a_table(clone: Path, count: int) -> None:
    """Also where a stage in the middle is the target."""
    order = ["validate", "teacher", "targets", "distill", "augment", "refine", "export"]
    stages = [*order, "benchmark", "check"][:count]
    rows = summary.rows(clone / "data" / "reports", stages)
    overall = [row for row in rows if row[0] != summary.WITHIN]
    assert len(overall) == sum((1, 1, 0, 3, 0, 1, 2, 1, 1)[:count])


def test_figures_within_groups_are_below_the_overall_ones(clone: Path) -> None:
    reports = clone / "data" / "reports"
    gain = {"gain": 0.011, "low": 0.002, "high": 0.02}
    for stage, key, value in (
        ("teacher", "finetuned.auroc_within_groups", 0.813),
        ("teacher", "probe.auroc_within_groups", 0.793),
        ("distill", "student.auroc_within_groups", 0.807),
        ("distill", "control.auroc_within_groups", 0.789),
        ("distill", "gain_over_control.within_groups", gain),
        ("export", "auroc_within_groups", 0.806),
    ):
        change(reports / stage / "metrics.json", key, value)
    rows = summary.rows(reports, ["teacher", "distill", "export", "benchmark"])
    within = [row[1:] for row in rows if row[0] == "  within groups"]
    assert within == [
        ("0.813", "linear probe 0.793"),
        ("0.807", "without teacher 0.789, gain +0.011 [+0.002, +0.020]"),
        ("0.806", ""),
    ]
    names = [row[0] for row in rows]
    assert names[names.index("shipped model: AUROC, size") + 1] == "  within groups"
    assert ("number of 95 % intervals", "2", "") in rows


@pytest.mark.parametrize("is_shown", [True, False])
def test_decisions_stand_beside_the_gain_that_decides(clone: Path, is_shown: bool) -> None:
    reports = clone / "data" / "reports"
    gain = {"gain": 0.011, "low": 0.002 if is_shown else -0.002, "high": 0.02}
    more = {"gain": 0.03, "low": 0.02, "high": 0.04}
    for stage, key, value in (
        ("refine", "accepted", is_shown),
        ("refine", "val_gain_over_real", more),
        ("refine", "val_gain_over_distilled", gain),
        ("export", "temperature", 1.63 if is_shown else 1.0),
        ("export", "val_calibration_gain", gain),
    ):
        change(reports / stage / "metrics.json", key, value)
    rows = summary.rows(reports, ["refine", "export"])
    if is_shown:
        words, outcomes = "validation +0.011 [+0.002, +0.020]: shown to help", ("accepted", "1.63")
    else:
        words, outcomes = "validation +0.011 [-0.002, +0.020]: not shown to help", ("left out",) * 2
    assert rows[0] == ("synthetic images", outcomes[0], words)
    assert rows[1][0] == "calibration"
    assert outcomes[1] in rows[1][1]
    assert rows[1][2] == words


def test_a_gain_without_an_interval_says_so(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gain = {"gain": 0.1, "low": None, "high": None}
    change(clone / "data/reports/distill/metrics.json", "gain_over_control", gain)
    summary.show(clone, ["validate", "teacher", "distill"], "")
    assert "gain +0.100 [no interval: too few groups]" in " ".join(capsys.readouterr().out.split())


def test_the_example_can_be_typed(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = clone / "data" / "elpv" / "my images (2)"
    images.mkdir(parents=True)
    shutil.copy(ROOT / "data/reports/teacher/curves.png", images / "1.png")
    summary.show(clone, [*STAGES, "check"], "")
    assert capsys.readouterr().out.rstrip().endswith("my images (2)/1.png'")


@pytest.mark.slow
def test_a_run_up_to_validate_ends_with_its_own_figures(tmp_path: Path) -> None:
    for workspace in make(tmp_path):
        reports = workspace.root / "data" / "reports"
        shutil.copytree(ROOT / "data" / "reports", reports, dirs_exist_ok=True)
        output = workspace.run([*TRAIN, "--target", "validate"])
        assert f"images  {workspace.metrics('validate')['images']}" in output
        assert "AUROC" not in output
        assert "passed" not in output.splitlines()[-5:]


@pytest.fixture
def no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a run without figures."""
    monkeypatch.setattr(summary, "rows", lambda *_: [])
    (tmp_path / "params.yaml").write_text("data: {dir: images}\n")
    return tmp_path


def test_the_example_is_an_image_that_can_be_typed(
    no_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = no_table / "images"
    (images / "__MACOSX").mkdir(parents=True)
    for name in ("__MACOSX/._1.png", "._1.png", "\x1b]0;pwn\a.png", "notes.txt"):
        (images / name).touch()
    summary.show(no_table, ["check"], "")
    assert capsys.readouterr().out.endswith("predict.py IMAGE\n")
    (images / "z.png").touch()
    summary.show(no_table, ["check"], "")
    output = capsys.readouterr().out
    assert output.endswith("images/z.png\n")
    assert "\x1b" not in output


def test_paths_do_not_control_the_terminal(
    no_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = no_table.rename(no_table.with_name("a\x1b]0;pwn\a"))
    summary.show(root, ["validate"], "")
    assert r"a\x1b]0;pwn\x07/data/reports/validate" in capsys.readouterr().out

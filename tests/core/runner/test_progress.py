import pytest

from stages.core.runner import progress
from stages.core.runner.progress import Progress


def test_time_left_is_reckoned_without_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first step took 100 s, each later one takes 10.
    times = iter([100.0, 110.0, 120.0, 130.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    work = Progress("toil", 4)
    for figures in (None, {"loss": 0.5}, None, None):
        work.step(figures=figures)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "@  25% toil",
        "@  50% toil, loss 0.5, 0:20 left",
        "@  75% toil, 0:10 left",
        "@ 100% toil",
    ]
    assert [progress.parse(line) for line in lines[::3]] == [(25, "toil"), (100, "toil")]
    assert progress.parse("epoch 3") is None


def test_an_interrupted_work_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    work = Progress("toil", 10, done=6)
    work.step()
    work.step()
    assert capsys.readouterr().out == "@  70% toil\n@  80% toil, 0:20 left\n"

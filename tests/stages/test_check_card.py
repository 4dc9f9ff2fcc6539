"""What the model card of `check` says, as Markdown renders it."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from stages import check
from tests.helpers.imagined import WITHIN, change, quality, rename, reported, run


@pytest.fixture
def paths(tmp_path: Path) -> check.Paths:
    return reported(tmp_path)


def html(paths: check.Paths) -> str:
    card = (paths.release / "MODEL_CARD.md").read_text()
    return str(MarkdownIt("commonmark").enable("table").render(card))


def cells(paths: check.Paths) -> list[list[str]]:
    """The text of all tables, by row and cell."""
    rows = re.findall(r"<tr>(.*?)</tr>", html(paths), flags=re.DOTALL)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[unescape(cell) for cell in row] for row in found]


@pytest.mark.parametrize("name", ["a|b", "<script>", "`a`", "*a*", "_a_", "[a](b)", "a\nb"])
def test_users_text_stays_text_in_every_table(paths: check.Paths, name: str) -> None:
    rename(paths, "functional", name)
    change(paths.export / "metrics.json", "failed_variants", {"int8": f"ValueError: {name}"})
    change(paths.augment / "metrics.json", "refused", f"all are {name}")
    nothing = {"accepted": False, "winner": "distilled", "distilled": quality(0.86)}
    (paths.refine / "metrics.json").write_text(json.dumps(nothing))
    run(paths, min_recall={name: 0.5})
    line = name.replace("\n", " ")
    assert [f"recall {line}", "0.9", "0.5", "passed"] in cells(paths)
    assert ["int8", "", f"not: not written: ValueError: {line}"] in cells(paths)
    assert f"Synthetic images: refused, since all are {line}." in unescape(html(paths))
    assert "<script>" not in html(paths)


def test_each_auroc_and_gain_has_its_interval(paths: check.Paths) -> None:
    change(paths.export / "metrics.json", "gain_over_chance.high", 0.52)
    gain = {"gain": -0.01, "low": None, "high": None, "within_groups": WITHIN}
    change(paths.export / "metrics.json", "gain_over_teacher", gain)
    run(paths)
    control = "gain in AUROC, the distilled student over its control"
    within, few = "+0.030 [+0.011, +0.050]", "no interval: too few groups"
    rows = [
        ["with its 95 % interval", "overall", "within groups"],
        ["AUROC of this model", "0.860 [0.815, 1.000]", "0.810 [0.725, 0.890]"],
        ["gain in AUROC, this model over its teacher", f"-0.010 [{few}]", within],
        [control, "+0.020 [+0.001, +0.040]", within],
    ]  # fmt: skip
    at = cells(paths).index(rows[0])
    assert cells(paths)[at : at + 4] == rows
    assert "95 % intervals: 5;" in html(paths)
    assert ["defective", "40", "0.700"] in cells(paths)

    lonely = {"gain": 0.36, "low": None, "high": None}
    change(paths.export / "metrics.json", "gain_over_chance", lonely)
    run(paths)
    assert ["AUROC of this model", f"0.860 [{few}]", ""] in cells(paths)


def test_of_many_classes_those_recalled_least_are_listed(paths: check.Paths) -> None:
    recall = {f"c{n}": n / 30 for n in range(25)}
    change(paths.export / "metrics.json", "calibrated.recall", recall)
    counts = {name: dict.fromkeys(recall, 1) for name in recall}
    change(paths.export / "metrics.json", "confusion", counts)
    run(paths)
    assert "Recall by class, the lowest 20 of 25:" in html(paths)
    assert ["c19", "25", "0.633"] in cells(paths)
    assert "c20" not in {row[0] for row in cells(paths)}

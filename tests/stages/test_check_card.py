"""What the model card of `check` says, as Markdown renders it."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from stages import check
from tests.helpers.imagined import (
    PARTS,
    WITHIN,
    change,
    quality,
    recall_many,
    rename,
    reported,
    run,
)


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
    recall_many(paths)
    run(paths)
    assert "Recall by class, the lowest 20 of 25:" in html(paths)
    assert ["c19", "25", "0.633"] in cells(paths)
    assert "c20" not in {row[0] for row in cells(paths)}


OF_20 = "those with 20 test images or more: lowest"
HEADER = "kind,name,images,accuracy,auroc\n"


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({}, "The test split has a single group."),
        ({"a": (20, 0.5), "b": (19, 0.1)},
         f"over 1 of 2, {OF_20} 0.500, median 0.500, highest 0.500."),
        ({"a": (19, 0.5), "b": (5, 0.1)}, "none of 2 has 20 test images, too few to say."),
        ({f"g{n}": (30 + n, n / 10) for n in range(5)},
         f"over 5 of 5, {OF_20} 0.000, median 0.200, highest 0.400."),
    ],
)  # fmt: skip
def test_groups_differ_without_being_named(
    paths: check.Paths, groups: dict[str, tuple[int, float]], words: str
) -> None:
    rows = (f"group,ward {name},{n},{share},\n" for name, (n, share) in groups.items())
    (paths.export / "parts.csv").write_text(HEADER + "".join(rows))
    run(paths)
    assert words in html(paths)
    assert "ward" not in html(paths)
    change(paths.validate / "metrics.json", "groups_given", False)
    run(paths)
    assert words not in html(paths)


def test_each_domain_has_its_figures(paths: check.Paths) -> None:
    run(paths)
    assert "By domain" not in html(paths)
    rows = "domain,a|b,70,0.8000,0.9111\ndomain,,30,0.9000,\n"
    (paths.export / "parts.csv").write_text(PARTS + rows)
    run(paths)
    assert ["a|b", "70", "0.800", "0.911"] in cells(paths)
    assert ["not given", "30", "0.900", "one class only"] in cells(paths)
    many = "".join(f"domain,d{n},9,0.{n},\n" for n in range(10, 31))
    (paths.export / "parts.csv").write_text(HEADER + many)
    run(paths)
    assert "By domain, the least accurate 20 of 21:" in html(paths)
    assert {"d29", "d30"} & {row[0] for row in cells(paths)} == {"d29"}


APART = "is on one side of the split: the figures below are for other groups"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "found 3 pairs of near duplicates, 1 across groups, 0 with two labels. Each group"),
        ({"duplicates.near": 0}, "Validation found no near duplicates. Each group"),
        ({"duplicates.near": 0, "duplicates.identical": 1}, "found 1 pair of near duplicates, 1"),
        ({"split_tears_groups": True}, "The split is random and separates groups: the figures"),
        (
            {"groups_given": False},
            "3 pairs of near duplicates, 0 with two labels. No groups are given: near duplicates "
            "are on one side of the split, but other images of one object may be on both.",
        ),
        (
            {"groups_given": False, "split_method": "random", "leaks.leaking": 4},
            "The split is random and separates near duplicates: the figures",
        ),
    ],
)  # fmt: skip
def test_the_card_says_what_the_split_keeps_together(
    paths: check.Paths, changes: dict[str, Any], words: str
) -> None:
    for key, value in changes.items():
        change(paths.validate / "metrics.json", key, value)
    run(paths)
    assert words in html(paths)
    is_apart = not changes.keys() & {"split_tears_groups", "groups_given"}
    assert (APART in html(paths)) == is_apart


MEASURED_ON_OTHERS = "They may be of other groups than it learned from: it was measured on such."


def test_the_card_says_what_the_model_is_for(paths: check.Paths) -> None:
    run(paths)
    card = (paths.release / "MODEL_CARD.md").read_text()
    assert "in grey images like those of its data, resized to 32 x 32 pixels." in card
    assert MEASURED_ON_OTHERS in card
    for file in paths.release.glob("*.onnx"):
        assert f"`{file.name}`" in card
    assert "--evidence FOLDER`" in card
    change(paths.validate / "metrics.json", "channels", 3)
    change(paths.validate / "metrics.json", "split_method", "random")
    run(paths)
    card = (paths.release / "MODEL_CARD.md").read_text()
    assert "in colour images" in card
    assert MEASURED_ON_OTHERS not in card

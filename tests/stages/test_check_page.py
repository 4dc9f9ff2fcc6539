"""What the report and the model card of `check` say."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from markdown_it import MarkdownIt

from stages import check
from stages.core.results.schema.shipped import Disturbed
from stages.core.runner.errors import GateFailed
from tests.helpers.imagined import NOT_SHOWN, PARTS, PROMISE, change, reported, run


@pytest.fixture
def paths(tmp_path: Path) -> check.Paths:
    return reported(tmp_path)


@pytest.mark.parametrize("kind", ["group", "both"])
def test_card_and_report_know_of_backgrounds(paths: check.Paths, kind: str) -> None:
    figures = {"kind": kind, "min_images": 12, "groups": 7, "kept": 5}
    change(paths.validate / "metrics.json", "background", figures)
    change(paths.validate / "metrics.json", "channels", 3 if kind == "both" else 1)
    run(paths)
    card = (paths.release / "MODEL_CARD.md").read_text()
    assert "Input `images`: uint8 (batch, 32, 32, 1). Input `backgrounds`, of the same" in card
    assert "the pixelwise median of 12 images or more" in card
    assert "`python predict.py IMAGE --background FOLDER_OR_IMAGE`" in card
    page = paths.page.read_text()
    assert "7 groups have one; images of smaller groups, left as they are: 5." in page
    assert ("as three channels" in page) == (kind == "both")


def test_unlabelled_images_are_told_of(paths: check.Paths) -> None:
    run(paths)
    texts = [paths.page.read_text(), (paths.release / "MODEL_CARD.md").read_text()]
    assert "300 labelled images to" in texts[0]
    assert not any("nlabelled" in text.replace("From 300 labelled", "") for text in texts)
    change(paths.validate / "metrics.json", "images", 1500)
    change(paths.validate / "metrics.json", "unlabelled", 1200)
    run(paths)
    page, card = paths.page.read_text(), (paths.release / "MODEL_CARD.md").read_text()
    assert "From 300 labelled images and 1,200 unlabelled ones to" in page
    assert "Unlabelled: 1,200 of them;" in page
    assert "100 labelled images, and from 1,200 unlabelled ones" in card


NASTY = '<script>alert("1")</script> | `x` [a](http://b)'


def test_labels_are_shown_as_they_are(paths: check.Paths) -> None:
    recall = {NASTY: 0.9, "defective": 0.7}
    for stage_name, models in (
        ("teacher", ("probe", "finetuned")), ("distill", ("student", "control")),
        ("refine", ("distilled", "real", "synthetic")), ("export", ("calibrated", "uncalibrated")),
    ):  # fmt: skip
        for model in models:
            change(getattr(paths, stage_name) / "metrics.json", f"{model}.recall", recall)
    counts = {NASTY: 3, "defective": 1}
    change(paths.export / "metrics.json", "confusion", {NASTY: counts, "defective": counts})
    quoted = NASTY.replace('"', '""')
    (paths.export / "parts.csv").write_text(PARTS.replace("module 3", f'"{quoted}"'))
    change(paths.augment / "metrics.json", "to", f'" onerror="{NASTY}')
    change(paths.validate / "metrics.json", "layout", NASTY)
    change(paths.validate / "metrics.json", "splits.train.classes", {NASTY: 1, "defective": 2})
    run(paths)
    tags = Tags()
    tags.feed(paths.page.read_text())
    assert "script" not in tags.names
    assert tags.attributes <= {
        "alt", "charset", "class", "colspan", "content", "lang", "name", "src",
    }  # fmt: skip
    assert NASTY in "".join(tags.text)
    card = str(MarkdownIt("commonmark").enable("table").render(
        (paths.release / "MODEL_CARD.md").read_text()
    ))  # fmt: skip
    rendered = Tags()
    rendered.feed(card)
    assert "script" not in rendered.names
    assert "href" not in rendered.attributes
    assert "".join(rendered.text).count(NASTY) == 2
    assert json.loads((paths.release / "labels.json").read_text()) == [NASTY, "defective"]


class Tags(HTMLParser):
    """The names of all elements of a page, their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.attributes, self.text = set[str](), set[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize(
    ("changes", "text", "never_seen"),
    [
        ({}, "100 images of 3 groups that training never saw", True),
        ({"splits.test.groups": 1, "splits.test.images": 1}, "1 image of 1 group that", True),
        ({"split_tears_groups": True}, "100 images of 3 groups; the split is random", False),
        ({"groups_given": False}, "100 images that training never saw; no groups are", False),
        ({"groups_given": False, "split_method": "random"}, "no groups are given", False),
        (
            {"groups_given": False, "split_method": "random", "leaks.leaking": 4},
            "100 images; the split is random and separates near duplicates: the figures",
            False,
        ),
        ({"split_method": "random", "leaks.leaking": 4}, "100 images; the split is random", False),
    ],
)
def test_the_test_split_is_described_as_it_is(
    paths: check.Paths, changes: dict[str, Any], text: str, never_seen: bool
) -> None:
    """Whether the model has never met the test split's groups is said only where it is so."""
    for key, value in changes.items():
        change(paths.validate / "metrics.json", key, value)
    run(paths)
    for document in (paths.page, paths.release / "MODEL_CARD.md"):
        content = document.read_text()
        assert text in content
        assert ("that training never saw." in content) == never_seen
    assert ("the model has never met" in paths.page.read_text()) == never_seen


def test_the_report_says_how_many_images_leak(paths: check.Paths) -> None:
    run(paths)
    assert "so that nothing leaks" in paths.page.read_text()
    for key, value in (("split_method", "random"), ("leaks.leaking", 4)):
        change(paths.validate / "metrics.json", key, value)
    run(paths)
    page = paths.page.read_text()
    words = "near duplicates (4 images with one in another split): its figures are too good."
    assert f'<b class="bad">The split is random and separates {words}</b>' in page
    assert "so that nothing leaks" not in page


@pytest.mark.parametrize(
    ("changes", "page", "card"),
    [
        ({}, "", "is stretched to a square. Training took these for the same class: an image, its"),
        ({"fit": "pad", "symmetries": "none"}, "", "is padded with the mean colour of its edges."),
        (
            {"fit": "crop", "symmetries": "rotations", "look_alikes": {"<6> and 9": "a half turn"}},
            "With symmetries = rotations, training shows these classes as each other: "
            "&lt;6&gt; and 9 (a half turn).",
            "cropped to the square in its middle. Training took these for the same class: an image "
            "and its quarter turns.",
        ),
    ],
)  # fmt: skip
def test_what_became_of_the_images_is_told(
    paths: check.Paths, changes: dict[str, Any], page: str, card: str
) -> None:
    for key, value in changes.items():
        change(paths.validate / "metrics.json", key, value)
    run(paths)
    html = paths.page.read_text()
    assert page in html
    assert ("shows these classes as each other" in html) == bool(page)
    assert card in (paths.release / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("is_shown", [True, False])
def test_decisions_stand_beside_the_gain_that_decides(paths: check.Paths, is_shown: bool) -> None:
    gain = {"gain": 0.041, "low": 0.013, "high": 0.069} if is_shown else NOT_SHOWN
    for stage_name, key, value in (
        ("refine", "accepted", is_shown),
        ("refine", "val_gain_over_distilled", gain),
        ("export", "val_calibration_gain", gain),
    ):
        change(getattr(paths, stage_name) / "metrics.json", key, value)
    run(paths)
    page, card = paths.page.read_text(), (paths.release / "MODEL_CARD.md").read_text()
    interval = "+0.041 [+0.013, +0.069]" if is_shown else "+0.012 [-0.003, +0.027]"
    deciding = "+0.020 [+0.001, +0.040]" if is_shown else interval
    outcome = "shown to help on validation" if is_shown else "not shown to help on validation"
    used = "used" if is_shown else "left out"
    assert f"Synthetic images: {outcome} (AUROC {deciding}), so {used}." in card
    assert f"Calibration: {outcome} (cross-entropy lower by {interval} nats), so {used}." in card
    assert (", not calibrated;" in card) is not is_shown
    verdict = "Accepted: shown" if is_shown else "Left out: not shown"
    assert f"<b>{verdict} to help on validation.</b>" in page
    assert f"temperature of 1.630 is {'' if is_shown else 'not '}shown to help" in page
    assert page.count(interval) == 2


def test_a_gain_without_an_interval(paths: check.Paths) -> None:
    """One group in the test split: the gain itself is held against the limit, but not within it."""
    lonely = {"gain": 0.01, "low": None, "high": None}
    gain = lonely | {"within_groups": lonely | {"gain": 0.02}}
    change(paths.distill / "metrics.json", "gain_over_control", gain)
    gates = run(paths)
    assert gates["gain_over_control"]["value"] == 0.01
    assert "gain_over_control_within_groups" not in gates
    for document in (paths.page, paths.release / "MODEL_CARD.md"):
        assert "+0.010 [no interval: too few groups]" in document.read_text()
        assert "+0.020 [no interval: too few groups]" in document.read_text()


def test_figures_within_groups_are_beside_the_overall_ones(paths: check.Paths) -> None:
    run(paths)
    page = paths.page.read_text()
    card = (paths.release / "MODEL_CARD.md").read_text()
    disturbed = len(get_args(Disturbed))
    assert page.count("-0.020 [+0.001, +0.040]") == disturbed
    for text, count in (("+0.020 [+0.001, +0.040]", 5), ("+0.030 [+0.011, +0.050]", 5 + disturbed)):
        assert page.count(text) == count
        assert card.count(text) == 2
    rows = [row for name in ("student, distilled", "student") for row in (name, 0.86, 0.81)]
    assert f"| {rows[0]} | {rows[1]:.3f} | {rows[2]:.3f} |" in card
    cells = "".join(f'<td class="n">{value:.3f}</td>' for value in rows[4:])
    assert f"<td>{rows[3]}</td>{cells}" in page
    assert [page.count(f"95 % intervals: {n};") for n in (2, 4, 5, 10)] == [1] * 4
    assert "95 % intervals: 6;" in card
    assert "0.710, 0.820 and 0.810" in page


@pytest.mark.parametrize(
    ("calls", "tail"),
    [(99, ("", "")), (100, ("3.00", "")), (999, ("3.00", "")), (1000, ("3.00", "4.00"))],
)
def test_a_rare_percentile_needs_enough_calls(
    paths: check.Paths, calls: int, tail: tuple[str, str]
) -> None:
    for name, value in (("calls", calls), ("p99_ms", 3.0), ("p999_ms", 4.0)):
        change(paths.benchmark / "metrics.json", f"rows.student_ort_cpu_b1.{name}", value)
    run(paths)
    cells = (calls, "0.90", "1.00", "1.00", *tail, "7.00", "", "1111")
    row = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    assert f"{row}<td" in paths.page.read_text()


def test_a_busy_machine_is_told_of(paths: check.Paths) -> None:
    run(paths)
    assert "Something else was busy" not in paths.page.read_text()
    change(paths.benchmark / "metrics.json", "rows.student_ort_cpu_b1.spread", 0.31)
    run(paths)
    assert "Something else was busy: in 1 of 2 rows" in paths.page.read_text()
    assert "31 %" in paths.page.read_text()


def test_a_promise_is_told_and_its_price_has_a_gate(paths: check.Paths) -> None:
    run(paths)
    page = paths.page.read_text()
    assert "The model decides for the most probable class;" in page
    cells = (
        '<td class="n">90 %</td><td class="n">10 %</td><td class="n">0.123 to none</td>',
        '<td class="n ">91.0 % [85.0, 96.0]</td>',
        '<td class="n ">0.0 % [0.0, 2.0]</td>',
        '<td class="n">43.2 %</td></tr>',
    )
    assert "".join(cells) in page.replace("\n", "")
    assert "ask a person" not in (paths.release / "MODEL_CARD.md").read_text()

    change(paths.export / "metrics.json", "operating_point", PROMISE)
    confusion = {
        "functional": {"functional": 30, "defective": 0, "": 30},
        "defective": {"functional": 4, "defective": 0, "": 36},
    }
    change(paths.export / "metrics.json", "confusion", confusion)
    run(paths, max_asked=0.5)
    with pytest.raises(GateFailed, match=r"left to a person is 0\.4321, but"):
        run(paths, max_asked=0.4)
    page = paths.page.read_text()
    assert "The model decides by the promise in the first line.\nAn image" in page
    assert '<td class="n bad">91.0 % [85.0, 96.1]</td>' in page
    header = '<th class="n">defective</th><th class="n">left to a person</th>'
    assert f'{header}<th class="n">answered right</th></tr>' in page
    row = "".join(f'<td class="n">{cell}</td>' for cell in (30, 0, 30, "0.500"))
    assert f"<tr><td>functional</td>{row}</tr>" in page
    assert "decided by the promise about defective: the triangles are" in page
    card = (paths.release / "MODEL_CARD.md").read_text()
    words = 'below 0.123, another class is; otherwise, `predict.py` says "ask a person".'
    assert f"of defective: that is never the answer; {words}" in card
    assert "it was 91.0 % and 0.0 %, with 43.2 % of all images left to a person." in card


def test_a_promise_that_stands_alone_is_told_so(paths: check.Paths) -> None:
    alone = {
        "max_false_alarms": None, "false_alarm_margin": None,
        "thresholds": {"low": 0.1234, "high": 0.1234},
    }  # fmt: skip
    change(paths.export / "metrics.json", "operating_point", PROMISE | alone)
    run(paths)
    assert '<td class="n">95 %</td><td class="n">-</td>' in paths.page.read_text()
    card = (paths.release / "MODEL_CARD.md").read_text()
    words = "a threshold on the probability of defective: from 0.123 on, that is the answer; below"
    assert f"It decides by {words}, another class is. Promised: at least 95 % of its" in card
    assert "its images are answered so. On the test split" in card
    nothing = {"thresholds": {"low": 0.0, "high": 2.0}}
    change(paths.export / "metrics.json", "operating_point", PROMISE | alone | nothing)
    run(paths)
    card = (paths.release / "MODEL_CARD.md").read_text()
    assert "that is never the answer; another class never is; otherwise, `predict.py` says" in card


def test_the_report_shows_where_the_model_errs(paths: check.Paths) -> None:
    run(paths)
    page = paths.page.read_text()
    first = '<td class="n">54</td><td class="n">6</td><td class="n">0.900</td>'
    second = '<td class="n">12</td><td class="n">28</td><td class="n">0.700</td>'
    assert f"<tr><td>functional</td>{first}</tr>\n<tr><td>defective</td>{second}</tr>" in page
    assert "<p>By group:</p>" in page
    odd = '<td>&lt;i&gt;odd&lt;/i&gt;</td><td class="n">40</td><td class="n">0.500</td>'
    assert f'<tr>{odd}<td class="n"></td></tr>' in page
    many = "".join(f"group,g{n},4,0.{n}000,\n" for n in range(1, 10))
    (paths.export / "parts.csv").write_text(PARTS.splitlines(keepends=True)[0] + many)
    run(paths)
    page = paths.page.read_text()
    assert "<p>The 8 least accurate of 9 groups:</p>" in page
    assert ("<td>g8</td>" in page, "<td>g9</td>" in page) == (True, False)

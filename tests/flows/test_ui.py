"""What stands on a run's page in the Prefect UI."""

import json
from pathlib import Path

from markdown_it import MarkdownIt

from flows import ui
from flows.graph import Node


def test_labels_are_shown_letter_by_letter(tmp_path: Path) -> None:
    label = '<script>alert("1")</script> | [a](javascript:alert(1))'
    (tmp_path / "metrics.json").write_text(json.dumps({"recall": {label: 0.5}, "layout": label}))
    [(kind, _, text)] = ui.contents(Node("check", metrics=(tmp_path / "metrics.json",)))
    page = str(MarkdownIt("commonmark").enable("table").render(text))
    assert kind == "markdown"
    assert "<script" not in page
    assert "<a" not in page
    assert page.count("<td>") == 4
    assert "<td>0.5</td>" in page

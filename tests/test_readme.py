"""The front page is short, and what the documents point at is there."""

import re
import subprocess
from pathlib import Path

import pytest

from stages.core.runner.params import load_yaml
from tests.conftest import ROOT

LINES, WORDS = 150, 1300

README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(
    {"CHANGELOG.md", *subprocess.run(
        ["git", "ls-files", "*README.md"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()}
)  # fmt: skip

# Folders at the top whose files a document may name, but for what a run or its user makes there.
FILE = re.compile(
    r"(?<![\w/.~-])((?:data|flows|stages|core|tests|overlays)/[\w./-]*|[\w-]+\.(?:py|md|yaml|toml))"
)
MADE = re.compile(r"data/(mine|elpv|release|scratch|models|validated|reports/index)|stages/polish")


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def broken_links(document: Path) -> list[str]:
    """Relative links of a document whose file or heading is not there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        path = document.parent / file if file else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    return broken


def missing_files(text: str, *places: Path) -> list[str]:
    """Files and folders in code that are in none of `places` and that no run makes."""
    inline = re.findall(r"`([^`\n]+)`", text)
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {name for code in (*inline, *blocks) for name in FILE.findall(code)}
    return sorted(
        name
        for name in names
        if not any((place / name).exists() for place in places)
        and not MADE.match(name)
        and "NAME" not in name
    )


def targets(text: str) -> set[str]:
    """Targets of `make` that a text names."""
    return set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE))


def test_the_front_page_is_short() -> None:
    assert len(README.splitlines()) <= LINES
    assert len(README.split()) <= WORDS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    assert broken_links(ROOT / name) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# One door\n[a](README.md#one-door) [b](gone.md) [c](#two) [d](http://x.y)\n")
    assert broken_links(page) == ["gone.md", "#two"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_are_there(name: str) -> None:
    document = ROOT / name
    places = (ROOT, document.parent, ROOT / "stages", ROOT / "flows")
    assert missing_files(document.read_text(), *places) == []


def test_a_missing_file_is_noticed() -> None:
    text = "`flows/train.py`, `flows/gone.py`, `data/mine/1.png`, `gone.yaml`\n"
    text += "```\npython core/y.py\n```\n"
    assert missing_files(text, ROOT) == ["core/y.py", "flows/gone.py", "gone.yaml"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_are_there(name: str) -> None:
    makefile = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets((ROOT / name).read_text()) <= makefile
    assert targets("`make tea`\nmake run\n") == {"tea", "run"}


def test_every_target_is_in_the_table_of_commands() -> None:
    helped = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    # What others call: `install` every target, `lint` and `types` test.
    assert targets(README) == {*helped} - {"help", "install", "lint", "types"}


def test_the_table_of_stages_is_the_graph() -> None:
    table = README.partition("## How it works")[2].partition("\n## ")[0]
    stages = re.findall(r"^\| (\w+) \|", table, re.MULTILINE)
    assert stages[1:] == list(load_yaml(ROOT / "dvc.yaml")["stages"])


def test_the_changelogs_newest_version_is_the_projects() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d.+?)\]", changelog, re.MULTILINE)
    assert version is not None
    assert newest is not None
    assert newest[1] == version[1]

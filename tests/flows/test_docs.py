"""Documents say what was measured: rendering gives what is committed, and notices what is not."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from flows import docs, photograph
from flows.study import load
from stages.core.runner.errors import ParamsError, Unavailable
from tests.conftest import ROOT

# All of their intervals take half a minute to compute.
SLOW = re.compile(r"^section\(")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents and results of the last commit, which a run in the project does not change."""
    root = tmp_path_factory.mktemp("committed")
    names = [*docs.DOCUMENTS, docs.REPORTS.as_posix(), docs.STUDIES.as_posix()]
    archive = subprocess.run(
        ["git", "archive", "HEAD", *names], cwd=ROOT, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x"], cwd=root, input=archive, check=True)
    return root


def without(text: str, pattern: re.Pattern[str]) -> str:
    """A document with only those marks whose expression does not match."""
    return docs.MARK.sub(lambda mark: "" if pattern.search(mark[2]) else mark[0], text)


@pytest.mark.parametrize("name", docs.DOCUMENTS)
def test_metrics_and_benchmarks_are_what_is_committed(name: str, committed: Path) -> None:
    text = without((committed / name).read_text(), SLOW)
    assert docs.render(text, docs.Figures(committed), source=name) == text


@pytest.mark.slow
def test_studies_are_what_is_committed(committed: Path) -> None:
    figures = docs.Figures(committed)
    for name in docs.DOCUMENTS:
        text = (committed / name).read_text()
        assert docs.render(text, figures, source=name) == text


def test_each_study_has_a_section_and_an_answer() -> None:
    studies = sorted((ROOT / docs.STUDIES).glob("*.yaml"))
    sections = re.findall(r'^<!--=section\("(.+?)"\)-->$', _text(docs.DOCUMENTS[2]), re.MULTILINE)
    assert sorted(sections) == [path.stem for path in studies]
    assert all(load(path).answer for path in studies)


def _text(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize("name", docs.DOCUMENTS)
def test_marks_do_not_open_a_line_of_prose(name: str) -> None:
    # CommonMark takes a line that begins with a comment for HTML, to its end.
    assert not re.search(r"^<!--=.+?-->[^\n]*\S", _text(name), re.MULTILINE)


@pytest.mark.parametrize("answer", ["0.879", "gains 88.4 points", "+0.011"])
def test_typed_figures_are_told_apart(answer: str) -> None:
    assert typed_figures(answer)


def typed_figures(text: str) -> list[str]:
    """Figures with three digits behind the point, or signed ones, outside marks and templates."""
    prose = re.sub(r"\{\{.*?\}\}|<!--=.*?<!--/-->|```.*?```|`.*?`", "", text, flags=re.DOTALL)
    return re.findall(r"(?<![\w.])[+-]?\d\.\d{3}\b|(?<!\w)[+-]0\.\d+|\d+\.\d+ points", prose)


@pytest.mark.parametrize("path", [*docs.DOCUMENTS, docs.STUDIES.as_posix()])
def test_no_figure_is_typed(path: str) -> None:
    files = sorted((ROOT / path).glob("*.yaml")) if (ROOT / path).is_dir() else [ROOT / path]
    for file in files:
        text = file.read_text()
        prose = text.partition("\ntarget:")[0] if file.suffix == ".yaml" else text
        assert typed_figures(prose) == [], file.name


def small(root: Path) -> docs.Figures:
    """A project with one metric, one benchmark and one study of two trials."""
    reports, studies = root / docs.REPORTS, root / docs.STUDIES
    for folder in (reports / "distill", reports / "studies", studies):
        folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        "student": {"auroc": 0.7654628},
        "images": 2624,
        "gain": {"gain": 0.0124, "low": -0.0041, "high": 0.044},
    }
    (reports / "distill" / "metrics.json").write_text(json.dumps(metrics))
    (studies / "pair.yaml").write_text(
        "question: Which one?\n"
        'answer: The second, by {{ mean("b", "AUROC") - mean("a", "AUROC") }}.\n'
        "trials: {a: {}, b: {}}\n"
        "grid: {fold: [0, 1]}\n"
        "show: {AUROC: distill.student.auroc}\n"
    )
    rows = ["trial,name,params,commit,state,message,fold,distill.student.auroc"]
    for name, fold, auroc in [("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.75), ("b", 1, 0.8)]:
        rows.append(f"{name}-fold{fold},{name},md5,commit,done,,{fold},{auroc}")
    (reports / "studies" / "pair.csv").write_text("\n".join(rows) + "\n")
    return docs.Figures(root)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ('metric("distill.student.auroc")', "0.765"),
        ('metric("distill.images")', "2,624"),
        ('percent(metric("distill.student.auroc"),1)', "76.5 %"),
        ('interval("distill.gain")', "+0.012 [-0.004, +0.044]"),
        ('study("pair").mean("a","AUROC")', "0.600"),
        ('study("pair").value("b-fold1","AUROC")', "0.800"),
    ],
)
def test_values(expression: str, value: str, tmp_path: Path) -> None:
    text = f"AUROC <!--={expression}-->old<!--/--> in prose"
    expected = f"AUROC <!--={expression}-->{value}<!--/--> in prose"
    assert docs.render(text, small(tmp_path), source="x.md") == expected


def test_figures_within_groups_are_beside_the_others(tmp_path: Path) -> None:
    figures = small(tmp_path)
    file = tmp_path / docs.REPORTS / "distill" / "metrics.json"
    content = json.loads(file.read_text())
    content["gain"]["within_groups"] = {"gain": 0.02, "low": None, "high": None}
    file.write_text(json.dumps(content))
    assert figures.interval("distill.gain") == (
        "+0.012 [-0.004, +0.044] (within groups +0.020 [no interval: too few groups])"
    )


def test_the_results_have_no_column_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs, "MODELS", [("student", "distill.images", "distill.student")])
    assert small(tmp_path).results().splitlines() == [
        "|  | parameters | AUROC |", "|---|---|---|", "| student | 2,624 | 0.765 |",
    ]  # fmt: skip
    file = tmp_path / docs.REPORTS / "distill" / "metrics.json"
    content = json.loads(file.read_text())
    content["student"]["auroc_within_groups"] = 0.7
    file.write_text(json.dumps(content))
    assert docs.Figures(tmp_path).results().splitlines() == [
        "|  | parameters | AUROC | within groups |", "|---|---|---|---|",
        "| student | 2,624 | 0.765 | 0.700 |",
    ]  # fmt: skip


def test_a_section_is_question_table_and_answer(tmp_path: Path) -> None:
    text = '# pair\n\n<!--=section("pair")--><!--/-->\n'
    rendered = docs.render(text, small(tmp_path), source="x.md")
    question, table, end, answer = rendered.split("\n\n")[1:]
    assert question.endswith("-->\n**Which one?**")
    assert "| b | 2 | 0.775 ± 0.035 |" in table.splitlines()
    assert end.startswith("4 of 4 trials")
    assert answer == "The second, by 0.175.\n<!--/-->\n"


def test_a_changed_figure_is_noticed(tmp_path: Path) -> None:
    text = 'AUROC <!--=metric("distill.student.auroc")-->0.765<!--/-->, <!--=section("pair")-->'
    text = docs.render(text + "<!--/-->", small(tmp_path), source="x.md")
    for path, old, new in [
        ("distill/metrics.json", "0.7654628", "0.7664628"),
        ("studies/pair.csv", "0,0.5\n", "0,0.501\n"),
    ]:
        figures = small(tmp_path)
        assert docs.render(text, figures, source="x.md") == text
        file = tmp_path / docs.REPORTS / path
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        assert docs.render(text, docs.Figures(tmp_path), source="x.md") != text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '<!--=metric("distill.auroc")--><!--/-->',
            "no metric 'distill.auroc'; similar: distill.student.auroc",
        ),
        ('<!--=study("other").answer--><!--/-->', "no study 'other'; similar: pair"),
        ('<!--=study("pair").mean("c","AUROC")--><!--/-->', "no run 'c'"),
        ('<!--=study("pair").gain("a","over b")--><!--/-->', "no gain 'over b'"),
        ("<!--=mertic(1)--><!--/-->", "'mertic' is undefined"),
        ("<!--=1 +--><!--/-->", "unexpected"),
        ("<!--=1--> <!--=2--><!--/-->", "found 2 marks"),
    ],
)
def test_a_mark_without_a_value_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"^x\.md: ") as refusal:
        docs.render(text, small(tmp_path), source="x.md")
    assert message in str(refusal.value)


def test_an_answer_that_is_no_template_is_refused(tmp_path: Path) -> None:
    figures = small(tmp_path)
    study = tmp_path / docs.STUDIES / "pair.yaml"
    study.write_text(study.read_text().replace("mean(", "main("))
    with pytest.raises(ParamsError, match=r"pair\.yaml: answer: 'main' is undefined"):
        _ = figures.study("pair").answer


def test_the_picture_shows_no_image_of_the_data() -> None:
    template = (ROOT / "stages/core/release/templates/report.html.j2").read_text()
    excerpt = photograph.excerpt(template)
    pictures = re.findall(r"pictures\.(\w+)", excerpt)
    assert pictures
    assert set(pictures) <= {
        "teacher_curves", "distill_curves", "benchmark_latency", "benchmark_distribution",
    }  # fmt: skip
    assert {"validate_grid", "augment_samples"} < set(re.findall(r"pictures\.(\w+)", template))
    assert all(f"<h2>{heading}" in excerpt for heading in photograph.SECTIONS)


def test_recording_without_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(Unavailable, match=r"index\.html: no such file"):
        docs.record(tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(Unavailable, match="Chromium"):
        docs.record(tmp_path)

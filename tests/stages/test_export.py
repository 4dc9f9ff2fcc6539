"""From validated images to the release's answers, with backgrounds: the same pixels everywhere.

The folder holds images of eight groups, so that what the released script answers for a group's
folder can be compared with what PyTorch answers for the images that validation has divided.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from PIL import Image

from stages import benchmark
from stages.core.dataset.data import load_dataset
from stages.core.nets import exam
from stages.core.nets.files import save_teacher
from stages.core.nets.net import Ensemble
from stages.core.nets.onnx_run import feed, session
from stages.core.nets.variants import USUAL
from stages.core.release import predict
from stages.core.results import metrics, operating_point, predictions
from stages.core.results.operating_point import OperatingPoint, decisions
from stages.core.runner.errors import Unavailable
from stages.core.speed.engines import Job
from stages.core.speed.process import Process
from stages.core.training.targets import load_targets
from tests.conftest import RESOURCES, MakeFolder
from tests.helpers.classroom import filled
from tests.helpers.front_door import run as validate
from tests.helpers.shipped import Shipped, exported, network, parity, ship

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return ship(tmp_path_factory.mktemp("group"), "group")


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return ship(tmp_path_factory.mktemp("both"), "both")


@pytest.mark.parametrize("kind", ["shipped", "stacked"])
def test_the_release_divides_as_validation_did(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    this: Shipped = request.getfixturevalue(kind)
    assert this.metrics.parity.max_abs < 1e-5
    assert this.metrics.parity.decisions_changed == 0
    graph = onnx.load(this.root / "release" / "model.onnx").graph
    for name, value in zip(("images", "backgrounds"), graph.input, strict=True):
        assert value.name == name
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert shape == ["batch", 32, 32, 1]

    # A folder is a group, and a folder in it another one.
    this.copy("g1", tmp_path / "in")
    this.copy("g2", tmp_path / "in" / "deeper")
    answers, errors = this.predict("in", at=tmp_path)
    expected = np.concatenate([this.expected("g1"), this.expected("g2")])
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    assert errors == []

    # Single images need to be told their background.
    answers, _ = this.predict("--background", "in", "in/g1_3.png", at=tmp_path)
    np.testing.assert_allclose(answers, expected[3:4], atol=1e-5)
    number = int(this.data._manifest["background"][list(this.data.files).index("g1_3.png")])
    assert this.data.backgrounds is not None
    Image.fromarray(this.data.backgrounds[number, ..., 0]).save(tmp_path / "ground.png")
    answers, _ = this.predict("in", "--background", "ground.png", at=tmp_path)
    np.testing.assert_allclose(answers[:6], expected[:6], atol=1e-5)
    assert np.abs(answers[6:] - expected[6:]).max() > 1e-3


def test_the_release_asks_of_images_what_validation_asked(shipped: Shipped, tmp_path: Path) -> None:
    model = predict.Model(shipped.root / "release" / "model.onnx")
    assert (model.min_source_px, model.min_contrast) == (16, 1.0)
    Image.new("L", (8, 8)).save(shipped.copy("g1", tmp_path / "in") / "black.png")
    answers, errors = shipped.predict("in", at=tmp_path, status=1)
    # The background of the others is theirs alone.
    np.testing.assert_allclose(answers, shipped.expected("g1"), atol=1e-5)
    assert errors[0].startswith("error: in/black.png: width = 8 (expected at least 16 px")
    # What is named as a background is no image to be judged.
    answers, errors = shipped.predict("in/g1_3.png", "--background", "in/black.png", at=tmp_path)
    assert (len(answers), errors) == (1, [])


def test_the_file_keeps_the_thresholds_that_validation_chose(
    tmp_path: Path, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder()
    validated = validate(tmp_path) / "validated"
    # Few images and groups, which leave everything to a person otherwise.
    monkeypatch.setattr(operating_point, "CONFIDENCE", 0.2)
    monkeypatch.setattr(operating_point, "LEAST_GROUPS", 2)
    data = load_dataset(validated)
    point = OperatingPoint(label="functional", min_recall=0.3, max_false_alarms=0.6)
    paths = exported(tmp_path, validated, network(data), point=point)
    result = parity(paths)
    assert list(result.promises) == ["80%", "90%", "95%", "99%"]
    promise = result.operating_point
    assert promise is not None
    number = data.classes.index("functional")
    model = predict.Model(paths.onnx / "fp32.onnx")
    at = promise.thresholds
    assert model.thresholds is not None
    assert model.thresholds == pytest.approx((number, at.low, at.high), rel=1e-6)
    table = pd.read_csv(paths.predictions)
    shipped = np.exp(predictions.logits(table, "shipped"))
    again = decisions(shipped, table["label"].to_numpy(), number, at)
    assert again.model_dump() == pytest.approx(promise.test.model_dump())
    answers = {predict.decision(model, row) for row in shipped}
    assert len(answers) > 1
    assert (None in answers) == (promise.test.asked > 0)
    asked = sum(row[""] for row in result.confusion.values())
    assert asked == round(promise.test.asked * len(table))
    (tmp_path / "none").mkdir()
    plain = parity(exported(tmp_path / "none", validated, network(data)))
    assert all(list(row) == data.classes for row in plain.confusion.values())
    silent = predict.Model(tmp_path / "none" / "export" / "onnx" / "fp32.onnx")
    assert silent.thresholds is None


def test_evidence_adds_up_in_its_file(shipped: Shipped) -> None:
    data, test = shipped.data, shipped.data.rows("test")
    running = session(shipped.root / "export" / "onnx" / "evidence.onnx", "cpu", threads=1)
    probabilities, evidence = running.run(None, feed(data.model_inputs(test)))
    with torch.inference_mode():
        logits = shipped.net(torch.from_numpy(data.pixels[test])).numpy()
    np.testing.assert_allclose(evidence.sum((2, 3)), logits, atol=1e-4)
    model = predict.Model(shipped.root / "release" / "model.onnx")
    expected = model.probabilities(*(list(values) for values in data.model_inputs(test)))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert shipped.metrics.evidence_parity.max_abs < 1e-5


def test_the_release_draws_what_it_goes_by(shipped: Shipped, tmp_path: Path) -> None:
    release = shipped.root / "release"
    shutil.copy(shipped.root / "export" / "onnx" / "evidence.onnx", release)
    shipped.copy("g1", tmp_path / "in")
    (tmp_path / "in" / "g1_0.png").write_bytes(b"")
    arguments = ["in", "--evidence", "out/maps"]
    answers, errors = shipped.predict(*arguments, at=tmp_path, status=1)
    plain, _ = shipped.predict("in", at=tmp_path, status=1)
    np.testing.assert_allclose(answers, plain, atol=1e-5)
    assert len(errors) == 2
    names = sorted(file.name for file in (tmp_path / "out" / "maps").iterdir())
    assert names == [f"{n + 1:05d}_g1_{n}.evidence.png" for n in range(1, 6)]
    picture = np.asarray(Image.open(tmp_path / "out" / "maps" / names[0]).convert("RGB"), int)
    px = shipped.data.image_px
    assert picture.shape == (px, 2 * px, 3)
    # They are no images to be looked at in their turn.
    shutil.copytree(tmp_path / "out" / "maps", tmp_path / "in" / "maps")
    again, _ = shipped.predict("in", at=tmp_path, status=1)
    np.testing.assert_array_equal(again, plain)
    shutil.rmtree(tmp_path / "in" / "maps")
    left, right = picture[:, :px], picture[:, px:]
    assert (left[..., 0] == left[..., 2]).all()
    assert (right[..., 0] != right[..., 2]).mean() > 0.1
    _, errors = shipped.predict(
        *arguments, "--model", str(release / "model.onnx"), at=tmp_path, status=2
    )
    assert "it gives no evidence; take the release's evidence.onnx" in errors[0]
    _, errors = shipped.predict(*arguments, at=tmp_path, status=2)
    assert errors[0] == "error: --evidence out/maps: not empty; name a new folder"
    _, errors = shipped.predict("in", "--evidence", "in/maps", at=tmp_path, status=2)
    assert errors[0] == "error: --evidence in/maps: inside in, whose images are looked at"
    (tmp_path / "file").write_text("")
    _, errors = shipped.predict("in", "--evidence", "file", at=tmp_path, status=2)
    assert errors[-1].startswith("error: --evidence file: cannot be written (File exists)")


def test_the_file_is_compared_with_chance_and_teacher(shipped: Shipped) -> None:
    data, result = shipped.data, shipped.metrics
    test = data.rows("test")
    teacher = load_targets(shipped.root / "targets", data).plain[test]
    assert result.gain_over_chance.gain == pytest.approx(result.auroc - 0.5, abs=1e-6)
    difference = result.auroc - metrics.auroc(teacher, data.labels[test])
    assert result.gain_over_teacher.gain == pytest.approx(difference, abs=1e-6)
    assert abs(difference) > 0.01


def test_what_has_no_background_is_refused_in_a_line(shipped: Shipped, tmp_path: Path) -> None:
    folder = shipped.copy("g1", tmp_path / "in" / "g1")
    answers, errors = shipped.predict("in/g1/g1_0.png", at=tmp_path, status=1)
    assert len(answers) == 0
    assert errors == [
        "error: in/g1/g1_0.png: no background, which this model divides images by: name the folder "
        "of the images that share one, or give it with --background FOLDER_OR_IMAGE",
        "1 file could not be used",
    ]
    # An image that cannot be used is named, and does not count.
    (folder / "g1_0.png").write_bytes(b"")
    for arguments, status in ((["in"], 1), (["in/g1/g1_1.png", "--background", "in/g1"], 1)):
        answers, errors = shipped.predict(*arguments, at=tmp_path, status=status)
        assert len(answers) == (5 if arguments == ["in"] else 1)
        assert errors[0].startswith("error: in/g1/g1_0.png: an empty file (0 bytes)")
        assert errors[1:] == ["1 file could not be used"]
    (folder / "g1_1.png").unlink()
    answers, errors = shipped.predict("in", at=tmp_path, status=1)
    assert len(answers) == 0
    assert errors[1] == (
        "error: in/g1/g1_2.png: no background: it is the median of 5 images or more of one "
        "folder, and in/g1 has 4 that can be used; add some, or give a background with "
        "--background FOLDER_OR_IMAGE"
    )
    assert len(errors) == 6
    for given, words in (
        ("in/g1", "in/g1 has 4 that can be used"), ("in", "in has 0 that can be used"),
        ("in/g1/g1_0.png", "an empty file"), ("nowhere", "no such file or folder"),
    ):  # fmt: skip
        _, errors = shipped.predict("in/g1", "--background", given, at=tmp_path, status=2)
        assert len(errors) == 1
        assert errors[0].startswith(f"error: --background {given}: ")
        assert words in errors[0]


def test_a_format_that_cannot_be_had_ends_no_run(
    tmp_path: Path, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError("no such\noperator")

    image_folder()
    validated = validate(tmp_path) / "validated"
    monkeypatch.setattr(exam, "as_int8", fails)
    result = parity(exported(tmp_path, validated, network(load_dataset(validated)), variants="few"))
    assert list(result.variants) == ["fp16"]
    assert result.failed_variants == {USUAL.name: "RuntimeError: no such operator"}


@pytest.mark.parametrize("kind", ["none", "group", "both"])
def test_other_formats_are_measured_and_decide_by_thresholds_of_their_own(
    tmp_path: Path, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    image_folder()
    monkeypatch.setattr(operating_point, "CONFIDENCE", 0.2)
    monkeypatch.setattr(operating_point, "LEAST_GROUPS", 2)
    validated = validate(tmp_path, background=kind) / "validated"
    data = load_dataset(validated)
    test = data.rows("test")
    point = OperatingPoint(label="functional", min_recall=0.3, max_false_alarms=0.6)
    paths = exported(tmp_path, validated, network(data), point=point, variants="few")
    result = parity(paths)
    assert list(result.variants) == ["fp16", USUAL.name]
    assert {file.stem for file in paths.onnx.iterdir()} == {"fp32", "evidence", *result.variants}
    original = predict.Model(paths.onnx / "fp32.onnx")
    expected = original.probabilities(*(list(values) for values in data.model_inputs(test)))
    again = original.probabilities(*(list(values) for values in data.equivalent_inputs(test)))
    np.testing.assert_allclose(again, expected, atol=1e-6)
    for name, variant in result.variants.items():
        model = predict.Model(paths.onnx / f"{name}.onnx")
        assert (model.classes, model.fit) == (original.classes, original.fit)
        assert model.background_images == original.background_images
        own = model.probabilities(*(list(values) for values in data.model_inputs(test)))
        assert list(variant.on) == ["cpu"]
        on_cpu = variant.on["cpu"]
        assert on_cpu.parity.max_abs == pytest.approx(np.abs(own - expected).max(), abs=1e-5)
        assert 1e-6 < on_cpu.parity.max_abs < 0.3
        assert variant.bytes == (paths.onnx / f"{name}.onnx").stat().st_size
        val = data.rows("val")
        on_val = model.probabilities(*(list(values) for values in data.equivalent_inputs(val)))
        at = operating_point.choose(point, data.classes, on_val, data.labels[val], data.groups[val])
        assert model.thresholds == pytest.approx(
            (data.classes.index("functional"), at.low, at.high), rel=1e-5
        )
        promise = on_cpu.operating_point
        assert promise is not None
        assert promise.thresholds.model_dump() == pytest.approx(at.model_dump(), rel=1e-5)
        number = data.classes.index("functional")
        own_decisions = decisions(own, data.labels[test], number, promise.thresholds)
        assert promise.test.model_dump() == pytest.approx(own_decisions.model_dump())
        right = own.argmax(1) == data.labels[test]
        before = expected.argmax(1) == data.labels[test]
        assert on_cpu.loss == pytest.approx(before.mean() - right.mean())


@pytest.fixture
def timed(tmp_path: Path, image_folder: MakeFolder) -> benchmark.Paths:
    image_folder()
    validated = validate(tmp_path) / "validated"
    net = network(load_dataset(validated))
    paths = exported(tmp_path, validated, net)
    save_teacher(tmp_path / "teacher", Ensemble([net]).each())
    inputs = {"refined": tmp_path / "refined", "teacher": tmp_path / "teacher"}
    return filled(
        benchmark.Paths, tmp_path / "bench", validated=validated, onnx=paths.onnx, **inputs
    )


@pytest.mark.parametrize("failing", ["compile", "ort"])
def test_an_engine_that_no_ratio_needs_may_fail(
    timed: benchmark.Paths, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    class Failing(Process):
        def __init__(self, job: Job) -> None:
            if job.engine == failing:
                raise Unavailable("no compiler")
            super().__init__(job)

    monkeypatch.setattr(benchmark, "Process", Failing)
    params = benchmark.Params(
        engines=["torch", "ort"], batches=[1], threads=[None], rounds=1,
        seconds_per_round=0.01, load_seconds=0, max_p99_ms=10,
    )  # fmt: skip
    if failing == "ort":
        with pytest.raises(Unavailable, match="ort, cpu: no compiler; the gates need its time"):
            benchmark.run(params, paths=timed, resources=RESOURCES)
        return
    params = params.model_copy(update={"engines": ["torch", "compile", "ort"]})
    benchmark.run(params, paths=timed, resources=RESOURCES)
    rows = json.loads(timed.metrics.read_text())["rows"]
    assert rows["student_compile_cpu_b1"]["unavailable"] == "no compiler"
    assert rows["student_torch_cpu_b1"]["p50_ms"] > 0


def test_both_inputs_are_timed(tmp_path: Path, image_folder: MakeFolder) -> None:
    image_folder()
    validated = validate(tmp_path, background="group") / "validated"
    net = network(load_dataset(validated))
    paths = exported(tmp_path, validated, net)
    save_teacher(tmp_path / "teacher", Ensemble([net]).each())
    inputs = {"refined": tmp_path / "refined", "teacher": tmp_path / "teacher"}
    timed = filled(
        benchmark.Paths, tmp_path / "bench", validated=validated, onnx=paths.onnx, **inputs
    )
    params = benchmark.Params(
        engines=["torch", "ort"], batches=[1, 4], threads=[None], rounds=2,
        seconds_per_round=0.01, load_seconds=0, max_p99_ms=10,
    )  # fmt: skip
    benchmark.run(params, paths=timed, resources=RESOURCES)
    rows = json.loads(timed.metrics.read_text())["rows"]
    for name in ("student_ort", "student_torch", "teacher_ort", "teacher_torch"):
        assert rows[f"{name}_cpu_b1"]["calls"] >= 10
        assert rows[f"{name}_cpu_b4"]["calls"] >= 10
        assert "unavailable" in rows[f"{name}_cuda_b1"]
    inputs = onnx.load(timed.teacher_onnx).graph.input
    assert [value.name for value in inputs] == ["images", "backgrounds"]

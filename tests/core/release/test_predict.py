"""The release's own script, run as its users run it: as a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from stages.core.dataset.data import load_dataset
from stages.core.intake.backgrounds import divide
from stages.core.intake.images import look
from stages.core.nets.onnx_export import Calibrated, export, metadata_of, write
from stages.core.nets.variants import USUAL, as_int8
from stages.core.release import predict
from tests.conftest import ROOT, MakeFolder
from tests.helpers.exported import METADATA, net
from tests.helpers.front_door import run as validate
from tests.helpers.released import (
    CLASSES,
    ODD_MANIFESTS,
    SOUND,
    call,
    lines,
    with_metadata,
)
from tests.helpers.scenes import saved, scene

LIMIT = int(METADATA["max_pixels"])
TEMPLATE = ROOT / "stages/core/release/templates/model_card.md.j2"


BAD = {
    "drawing.jpg": saved(scene(), "EPS"),
    "moving.png": saved(scene(), "GIF"),
    "pages.tif": saved(scene(), "TIFF", save_all=True, append_images=[scene()]),
    "huge.png": saved(Image.new("1", (20_000, 10_000)), "PNG"),
    "cut.png": SOUND[:-60],
    "half.jpg": saved(scene(), "JPEG")[:800] + b"\xff\xd9",
    "empty.png": b"",
    "floats.tif": saved(scene("L").convert("F"), "TIFF"),
}


def test_a_bad_file_does_not_end_the_batch(release: Path, tmp_path: Path) -> None:
    for name, content in ({"a.png": SOUND, "z.png": SOUND} | BAD).items():
        (tmp_path / name).write_bytes(content)
    # Ghostscript, which Pillow would run for an EPS.
    (tmp_path / "gs").write_text('#!/bin/sh\ntouch "$(dirname "$0")/ghostscript was run"\n')
    (tmp_path / "gs").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = call(release, "a.png", *BAD, "missing.png", "z.png", at=tmp_path, PATH=path)
    assert ended.returncode == 1
    answers = [line.split("\t") for line in lines(ended.stdout)]
    assert [file for _, _, file in answers] == ["a.png", "z.png"]
    assert {answer[0] for answer in answers} <= set(CLASSES)
    # Each in the words of validation.
    problems = {name: look(content, 64, LIMIT).problem for name, content in BAD.items()}
    assert all(problems.values())
    assert lines(ended.stderr) == [
        *(f"error: {name}: {problem}" for name, problem in problems.items()),
        "error: missing.png: no such file or folder",
        f"{len(BAD) + 1} files could not be used",
    ]
    assert not (tmp_path / "ghostscript was run").exists()


def test_the_same_probabilities_as_the_pipeline(release: Path, tmp_path: Path) -> None:
    """In batches and alone, of 8 bits and of 12."""
    images = {f"{seed}.png": scene(width=70 + seed, height=60) for seed in range(70)}
    deep = np.asarray(scene("L")).astype(np.uint16) * 16
    for name, image in images.items():
        image.save(tmp_path / name)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    ended = call(release, "--format", "json", tmp_path, at=tmp_path)
    rows = {Path(row["file"]).name: row for row in json.loads(ended.stdout)}
    assert list(rows) == sorted([*images, "deep.png"])
    pixels = []
    for name in rows:
        picture = predict.read((tmp_path / name).read_bytes(), image_px=64, max_pixels=LIMIT)
        pixels.append(predict.as_input(picture, 1, 12))
    # Colours become grey before their size changes, as `channels` asks.
    for i, name in enumerate(rows):
        if name != "deep.png":
            grey = images[name].convert("L").resize((64, 64), Image.Resampling.BICUBIC)
            pixels[i] = np.asarray(grey)[..., None]
    with torch.inference_mode():
        expected = Calibrated(net(), 1.7)(torch.from_numpy(np.stack(pixels))).numpy()
    given = [[row["probabilities"][name] for name in CLASSES] for row in rows.values()]
    np.testing.assert_allclose(given, expected, atol=1e-5)
    for row, best in zip(rows.values(), expected.argmax(1), strict=True):
        assert row["class"] == CLASSES[best]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Counting:
        max_pixels = LIMIT
        background_images = 0
        batches: list[int] = []  # noqa: RUF012, one list for the one test

        def pixels(self, content: bytes, name: str) -> Any:
            return np.zeros((2, 2, 1), np.uint8)

        def run(self, images: list[Any], backgrounds: list[Any]) -> Any:
            self.batches.append(len(images))
            return [np.full((len(images), 2), 0.5, np.float32)]

    monkeypatch.setattr(predict, "BATCH", 4)
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(SOUND)
    model: Any = Counting()
    answers = list(predict.answers(model, [tmp_path, tmp_path / "missing", tmp_path / "0.png"]))
    assert [Path(answer.file).name for answer in answers] == [
        *(f"{i}.png" for i in range(10)), "missing", "0.png",
    ]  # fmt: skip
    assert Counting.batches == [4, 4, 3]


def test_an_answer_that_is_no_number_is_a_problem(tmp_path: Path) -> None:
    class Broken:
        max_pixels = LIMIT
        background_images = 0

        def pixels(self, content: bytes, name: str) -> Any:
            return np.zeros((2, 2, 1), np.uint8)

        def run(self, images: list[Any], backgrounds: list[Any]) -> Any:
            return [np.array([[np.nan, np.nan], [0.5, 0.5]], np.float32)[: len(images)]]

    (tmp_path / "a.png").write_bytes(SOUND)
    (tmp_path / "b.png").write_bytes(SOUND)
    model: Any = Broken()
    first, second = predict.answers(model, [tmp_path])
    assert first.problem == "the model's answer is no number"
    assert second.problem == ""


def test_folders(release: Path, tmp_path: Path) -> None:
    ignored = (".hidden.png", ".git/d.png", "maps/00001_a.evidence.png")
    for name in ("b.PNG", "a.png", "deeper/c.png", *ignored):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(SOUND)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    ended = call(release, "in", "empty", at=tmp_path)
    assert [line.split("\t")[2] for line in lines(ended.stdout)] == [
        "in/a.png", "in/b.PNG", "in/deeper/c.png",
    ]  # fmt: skip
    assert ended.returncode == 1
    assert lines(ended.stderr)[0].startswith("error: empty: a folder without an image (.bmp, ")
    assert lines(ended.stderr)[1] == "1 file could not be used"


def test_what_is_no_plain_file_is_named(release: Path, tmp_path: Path) -> None:
    """A pipe would block for ever, and a device never ends."""
    folder = tmp_path / "in"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "b.png").write_bytes(SOUND)
    os.mkfifo(folder / "a.jpg")
    (folder / "c.jpg").symlink_to("/dev/zero")
    (folder / "d.jpg").symlink_to("nowhere.jpg")
    (folder / "e.png").symlink_to("real/b.png")
    (folder / "linked").symlink_to("real")
    (folder / ".hidden").symlink_to("real")
    ended = call(release, "in", "in/a.jpg", "/dev/zero", "in/d.jpg", at=tmp_path)
    assert ended.returncode == 1
    assert [line.split("\t")[2] for line in lines(ended.stdout)] == ["in/e.png", "in/real/b.png"]
    assert lines(ended.stderr) == [
        "error: in/linked: a link to a folder, which is not followed; name it as well",
        "error: in/a.jpg: not a plain file",
        "error: in/c.jpg: not a plain file",
        "error: in/d.jpg: a link to nothing",
        "error: in/a.jpg: not a plain file",
        "error: /dev/zero: not a plain file",
        "error: in/d.jpg: a link to nothing",
        "7 files could not be used",
    ]


def test_images_of_formats_that_are_not_read_are_not_passed_over(
    release: Path, tmp_path: Path
) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    contents = {"1.gif": saved(scene(), "GIF"), "2.HEIC": heic, "3.dcm": bytes(128) + b"DICM"}
    (tmp_path / "in").mkdir()
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    ended = call(release, "in", at=tmp_path)
    assert ended.returncode == 1
    assert [line.split(", not an image of")[0] for line in lines(ended.stderr)] == [
        "error: in/1.gif: a GIF", "error: in/2.HEIC: a HEIC photo", "error: in/3.dcm: a DICOM file",
        "3 files could not be used",
    ]  # fmt: skip


def test_a_huge_file_does_not_end_the_batch(release: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "a.tif").open("wb") as file:
        file.truncate(2**42)  # sparse
    (tmp_path / "in" / "b.png").write_bytes(SOUND)
    ended = call(release, "in", at=tmp_path)
    assert [line.split("\t")[2] for line in lines(ended.stdout)] == ["in/b.png"]
    assert lines(ended.stderr)[0].startswith("error: in/a.tif: a file of 4398047 MB; expected at")


def test_too_little_memory_does_not_end_the_batch(tmp_path: Path) -> None:
    class Small:
        max_pixels = LIMIT
        background_images = 0

        def pixels(self, content: bytes, name: str) -> Any:
            if name == "a.png":
                raise MemoryError
            return np.zeros((2, 2, 1), np.uint8)

        def run(self, images: list[Any], backgrounds: list[Any]) -> Any:
            return [np.full((len(images), 2), 0.5, np.float32)]

    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(SOUND)
    model: Any = Small()
    first, second = predict.answers(model, [tmp_path])
    assert first.problem == "more than this machine's memory holds; make it smaller"
    assert second.problem == ""


@pytest.mark.parametrize("arguments", [
    [""], ["x.png", ""], ["x.png", "--background", ""], ["x.png", "--model", ""],
    ["x.png", "--evidence", ""],
])  # fmt: skip
def test_an_empty_name_is_not_the_current_folder(
    release: Path, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "x.png").write_bytes(SOUND)
    ended = call(release, *arguments, at=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert lines(ended.stderr) == [
        "error: an empty name among the arguments; name a file or a folder"
    ]


def broken_release(release: Path, at: Path, how: str) -> Path:
    folder = at / "release"
    shutil.copytree(release, folder)
    model, labels = folder / "model.onnx", folder / "labels.json"
    if how == "no model":
        model.unlink()
    elif how == "cut model":
        model.write_bytes(model.read_bytes()[:5000])
    elif how == "empty model":
        model.write_bytes(b"")
    elif how == "another model":
        other = onnx.load(model)
        del other.metadata_props[:]
        onnx.save(other, model)
    elif how == "data elsewhere":
        other = onnx.load(model)
        weight = max(other.graph.initializer, key=lambda i: i.ByteSize())
        (at / "outside.bin").write_bytes(onnx.numpy_helper.to_array(weight).tobytes())
        onnx.external_data_helper.set_external_data(weight, "../outside.bin")
        weight.ClearField("raw_data")
        model.write_bytes(other.SerializeToString())
    elif how == "data in the current folder":
        other = onnx.load(model)
        weight = max(other.graph.initializer, key=lambda i: i.ByteSize())
        (at / "inside.bin").write_bytes(onnx.numpy_helper.to_array(weight).tobytes())
        onnx.external_data_helper.set_external_data(weight, "inside.bin")
        weight.ClearField("raw_data")
        model.write_bytes(other.SerializeToString())
    elif how == "data elsewhere, by a padded length":
        model.write_bytes(b"\x0a\x88\x00location")
    elif how == "a text":
        model.write_text("version https://git-lfs.github.com/spec/v1")
    elif how == "a folder":
        model.unlink()
        model.mkdir()
    elif how == "cut labels":
        labels.write_text('["functional", ')
    elif how == "other labels":
        labels.write_text(json.dumps(CLASSES[::-1]))
    elif how == "binary labels":
        labels.write_bytes(b"\xff\xfe")
    elif how == "deep labels":
        labels.write_text("[" * 100_000)
    return folder


@pytest.mark.parametrize(("metadata", "words"), [
    ({"classes": '["one"]'}, """classes = '["one"]'; expected a list of two or more names"""),
    ({"classes": '["one", "one"]'}, "expected a list of two or more names"),
    ({"classes": '{"one": 1, "two": 2}'}, "expected a list of two or more names"),
    ({"classes": "[1, 2]"}, "expected a list of two or more names"),
    ({"classes": "2"}, "expected a list of two or more names"),
    ({"classes": "one, two"}, "expected a list of two or more names"),
    ({"classes": "[" * 100_000}, "expected a list of two or more names"),
    ({"classes": '["a", "b", "c"]'},
     "its network has probabilities, tensor(float) of (batch, 2); expected, by its metadata, "
     "probabilities, tensor(float) of (batch, 3)"),
    ({"image_px": "32"}, "expected, by its metadata, images, tensor(uint8) of (batch, 32, 32, 1)"),
    ({"channels": "3"}, "expected, by its metadata, images, tensor(uint8) of (batch, 64, 64, 3)"),
    ({"channels": "2"}, "its metadata say channels = '2'; expected 1 or 3"),
    ({"bit_depth": "0"}, "its metadata say bit_depth = '0'; expected 8 to 16"),
    ({"max_pixels": "-1"}, "its metadata say max_pixels = '-1'; expected a number of pixels"),
    ({"fit": "squash"}, "its metadata say fit = 'squash'; expected stretch, pad, crop"),
    ({"max_pixels": "1e6"}, "its metadata say max_pixels = '1e6'; expected a number of pixels"),
    ({"min_source_px": "0"}, "its metadata say min_source_px = '0'; expected a number of pixels"),
    ({"min_contrast": "low"}, "its metadata say min_contrast = 'low'; expected 0 to 128"),
    ({"min_contrast": "nan"}, "its metadata say min_contrast = 'nan'; expected 0 to 128"),
    ({"thresholds": "[2, 0.1, 0.2]"}, "thresholds = '[2, 0.1, 0.2]'; expected a class's number"),
    ({"thresholds": "[1, 0.3, 0.2]"}, "expected a class's number and two numbers"),
    ({"thresholds": "[1, -1, 0.2]"}, "expected a class's number and two numbers"),
    ({"thresholds": f"[1, 0, 1{'0' * 400}]"}, "expected a class's number and two numbers"),
    ({"thresholds": "[1, NaN, NaN]"}, "expected a class's number and two numbers"),
    ({"thresholds": "[1, 0.2]"}, "expected a class's number and two numbers"),
    ({"thresholds": "1"}, "expected a class's number and two numbers"),
    ({"thresholds": "{}"}, "expected a class's number and two numbers"),
    ({"background_images": "0"}, "its metadata say background_images = '0'; expected 1 to 255"),
    ({"background_images": "5"},
     "its network has images, tensor(uint8) of (batch, 64, 64, 1); expected, by its metadata, "
     "images, tensor(uint8) of (batch, 64, 64, 1) and backgrounds, tensor(uint8) of (batch, 64, "),
])  # fmt: skip
def test_metadata_that_do_not_fit_are_refused(
    release: Path, tmp_path: Path, metadata: dict[str, str], words: str
) -> None:
    path = with_metadata(release, tmp_path, **metadata)
    with pytest.raises(predict.BadModel) as caught:
        predict.Model(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; copy the whole release folder again")


def test_a_background_for_a_model_without(release: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(SOUND)
    ended = call(release, "x.png", "--background", "x.png", at=tmp_path)
    assert ended.returncode == 2
    assert lines(ended.stderr) == [
        "error: --background: this model takes no background; leave the option out"
    ]


@pytest.mark.parametrize(("how", "words"), [
    ("no model", "model.onnx: no such file; copy the whole release folder again"),
    ("cut model", "cannot load it ("),
    ("empty model", "cannot load it ("),
    ("data elsewhere", "keeps data in another file, and a released model is one file; fetch"),
    ("data in the current folder", "keeps data in another file, and a released model is one file"),
    ("data elsewhere, by a padded length", "keeps data in another file"),
    ("a text", "cannot load it ("),
    ("a folder", "model.onnx: no such file; copy the whole release folder again"),
    ("another model", "model.onnx: no model of this project's (its metadata lack 'classes')"),
    ("cut labels", "labels.json: not readable ("),
    ("other labels", "labels.json: other classes than the model's (functional, defective)"),
    ("binary labels", "labels.json: not readable ("),
    ("deep labels", "labels.json: not readable ("),
])  # fmt: skip
def test_a_broken_release_is_one_line(release: Path, tmp_path: Path, how: str, words: str) -> None:
    (tmp_path / "x.png").write_bytes(SOUND)
    ended = call(broken_release(release, tmp_path, how), "x.png", at=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == b""
    (line,) = lines(ended.stderr)
    assert line.startswith("error: ")
    assert words in line


def with_manifest(release: Path, folder: Path) -> Path:
    """A copy that has a manifest.json, as the check stage writes it, and another format."""
    shutil.copytree(release, folder)
    shutil.copyfile(release / "model.onnx", folder / "model_int8_cpu.onnx")
    hashes = {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "model_int8_cpu.onnx", "labels.json"])
def test_a_file_that_differs_from_the_manifest_is_refused(
    release: Path, tmp_path: Path, name: str
) -> None:
    folder = with_manifest(release, tmp_path / "release")
    (tmp_path / "x.png").write_bytes(SOUND)
    variant = ["--model", str(folder / name)] if "int8" in name else []
    assert call(folder, "x.png", *variant, at=tmp_path).returncode == 0
    # Both would load: metadata stand at a model's end, blanks at that of the labels.
    with (folder / name).open("ab") as file:
        file.write(b" " if name == "labels.json" else b"\x72\x00")
    ended = call(folder, "x.png", *variant, at=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert lines(ended.stderr) == [
        f"error: {folder / name}: not the file that was released (its SHA-256 differs from that in "
        "manifest.json); fetch the whole release again"
    ]
    # A model that is copied alone has nothing to be held against.
    (folder / "manifest.json").unlink()
    assert call(folder, "x.png", *variant, at=tmp_path).returncode == 0


def test_a_file_that_the_manifest_does_not_list_is_refused(release: Path, tmp_path: Path) -> None:
    folder = with_manifest(release, tmp_path / "release")
    shutil.copyfile(folder / "model.onnx", folder / "mine.onnx")
    with pytest.raises(predict.BadModel, match=r"mine\.onnx: not listed in the manifest\.json "):
        predict.Model(folder / "mine.onnx")


@pytest.mark.parametrize("content", ODD_MANIFESTS.values(), ids=list(ODD_MANIFESTS))
def test_an_odd_manifest_is_one_line(release: Path, tmp_path: Path, content: bytes) -> None:
    folder = with_manifest(release, tmp_path / "release")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(predict.BadModel) as caught:
        predict.Model(folder / "model.onnx")
    assert str(caught.value).startswith(f"{folder / 'manifest.json'}: not readable (")
    assert str(caught.value).endswith("); fetch the whole release again")
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_no_file_is_one_line(release: Path, tmp_path: Path) -> None:
    """A pipe would block for ever."""
    folder = with_manifest(release, tmp_path / "release")
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    ended = call(folder, "x.png", at=tmp_path)
    assert ended.returncode == 2
    assert lines(ended.stderr) == [
        f"error: {folder / 'manifest.json'}: not readable (not a plain file); fetch the whole "
        "release again"
    ]


@pytest.mark.usefixtures("quick")
def test_twelve_bits_reach_the_release(
    image_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder of 12-bit files to what a released model sees of one of them."""
    folder = image_folder()
    for file in folder.glob("*.png"):
        values = np.asarray(Image.open(file)).astype(np.uint16) * 16
        if file.name == "g1_1.png":
            values[3, 3] = 65535  # a hot pixel
        Image.fromarray(values).save(file)
    out = validate(tmp_path)
    assert (
        "16-bit files: 48; the value that becomes white: 4095 (12 bits" in capsys.readouterr().out
    )
    assert json.loads((out / "metrics").read_text())["bit_depth"] == 12
    data = load_dataset(out / "validated")
    assert (data.rules.bit_depth, data.rules.max_pixels) == (12, 500_000)
    assert len(np.unique(data.pixels[:5])) > 100
    content = (folder / str(data.files[7])).read_bytes()
    picture = predict.read(content, image_px=32, max_pixels=data.rules.max_pixels)
    assert np.array_equal(predict.as_input(picture, 1, data.rules.bit_depth), data.pixels[7])


@pytest.mark.slow
def test_the_oldest_software_that_the_card_names(release: Path, tmp_path: Path) -> None:
    """In a bare environment of the three packages alone, as old as the card says."""
    pins = [f"{name}=={v}" for name, v in re.findall(r'"(\w+)>=([0-9.]+)"', TEMPLATE.read_text())]
    assert [pin.split("==")[0] for pin in pins] == ["onnxruntime", "numpy", "pillow"]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *pins]
    subprocess.run(install, check=True)
    (tmp_path / "images").mkdir()
    deep = np.asarray(scene("L")).astype(np.uint16) * 16
    Image.fromarray(deep).save(tmp_path / "images" / "deep.png")
    for kind, suffix in (("PNG", "png"), ("TIFF", "tif"), ("BMP", "bmp"), ("WEBP", "webp")):
        options = {"lossless": True} if kind == "WEBP" else {}
        (tmp_path / "images" / f"{kind}.{suffix}").write_bytes(saved(scene(), kind, **options))
    (tmp_path / "images" / "odd.gif.png").write_bytes(saved(scene(), "GIF"))
    command = [str(python), "-I", str(release / "predict.py"), "--format", "json", "images"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stderr.splitlines() == [
        "error: images/odd.gif.png: a GIF, not an image of BMP, JPEG, PNG, TIFF, WEBP; export it "
        "as PNG or JPEG",
        "1 file could not be used",
    ]
    rows = json.loads(ended.stdout)
    assert len(rows) == 5
    model = predict.Model(release / "model.onnx")
    pixels = [model.pixels((tmp_path / row["file"]).read_bytes()) for row in rows]
    with torch.inference_mode():
        expected = Calibrated(net(), 1.7)(torch.from_numpy(np.stack(pixels))).numpy()
    given = [[row["probabilities"][name] for name in CLASSES] for row in rows]
    np.testing.assert_allclose(given, expected, atol=1e-5)

    # And a model that divides by the images' median.
    shutil.copytree(release, tmp_path / "dividing")
    dividing = METADATA | {"background_images": "3"}
    file = tmp_path / "dividing" / "model.onnx"
    export(net(), file, temperature=1.7, metadata=dividing, background="group")
    command[2] = str(tmp_path / "dividing" / "predict.py")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    given = [[r["probabilities"][name] for name in CLASSES] for r in json.loads(ended.stdout)]
    median = predict.median(pixels)
    divided = torch.from_numpy(np.stack([divide(image, median) for image in pixels]))
    with torch.inference_mode():
        expected = Calibrated(net(), 1.7)(divided).numpy()
    np.testing.assert_allclose(given, expected, atol=1e-5)

    # And its evidence, and int8; float16 is for GPUs, and asks for a newer one.
    (tmp_path / "more").mkdir()
    original, explained = tmp_path / "more" / "fp32.onnx", tmp_path / "more" / "evidence.onnx"
    export(net(), original, temperature=1.7, metadata=METADATA, explained=explained)
    quantised = as_int8(onnx.load(original), USUAL, [(np.stack(pixels),)])
    write(quantised, tmp_path / "more" / "int8.onnx", metadata_of(onnx.load(original)))
    expected = np.array([[row["probabilities"][name] for name in CLASSES] for row in rows])
    command[2] = str(release / "predict.py")
    for name, limit in (("evidence", 1e-5), ("int8", 0.2)):
        extra = ["--evidence", "maps"] if name == "evidence" else []
        more = ["--model", str(tmp_path / "more" / f"{name}.onnx"), *extra]
        ended = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
        given = [[r["probabilities"][label] for label in CLASSES] for r in json.loads(ended.stdout)]
        assert np.abs(np.array(given) - expected).max() < limit, name
    assert len(list((tmp_path / "maps").iterdir())) == 5

    # The oldest runtime has no guard of its own against data in the current folder.
    broken = broken_release(release, tmp_path, "data in the current folder")
    command[2] = str(broken / "predict.py")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "keeps data in another file" in ended.stderr

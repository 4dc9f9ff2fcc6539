"""A release's own script, run as its users run it: as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import onnx

from tests.helpers.scenes import saved, scene

CLASSES = ["functional", "defective"]
SOUND = saved(scene(), "PNG")
# What may stand in a manifest.json that nobody can use.
ODD_MANIFESTS = {
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "a text": b'"sha256"',
    "no hashes": b'{"md5": {}}',
    "hashes in a list": b'{"sha256": ["model.onnx"]}',
    "no hashes at all": b'{"sha256": null}',
    "numbers for hashes": b'{"sha256": {"model.onnx": 5}}',
    "nested": b'{"sha256": {"model.onnx": {"sha256": "5e88"}}}',
    "too deep": b"[" * 100_000,
    "broken UTF-8": b'{"sha256": {"\xff": ""}}',
    "cut": b'{"sha256": {',
    "empty": b"",
}


def call(
    release: Path, *arguments: str | Path, at: Path, **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    """`python predict.py` in folder `at`; never with a traceback."""
    command = [sys.executable, release / "predict.py", *arguments]
    ended = subprocess.run(command, cwd=at, env=os.environ | environment, capture_output=True)
    assert b"Traceback" not in ended.stderr, ended.stderr.decode()
    return ended


def lines(output: bytes) -> list[str]:
    return output.decode().splitlines()


def with_metadata(release: Path, at: Path, **metadata: str) -> Path:
    """A release without labels.json, with other metadata in its model."""
    model = onnx.load(release / "model.onnx")
    entries = {entry.key: entry.value for entry in model.metadata_props} | metadata
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, at / "model.onnx")
    return at / "model.onnx"

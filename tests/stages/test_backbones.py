"""Architectures of other families, from a local weights file: built, frozen, trained, exported."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from stages import teacher
from stages.core.dataset.data import save_dataset
from stages.core.dataset.views import Views
from stages.core.nets.files import load_teacher
from stages.core.nets.onnx_export import export
from stages.core.nets.onnx_run import probabilities, session
from stages.core.runner.params import load_section
from stages.core.runner.runtime import Resources
from tests.conftest import ROOT, dataset


def validated(folder: Path) -> Path:
    data = dataset(n=40, px=64)
    folder.mkdir()
    np.save(folder / "pixels.npy", data.pixels)
    labels = [data.classes[k] for k in data.labels]
    table = pd.DataFrame(
        {"file_name": data.files, "label": labels, "group": data.groups, "domain": data.domains}
    )
    save_dataset(folder, table.assign(split=data.splits), data.classes, data.rules, data.symmetries)
    return folder


RESOURCES = Resources(device="cpu", threads=2, processes=1, cache_gb=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "out_indices"),
    [("resnet18", [0, 1, 2]), ("vgg11_bn", [1, 2]), ("vit_tiny_patch16_224", [0, 1])],
)
def test_builds_freezes_trains_and_exports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: str, out_indices: list[int]
) -> None:
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    state = {k: v.contiguous() for k, v in timm.create_model(backbone).state_dict().items()}
    save_file(state, tmp_path / "weights" / "local.safetensors")
    paths = teacher.Paths(
        validated=validated(tmp_path / "validated"),
        weights=tmp_path / "weights",
        cache=tmp_path / "cache",
        teacher=tmp_path / "teacher",
        metrics=tmp_path / "metrics.json",
        curves=tmp_path / "curves.csv",
        picture=tmp_path / "curves.png",
        predictions=tmp_path / "predictions.csv",
        scratch=tmp_path / "scratch",
    )
    params = load_section(ROOT / "params.yaml", "teacher", teacher.Params)
    params = params.model_copy(
        update={
            "backbones": [backbone],
            "out_indices": out_indices,
            "weights": str(tmp_path / "weights" / "local.safetensors"),
            "frozen_groups": 2,
            "view_count": 1,
            "recipe": params.recipe.model_copy(update={"epochs": 1}),
        }
    )
    teacher.run(params, paths=paths, resources=RESOURCES)
    words = f"{backbone} is no chain of layers: frozen ones run in every step"
    assert (words in capsys.readouterr().out) == backbone.startswith("vit")

    (member,) = load_teacher(paths.teacher).each()
    frozen = {n for g in member.layer_groups()[:2] for p in g
              for n, q in member.backbone.model.named_parameters() if p is q}  # fmt: skip
    trained = member.backbone.model.state_dict()
    assert frozen
    same = {n for n in trained if n in state and torch.equal(trained[n], state[n])}
    assert {n for n in frozen if n != "pos_embed"} <= same
    # BatchNorm keeps its own, trained layers' too.
    assert {n for n, _ in member.backbone.model.named_buffers()} & set(state) <= same
    assert not {n for n, _ in member.backbone.model.named_parameters()} <= same

    export(member, tmp_path / "model.onnx", temperature=1.0, metadata={})
    views = Views(dataset(n=40, px=64).pixels, 0, 0, "all")
    actual = probabilities(
        session(tmp_path / "model.onnx", "cpu", threads=1),
        lambda rows: (views.pixels[rows],),
        np.arange(7),
    )
    with torch.inference_mode():
        expected = member(views.plain(np.arange(7))).softmax(1).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo

from stages.core import weights
from stages.core.errors import ParamsError, Unavailable
from stages.core.nets import Net, build_pretrained, count_parameters, load_net, save_net


def build(stages: list[int]) -> Net:
    return build_pretrained(
        "tf_efficientnet_lite0", stages=stages, classes=["a", "b"], image_px=64, channels=1
    )


@pytest.mark.parametrize("name", sorted(weights.PACKAGED))
def test_packaged_weights_know_a_palace(name: str) -> None:
    state, mean, std = weights.load_pretrained(name)
    model = timm.create_model(name).eval()
    model.load_state_dict(state)
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((320, 224))
    pixels = np.asarray(photo.crop((48, 0, 272, 224)), dtype=np.float32) / 255
    x = torch.from_numpy((pixels - np.float32(mean)) / np.float32(std))
    with torch.inference_mode():
        logits = model(x.permute(2, 0, 1)[None])
    assert ImageNetInfo().index_to_description(int(logits.argmax())) == "palace"


def test_a_cut_network_is_small() -> None:
    whole, cut = build([0, 1, 2, 3, 4]), build([0, 1, 2])
    assert count_parameters(cut) < 60_000
    assert count_parameters(cut) * 50 < count_parameters(whole)


def test_a_cut_network_computes_what_the_whole_one_does() -> None:
    images = torch.randint(0, 256, (2, 64, 64, 1), dtype=torch.uint8)
    whole, cut = build([0, 1, 2, 3, 4]).eval(), build([0, 1, 2]).eval()
    with torch.inference_mode():
        a, b = whole.features(images), cut.features(images)
    assert torch.allclose(a[:, : b.shape[1]], b, atol=1e-5)


def test_a_new_head_says_nothing_yet() -> None:
    images = torch.randint(0, 256, (2, 64, 64, 1), dtype=torch.uint8)
    assert torch.equal(build([0]).eval()(images), torch.zeros(2, 2))


def test_constant_images_give_finite_gradients() -> None:
    net = build([0, 1])
    net.train()
    net(torch.zeros(2, 64, 64, 1, dtype=torch.uint8)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_model_folder_round_trip(tmp_path: Path) -> None:
    net = build([0, 2]).eval()
    torch.nn.init.normal_(net.head.linear.weight)
    images = torch.randint(0, 256, (2, 64, 64, 1), dtype=torch.uint8)
    save_net(tmp_path / "a", net)
    save_net(tmp_path / "b", net)
    with torch.inference_mode():
        assert torch.equal(load_net(tmp_path / "a")(images), net(images))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_unknown_backbone() -> None:
    with pytest.raises(ParamsError, match="backbone 'resnet1234': timm has no such model"):
        weights.load_pretrained("resnet1234")


def test_without_a_network_the_offline_choices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def offline(name: str, *, pretrained: bool = False) -> torch.nn.Module:
        if pretrained:
            raise ConnectionError("no route to host")
        made: torch.nn.Module = real(name)
        return made

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(Unavailable, match=r"resnet18.*ConnectionError.*tf_efficientnet_lite0"):
        weights.load_pretrained("resnet18")


def test_tampered_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package, file, _ = weights.PACKAGED["tf_efficientnet_lite0"]
    monkeypatch.setitem(weights.PACKAGED, "tf_efficientnet_lite0", (package, file, "0" * 64))
    with pytest.raises(Unavailable, match="install the package again"):
        weights.load_pretrained("tf_efficientnet_lite0")

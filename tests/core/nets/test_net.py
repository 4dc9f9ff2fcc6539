import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo
from timm.models import _hub as timm_hub

from stages.core.dataset.views import Views
from stages.core.nets import net as nets
from stages.core.nets import weights
from stages.core.nets.files import load_net, load_teacher, save_net, save_teacher, save_weights
from stages.core.nets.inference import features_of
from stages.core.nets.net import Net, count_macs, count_parameters
from stages.core.runner.errors import ParamsError, Unavailable
from stages.core.training.inputs import Inputs
from tests.conftest import ROOT, dataset

LITE = "tf_efficientnet_lite0"


def build(out_indices: list[int], **changes: Any) -> Net:
    how: dict[str, Any] = {
        "backbone": LITE,
        "weights": weights.packaged(LITE),
        "data": dataset(px=64),
    } | changes
    return nets.build(out_indices=out_indices, **how)


@pytest.mark.parametrize("name", sorted(weights.PACKAGED))
def test_packaged_weights_know_a_palace(name: str) -> None:
    model = timm.create_model(name).eval()
    model.load_state_dict(weights.packaged(name))
    mean, std = model.default_cfg["mean"], model.default_cfg["std"]
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


@pytest.mark.parametrize("changes", [{}, {"width": 0.5}, {"weights": None}])
def test_looking_at_images_changes_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    """BatchNorm's statistics, that is: no forward pass before the training may touch them."""
    net = build([0, 1], **changes)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    data = dataset(px=64)
    views, rows = Views(data.pixels, 0, 0, "all"), data.rows("train")
    net.freeze_lowest(2)
    net.links()
    features_of(net, views.plain, rows)
    Inputs(net, views, rows, 1, tmp_path, plain=rows[:0], most_gb=1)
    count_macs(net)
    net.links()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_finding_the_links_leaves_every_mode(training: bool) -> None:
    net = build([0, 1])
    net.train(training)
    before = [module.training for module in net.modules()]
    net.links()
    assert [module.training for module in net.modules()] == before


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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_weights_can_be_read_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_weights(torch.nn.Linear(2, 2), tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == mode
    assert set(load_file(tmp_path / "model.safetensors")) == {"weight", "bias"}


def test_nothing_else_writes_weights() -> None:
    """`safetensors.torch.save_file` makes files that their owner alone can read."""
    texts = [file.read_text() for file in (ROOT / "stages").rglob("*.py")]
    assert not [text for text in texts if "save_file(" in text]


def test_macs_are_those_of_the_formula() -> None:
    # Stem: 3x3x3 to 32 channels at half the size; stage 0: depthwise 3x3 and 1x1 to 16; head.
    side = 32 * 32
    expected = side * (27 * 32 + 9 * 32 + 32 * 16) + 3 * 16 * 2
    assert count_macs(build([0])) == expected


def test_a_thin_network_takes_a_selection() -> None:
    whole = weights.packaged(LITE)
    thin = build([0, 1, 2, 3, 4], width=0.5, depth=0.5)
    state = thin.backbone.model.state_dict()
    assert count_parameters(thin) < 0.3 * count_parameters(build([0, 1, 2, 3, 4]))
    assert not thin.frozen_statistics
    name = "blocks.3.0.conv_pw.weight"
    rows = np.linspace(0, whole[name].shape[0] - 1, state[name].shape[0]).round()
    columns = np.linspace(0, whole[name].shape[1] - 1, state[name].shape[1]).round()
    naive = [[whole[name][int(r), int(c), 0, 0] for c in columns] for r in rows]
    assert torch.equal(state[name][:, :, 0, 0], torch.tensor(naive))


def test_only_one_family_is_thinned() -> None:
    with pytest.raises(ParamsError, match=r"backbone 'lcnet_050': width 0\.5"):
        build([0], backbone="lcnet_050", weights=None, width=0.5)


def test_without_weights_batch_norm_learns_its_statistics() -> None:
    net = build([0], backbone="lcnet_050", weights=None)
    norm = net.backbone.model.bn1
    net.train()
    assert norm.training
    pretrained = build([0])
    pretrained.train()
    assert not pretrained.backbone.model.bn1.training


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("packaged", Unavailable, ["'resnet18'", "not packaged", LITE]),
        ("data/other/x.safetensors", ParamsError, ["'hub@'", "a .safetensors file in"]),
        ("weights.pth", ParamsError, ["'packaged', 'hub@'", "'none', or a .safetensors file"]),
        ("missing.safetensors", Unavailable, ["missing.safetensors", "not readable"]),
        ("broken.safetensors", Unavailable, ["broken.safetensors", "not readable"]),
    ],
)
def test_weights_that_are_not_there(
    tmp_path: Path, source: str, error: type[Exception], words: list[str]
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"none of these")
    path = source if "/" in source or source == "packaged" else str(tmp_path / source)
    with pytest.raises(error) as caught:
        weights.load_weights("resnet18", path, tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("lcnet_050").state_dict(), tmp_path / "lcnet.safetensors")
    file = str(tmp_path / "lcnet.safetensors")
    with pytest.raises(Unavailable, match=r"conv_stem\.weight is .* expected .* timm's tf_eff"):
        build([0], weights=weights.load_weights(LITE, file, tmp_path))
    right = weights.load_weights("lcnet_050", file, tmp_path)
    assert build([0], backbone="lcnet_050", weights=right).frozen_statistics


@pytest.mark.parametrize(
    ("backbone", "out_indices", "words"),
    [
        (LITE, [0, 9], r"'tf_efficientnet_lite0', out_indices \[0, 9\]: .*index 9 is out of range"),
        (LITE, [-1], r"out_indices = \[-1\]: expected indices from 0 on"),
        (LITE, [1, 0], r"out_indices = \[1, 0\]: .*in rising order"),
        ("caformer_s18", [0], r"'caformer_s18', .*no layer groups .*group_matcher"),
        ("hardcorenas_a", [0], r"'hardcorenas_a', .*timm does not give these feature maps"),
    ],
)
def test_stages_that_are_not_there(backbone: str, out_indices: list[int], words: str) -> None:
    with pytest.raises(ParamsError, match=words):
        build(out_indices, backbone=backbone, weights=None)


def test_frozen_batchnorm_is_frozen_also_where_statistics_are_learned() -> None:
    net = build([0, 1], weights=None)
    assert not net.frozen_statistics
    net.freeze_lowest(2)
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    net.train()
    net(torch.randint(0, 256, (4, 64, 64, 1), dtype=torch.uint8))
    moved = {k for k, v in before.items() if not torch.equal(v, net.state_dict()[k])}
    assert {k.split(".")[3] if "blocks" in k else "stem" for k in moved} == {"1"}
    assert {k for k in before if ".blocks.1." in k} == moved


def test_unknown_backbone() -> None:
    with pytest.raises(ParamsError, match="backbone 'resnet1234': timm has no such model"):
        weights.load_weights("resnet1234", "packaged", Path())


REVISION = "0123456789" * 4


def test_without_a_network_the_offline_choices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm_hub, "hf_hub_download", offline)
    with pytest.raises(Unavailable, match=r"resnet18.*ConnectionError.*tf_efficientnet_lite0"):
        weights.load_weights("resnet18", f"hub@{REVISION}", Path())


def test_weights_of_the_hub_are_those_of_a_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    theirs = timm.create_model("resnet18")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    asked: list[tuple[object, object]] = []

    def download(*, repo_id: str, revision: str | None, **_: object) -> str:
        asked.append((repo_id, revision))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(timm_hub, "hf_hub_download", download)
    state = weights.load_weights("resnet18", f"hub@{REVISION}", Path())
    assert asked == [("timm/resnet18.a1_in1k", REVISION)]
    net = build([0, 1], backbone="resnet18", weights=state)
    assert torch.equal(net.backbone.model.conv1.weight, theirs.conv1.weight)
    assert net.frozen_statistics


@pytest.mark.parametrize("source", ["hub", "hub@main", "hub@0123abc"])
def test_weights_that_could_change_are_refused(source: str) -> None:
    with pytest.raises(ParamsError, match="'hub@' and the 40 digits of a commit of timm/resnet18"):
        weights.load_weights("resnet18", source, Path())


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_weights_that_end_too_early_are_refused(width: float) -> None:
    short = build([0, 1], weights=None).backbone.model.state_dict()
    with pytest.raises(Unavailable, match=r"blocks\.2\.\S+ is nothing, expected"):
        build([0, 1, 2], weights=short, width=width)


def test_more_groups_than_there_are_cannot_be_frozen() -> None:
    net = build([0, 1], weights=None)
    net.freeze_lowest(3)
    assert net.freezes()
    assert not any(p.requires_grad for p in net.backbone.parameters())
    with pytest.raises(ParamsError, match=r"frozen_groups = 4: .*up to stage 1 has 3 layer groups"):
        net.freeze_lowest(4)
    net.freeze_lowest(0)
    assert not net.freezes()


def test_members_come_back_in_their_order(tmp_path: Path) -> None:
    members = []
    for number in range(11):
        member = build([0], weights=None)
        torch.nn.init.constant_(member.head.linear.bias, number)
        members.append(member)
    save_teacher(tmp_path / "teacher", members)
    loaded = load_teacher(tmp_path / "teacher").each()
    assert [net.head.linear.bias[0].item() for net in loaded] == list(range(11))


def test_tampered_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package, file, _ = weights.PACKAGED["tf_efficientnet_lite0"]
    monkeypatch.setitem(weights.PACKAGED, "tf_efficientnet_lite0", (package, file, "0" * 64))
    with pytest.raises(Unavailable, match="install the package again"):
        weights.packaged(LITE)

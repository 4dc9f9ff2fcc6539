import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from stages.core.dataset.views import Views
from stages.core.nets import net as nets
from stages.core.nets import weights
from stages.core.nets.files import load_net, save_net
from stages.core.nets.net import Net
from stages.core.training.inputs import Inputs
from tests.conftest import dataset

DATA = dataset(n=10, px=64)
LITE = "tf_efficientnet_lite0"


def net(backbone: str = LITE, out_indices: list[int] | None = None, *, frozen: int = 2) -> Net:
    torch.manual_seed(0)
    state = weights.packaged(LITE) if backbone == LITE else timm.create_model(backbone).state_dict()
    network = nets.build(backbone, state, out_indices=out_indices or [0, 1], data=DATA)
    torch.nn.init.normal_(network.head.linear.weight, std=0.1)
    network.freeze_lowest(frozen)
    return network.eval()


VIEWS = Views(DATA.pixels, seed=1, jitter=0.1, symmetries="all")
TRAIN, VAL = DATA.rows("train"), DATA.rows("val")


def stored(network: Net, folder: Path) -> Inputs:
    return Inputs(network, VIEWS, TRAIN, 2, folder, plain=VAL, most_gb=1)


@pytest.mark.parametrize("backbone", [LITE, "lcnet_050", "resnet18", "vgg11_bn", "convnext_atto"])
def test_stored_activations_give_the_networks_own_logits(tmp_path: Path, backbone: str) -> None:
    network = net(backbone)
    result = stored(network, tmp_path)
    assert result.links > 0
    with torch.inference_mode():
        live = network(VIEWS.batch(TRAIN[[3, 0]], 1))
        again = network(result.batch(TRAIN[[3, 0]], 1))
    assert torch.allclose(live, again, atol=2e-3, rtol=2e-3)
    plain = result.evaluate(network, VAL)
    assert np.allclose(plain, network(VIEWS.plain(VAL)).detach().numpy(), atol=2e-3, rtol=2e-3)


def test_a_transformer_is_no_chain_and_is_run_as_a_whole(tmp_path: Path) -> None:
    network = net("vit_tiny_patch16_224", [0])
    assert network.links() == []
    result = stored(network, tmp_path)
    assert result.links == 0
    with torch.inference_mode():
        assert torch.equal(network(result.batch(TRAIN, 1)), network(VIEWS.batch(TRAIN, 1)))
    assert not list(tmp_path.iterdir())


def test_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored(net(), tmp_path)

    def never(self: Inputs, *_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Inputs, "_compute", never)
    other = net()
    torch.nn.init.zeros_(other.head.linear.weight)
    again = stored(other, tmp_path)
    assert torch.equal(first.activations(TRAIN, 1).maps, again.activations(TRAIN, 1).maps)


def test_student_and_its_refinement_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = net()
    first = stored(student, tmp_path / "kept")
    save_net(tmp_path / "student", student)
    loaded = load_net(tmp_path / "student")
    loaded.freeze_lowest(2)
    assert loaded.frozen_links() == student.frozen_links() > 0
    monkeypatch.setattr(Inputs, "_compute", None)
    again = stored(loaded, tmp_path / "kept")
    assert torch.equal(again.activations(TRAIN, 1).maps, first.activations(TRAIN, 1).maps)


def test_the_last_two_networks_files_are_kept(tmp_path: Path) -> None:
    listings: list[set[str]] = []
    for number in range(4):
        network = net()
        with torch.no_grad():
            network.backbone.model.conv_stem.weight[0, 0, 0, 0] += number
        stored(network, tmp_path)
        listings.append({p.name for p in tmp_path.iterdir()})
        for folder in tmp_path.iterdir():
            os.utime(folder, (number, number) if folder.name not in listings[0] else (9, 9))
    first, second, third, last = listings
    assert [len(folders) for folders in listings] == [1, 2, 2, 2]
    assert first < second
    assert first < third
    assert first < last
    assert not (third - first) & last


def test_other_feature_maps_are_read_anew(tmp_path: Path) -> None:
    one, two = (stored(net(out_indices=out_indices), tmp_path) for out_indices in ([0, 1], [1]))
    assert (
        one.activations(TRAIN, 1).pooled.shape[1] > two.activations(TRAIN, 1).pooled.shape[1] == 0
    )


def test_other_weights_or_views_are_computed_anew(tmp_path: Path) -> None:
    stored(net(), tmp_path)
    changed = net()
    with torch.no_grad():
        changed.backbone.model.conv_stem.weight[0, 0, 0, 0] += 1
    stored(changed, tmp_path)
    folders = {p.name for p in tmp_path.iterdir()}
    assert len(folders) == 2
    Inputs(
        net(),
        Views(DATA.pixels, seed=2, jitter=0.1, symmetries="all"),
        TRAIN,
        2,
        tmp_path,
        plain=VAL,
        most_gb=1,
    )
    assert len({p.name for p in tmp_path.iterdir()} - folders) == 1


def test_a_killed_computation_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stored(net(), tmp_path / "a").activations(TRAIN, 1).maps
    real, calls = Net.lowest, 0

    def dies(self: Net, images: torch.Tensor, links: int) -> nets.Activations:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, images, links)

    monkeypatch.setattr(Net, "lowest", dies)
    with pytest.raises(KeyboardInterrupt):
        stored(net(), tmp_path / "b")
    monkeypatch.setattr(Net, "lowest", real)
    assert torch.equal(stored(net(), tmp_path / "b").activations(TRAIN, 1).maps, expected)


def test_what_is_too_large_is_not_stored_and_gives_the_same(tmp_path: Path) -> None:
    network = net()
    stored_ = stored(network, tmp_path / "a")
    live = Inputs(network, VIEWS, TRAIN, 2, tmp_path / "b", plain=VAL, most_gb=1e-6)
    assert not (tmp_path / "b").exists()
    with torch.inference_mode():
        a, b = stored_.activations(TRAIN, 1), live.activations(TRAIN, 1)
        assert torch.allclose(a.maps, b.maps, atol=1e-3, rtol=1e-3)
        assert torch.allclose(a.pooled, b.pooled, atol=1e-3, rtol=1e-3)
        assert np.allclose(stored_.evaluate(network, VAL), live.evaluate(network, VAL), atol=1e-3)


def test_frozen_layers_do_not_change_in_training(tmp_path: Path) -> None:
    network = net()
    result = stored(network, tmp_path)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()
    torch.autograd.backward(network(result.batch(TRAIN, 0)).square().sum())
    frozen = [p for _, link in network.links()[: result.links] for p in link.parameters()]
    assert frozen
    assert all(p.grad is None for p in frozen)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_full_disk_is_said_and_the_layers_run_in_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = net()
    expected = stored(network, tmp_path / "a").activations(TRAIN, 1).maps
    written = 0

    def fallocate(*_: object) -> None:
        nonlocal written
        written += 1
        if written == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    capsys.readouterr()
    live = stored(network, tmp_path / "b")
    assert re.search(
        r"^frozen layers' output takes 0\.0 GB, and .* has [\d.]+ GB left: not stored",
        capsys.readouterr().out, re.MULTILINE,
    )  # fmt: skip
    assert torch.allclose(live.activations(TRAIN, 1).maps, expected, atol=1e-3, rtol=1e-3)
    assert not list((tmp_path / "b").rglob("*.npy"))


def test_space_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    # A sparse file on a full disk ends the process by SIGBUS.
    stored(net(), tmp_path)
    files = list(tmp_path.rglob("*-activations.npy"))
    assert files
    for file in files:
        assert file.stat().st_blocks * 512 >= file.stat().st_size


@pytest.mark.parametrize("kind", ["activations", "pooled"])
@pytest.mark.parametrize("left", [0, 100, 200])
def test_what_a_power_cut_left_is_made_again(tmp_path: Path, kind: str, left: int) -> None:
    expected = stored(net(), tmp_path).activations(TRAIN, 1)
    (file,) = tmp_path.rglob(f"*-1-{kind}.npy")
    os.truncate(file, left)
    again = stored(net(), tmp_path).activations(TRAIN, 1)
    assert torch.equal(again.maps, expected.maps)
    assert torch.equal(again.pooled, expected.pooled)

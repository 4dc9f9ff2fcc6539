from pathlib import Path

import numpy as np
import pytest
import torch

from stages import augment
from stages.core.dataset.symmetries import Symmetries, turned
from stages.core.gan import training
from stages.core.gan.diffaugment import augment as diffaugment
from stages.core.gan.losses import gradient_penalty, pairing_loss
from stages.core.gan.networks import Discriminator, Generator
from stages.core.gan.training import RealImages
from stages.core.runner.checkpoint import Checkpoint


def test_shapes() -> None:
    generator = Generator(classes=2, channels=1, image_px=32, width=8, noise=5)
    discriminator = Discriminator(classes=2, channels=1, image_px=32, width=8)
    labels = torch.tensor([0, 1, 1])
    images = generator(torch.randn(3, 5), labels)
    assert images.shape == (3, 1, 32, 32)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (3,)


def test_the_label_matters_to_both_players() -> None:
    torch.manual_seed(0)
    generator = Generator(classes=2, channels=1, image_px=32, width=8, noise=5)
    discriminator = Discriminator(classes=2, channels=1, image_px=32, width=8)
    noise = torch.randn(1, 5)
    a, b = (generator(noise, torch.tensor([k])) for k in (0, 1))
    assert not torch.allclose(a, b)
    x, y = (discriminator(a, torch.tensor([k])) for k in (0, 1))
    assert not torch.allclose(x, y)


def test_gradient_penalty_of_a_linear_score() -> None:
    weight = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    images = torch.randn(5, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    scores = (images * weight).sum((1, 2, 3))
    expected = float(weight.square().sum())
    assert float(gradient_penalty(scores, images).detach()) == pytest.approx(expected)


def test_pairing_loss() -> None:
    better, worse = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    expected = (np.log1p(np.exp(-2.0)) + np.log(2.0)) / 2
    assert float(pairing_loss(better, worse)) == pytest.approx(expected, rel=1e-6)


def test_augmentation_is_seeded_and_passes_gradients() -> None:
    images = torch.rand(4, 1, 32, 32, requires_grad=True)
    first = diffaugment(images, torch.Generator().manual_seed(1))
    again = diffaugment(images, torch.Generator().manual_seed(1))
    other = diffaugment(images, torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.autograd.backward(first.sum())
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_the_filter_keeps_what_the_teacher_finds_likely() -> None:
    margin = np.concatenate([np.linspace(-1, 1, 100), [-5.0, 5.0, 0.9]])
    logits = np.stack([-margin, margin], 1).astype(np.float32)
    chosen_rows = augment.kept_by_teacher(logits, label=1, burn_in=100, quantile=0.9)
    assert chosen_rows.tolist() == [101, 102]


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [("none", [0]), ("mirror", [0, 4]), ("rotations", [0, 2]), ("all", [0, 2, 4, 6])],
)
def test_real_images_are_shown_in_the_chosen_symmetries(
    choice: Symmetries, numbers: list[int]
) -> None:
    """Those of them that leave a rectangular pattern upright, and drawn as ever."""
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    real = RealImages(torch.from_numpy(image), torch.zeros(1, dtype=torch.long), 1, choice)
    seen, _ = real.batch(100, torch.Generator().manual_seed(5))
    pixels = ((seen + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    draws = torch.Generator().manual_seed(5)
    torch.randint(1, (100,), generator=draws)
    torch.rand(100, generator=draws)
    drawn = torch.randint(len(numbers), (100,), generator=draws)
    expected = [turned(image, numbers[k])[0] for k in drawn]
    assert np.array_equal(pixels, np.stack(expected))
    assert len({x.tobytes() for x in expected}) == len(numbers)


class Killed(Exception):
    pass


def test_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 3)
    params = augment.Params(
        image_px=16, width=8, noise=4, steps=8, batch_size=4, learning_rate=1e-3, penalty=1.0,
        penalty_every=2, average_decay=0.9, images=4, keep_quantile=0.9,
        judge_backbone="tf_efficientnet_lite0", judge_out_indices=[0], seed=0,
    )  # fmt: skip
    images = torch.randint(0, 256, (10, 16, 16, 1), dtype=torch.uint8)
    labels = torch.arange(10) % 2

    def train(name: str) -> dict[str, torch.Tensor]:
        checkpoint = Checkpoint(tmp_path / name, "gan")
        real = RealImages(images, labels, 2, "all")
        net, _ = training.train(real, params, torch.device("cpu"), checkpoint)
        return net.state_dict()

    undisturbed = train("a")
    pairing = pairing_loss
    calls = 0

    def dies(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise Killed
        return pairing(better, worse)

    monkeypatch.setattr(training, "pairing_loss", dies)
    with pytest.raises(Killed):
        train("b")
    monkeypatch.setattr(training, "pairing_loss", pairing)
    resumed = train("b")
    assert all(torch.equal(undisturbed[k], resumed[k]) for k in undisturbed)

"""The two players, and the loop that trains them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.core.dataset.background import divided
from stages.core.dataset.data import FileRules
from stages.core.dataset.symmetries import Symmetries, turned
from stages.core.gan import training
from stages.core.gan.companions import Companions
from stages.core.gan.diffaugment import augment as diffaugment
from stages.core.gan.game import Game, RealImages, as_pixels, consistent, scaled
from stages.core.gan.losses import gradient_penalty, pairing_loss
from stages.core.gan.networks import NOISE_CHANNELS, NOISE_PX, Discriminator, Generator, Translator
from stages.core.gan.synthesize import Synthesis
from stages.core.gan.translate import Translation
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.errors import TrainingDiverged

CPU = torch.device("cpu")
RULES = FileRules(bit_depth=8, max_pixels=10**6, fit="stretch")
RECIPE: dict[str, Any] = {
    "width": 8, "steps": 8, "batch_size": 4, "learning_rate": 1e-3, "penalty": 1.0,
    "penalty_every": 2, "average_decay": 0.9,
}  # fmt: skip


def recipe(**changes: Any) -> training.Recipe:
    return training.Recipe.model_validate(RECIPE | changes)


def images(count: int, side: int = 32, seed: int = 0) -> Any:
    draws = np.random.default_rng(seed)
    return draws.integers(0, 256, (count, side, side, 1), dtype=np.uint8)


def real(pixels: Any, labels: Any) -> RealImages:
    return RealImages(pixels, np.arange(len(pixels)), np.asarray(labels, np.int64), "all")


def synthesis() -> Game:
    every = real(images(10), np.arange(10) % 2)
    wanted = real(images(10)[1::2], np.ones(5))
    return Synthesis(every, wanted, classes=2, rules=RULES, width=8, noise=4)


def translation_of(wanted: Any, others: Any, width: int, sparsity: float) -> Translation:
    """From `others` to `wanted`, without groups, without symmetries."""
    count = len(wanted)
    every = np.concatenate([wanted, others])
    start = np.arange(count, len(every))
    kinds = np.full(len(every), -1), np.full(len(every), "", object)
    shown = RealImages(every, np.arange(count), np.zeros(count, np.int64), "none")
    return Translation(shown, Companions(start, *kinds), RULES, width, sparsity)


def translation() -> Game:
    return translation_of(images(10), images(10, seed=1), 8, 0.5)


GAMES = {"synthesize": synthesis, "translate": translation}


def test_shapes() -> None:
    generator = Generator(classes=2, channels=1, image_px=32, width=8, noise=5)
    discriminator = Discriminator(classes=2, channels=1, image_px=32, width=8)
    labels = torch.tensor([0, 1, 1])
    made = generator(torch.randn(3, 5), labels)
    assert made.shape == (3, 1, 32, 32)
    assert made.abs().max() <= 1
    assert discriminator(made, labels).shape == (3,)


@pytest.mark.parametrize("image_px", [32, 64, 96, 160, 224, 352])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_translation_starts_near_the_identity(image_px: int, channels: int) -> None:
    translator = Translator(channels, width=8)
    x = torch.rand(2, channels, image_px, image_px) * 2 - 1
    noise = torch.randn(2, NOISE_CHANNELS, NOISE_PX, NOISE_PX)
    added = translator(x, noise)
    assert added.shape == x.shape
    assert added.abs().max() < 0.1
    scores = Discriminator(1, channels, image_px, width=8)(x + added, torch.zeros(2).long())
    assert scores.shape == (2,)


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
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    scores = (x * weight).sum((1, 2, 3))
    expected = float(weight.square().sum())
    assert float(gradient_penalty(scores, x).detach()) == pytest.approx(expected)


def test_pairing_loss() -> None:
    better, worse = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    expected = (np.log1p(np.exp(-2.0)) + np.log(2.0)) / 2
    assert float(pairing_loss(better, worse)) == pytest.approx(expected, rel=1e-6)


def test_augmentation_is_seeded_and_passes_gradients() -> None:
    x = torch.rand(4, 1, 32, 32, requires_grad=True)
    first = diffaugment(x, torch.Generator().manual_seed(1))
    again = diffaugment(x, torch.Generator().manual_seed(1))
    other = diffaugment(x, torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.autograd.backward(first.sum())
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_pixels_survive_the_scale_of_the_players() -> None:
    pixels = torch.from_numpy(images(3))
    assert torch.equal(as_pixels(scaled(pixels)), pixels)


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [("none", [0]), ("mirror", [0, 4]), ("rotations", [0, 2]), ("all", [0, 2, 4, 6])],
)
def test_real_images_are_shown_in_the_chosen_symmetries(
    choice: Symmetries, numbers: list[int]
) -> None:
    """Those of them that leave a rectangular pattern upright."""
    image = images(1, side=8)
    batches = RealImages(image, np.zeros(1, np.int64), np.zeros(1, np.int64), choice)
    seen, _, _ = batches.batch(100, torch.Generator().manual_seed(5))
    shown = {x.numpy().tobytes() for x in as_pixels(seen)}
    assert shown == {np.ascontiguousarray(turned(image, k)[0]).tobytes() for k in numbers}


def test_classes_are_drawn_alike() -> None:
    pixels = images(40, side=8)
    batches = real(pixels, np.r_[np.ones(2), np.zeros(38)])
    seen, labels, _ = batches.batch(400, torch.Generator().manual_seed(0))
    assert 0.4 < float(labels.float().mean()) < 0.6
    ones = {x.numpy().tobytes() for x in as_pixels(seen)[labels == 1]}
    expected = {
        np.ascontiguousarray(turned(pixels, k)[i]).tobytes() for k in (0, 2, 4, 6) for i in (0, 1)
    }
    assert ones == expected


def test_a_translation_starts_from_images_of_the_group_of_the_real_ones() -> None:
    """Each image's grey value says which group it is of: wanted ones are even, others odd."""
    groups = np.repeat(np.arange(5), 20)
    wanted = np.arange(100) % 2 == 0
    pixels = (2 * groups + ~wanted)[:, None, None, None] * np.ones((1, 8, 8, 1))
    rows = np.flatnonzero(wanted)
    shown = RealImages(pixels.astype(np.uint8), rows, np.zeros(50, np.int64), "all")
    sources = Companions(np.flatnonzero(~wanted), groups, np.full(100, "", object))
    round_ = Translation(shown, sources, RULES, 8, 0.5).draw(64, torch.Generator().manual_seed(0))
    assert round_.sources is not None
    real, start = (as_pixels(x)[:, 0, 0, 0].long() for x in (round_.real, round_.sources))
    assert torch.equal(start, real + 1)
    assert len(set(real.tolist())) == 5


def test_a_background_beside_an_image_stays_what_it_was() -> None:
    """And their quotient is that of the image as it is now, whatever the generator made of it."""
    draws = np.random.default_rng(0)
    made, sources = (
        scaled(torch.from_numpy(draws.integers(20, 200, (4, 8, 8, 3), dtype=np.uint8)))
        for _ in range(2)
    )
    rules = dataclasses.replace(RULES, background="both")
    whole = as_pixels(consistent(made.requires_grad_(), sources, rules)).numpy()
    image, background = as_pixels(made).numpy()[..., 0], as_pixels(sources).numpy()[..., 2]
    assert np.array_equal(whole[..., 0], image)
    assert np.array_equal(whole[..., 2], background)
    quotient = divided(image.astype(np.float32), background.astype(np.float32)).astype(np.uint8)
    assert np.abs(whole[..., 1].astype(int) - quotient).max() <= 1
    torch.autograd.backward(consistent(made, sources, rules)[:, 1].sum())
    assert made.grad is not None
    assert made.grad[:, 0].abs().max() > 0
    assert made.grad[:, 1:].abs().max() == 0
    assert consistent(made, sources, RULES) is made


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", GAMES)
def test_resumes_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 3)

    def train(folder: str) -> training.Outcome:
        checkpoint = Checkpoint(tmp_path / folder, "gan")
        return training.train(GAMES[name](), recipe(), 7, CPU, checkpoint)

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
    assert undisturbed.curves.equals(resumed.curves)
    assert undisturbed.generators.keys() == resumed.generators.keys() == {2, 5, 8}
    for step, generator in undisturbed.generators.items():
        mine, other = generator.state_dict(), resumed.generators[step].state_dict()
        assert all(torch.equal(mine[k], other[k]) for k in mine)


def test_a_game_that_diverges_ends_with_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairing, calls = pairing_loss, 0

    def explodes(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return pairing(better, worse) * (float("nan") if calls > 12 else 1)

    monkeypatch.setattr(training, "pairing_loss", explodes)
    outcome = training.train(translation(), recipe(), 7, CPU, Checkpoint(tmp_path, "gan"))
    assert outcome.failure is not None
    assert "diverged" in outcome.failure
    assert "step 7" in outcome.failure
    assert outcome.generators.keys() == {2, 5}
    for generator in outcome.generators.values():
        assert all(torch.isfinite(p).all() for p in generator.parameters())


def test_divergence_before_anything_was_kept_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "pairing_loss", lambda a, b: (a - b).mean() * float("inf"))
    with pytest.raises(TrainingDiverged, match="a loss is not finite in step 1; lower"):
        training.train(synthesis(), recipe(), 7, CPU, Checkpoint(tmp_path, "gan"))


@pytest.mark.parametrize("name", GAMES)
def test_a_game_that_collapses_ends_with_what_was_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 5 on, every noise gives the same image, or every source the same stain."""
    network: Any = {"synthesize": Generator, "translate": Translator}[name]
    forward, calls = network.forward, 0

    def alike(self: Any, *inputs: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        made: torch.Tensor = forward(self, *inputs)
        return made[:1].expand_as(made) if calls > 10 else made

    monkeypatch.setattr(network, "forward", alike)
    how = recipe(steps=9)
    outcome = training.train(GAMES[name](), how, 7, CPU, Checkpoint(tmp_path, "gan"))
    assert outcome.failure is not None
    assert "collapsed: in step 6" in outcome.failure
    assert outcome.generators.keys() == {3}


def test_weights_that_are_no_numbers_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of a step may be finite and its gradients not."""
    descend, calls = training.Players._descend, 0

    def poisons(self: training.Players, player: str, loss: torch.Tensor) -> None:
        nonlocal calls
        descend(self, player, loss)
        calls += 1
        if calls == 10:
            next(self.generator.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(training.Players, "_descend", poisons)
    outcome = training.train(translation(), recipe(), 7, CPU, Checkpoint(tmp_path, "gan"))
    assert outcome.failure is not None
    assert outcome.generators.keys() == {2}


def two_modes(count: int) -> Any:
    """Half the images have a bright square in the upper half, half in the lower one."""
    pixels = np.full((count, 32, 32, 1), 40, np.uint8)
    pixels[::2, 4:12, 4:28] = 220
    pixels[1::2, 20:28, 4:28] = 220
    return pixels


def upper(made: torch.Tensor) -> Any:
    """Whether each image (B, 1, 32, 32) is bright above and dark below."""
    above, below = made[:, 0, 4:12, 4:28].mean((1, 2)), made[:, 0, 20:28, 4:28].mean((1, 2))
    assert (((above > 0) & (below < 0)) | ((above < 0) & (below > 0))).float().mean() > 0.9
    return above > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES)
def test_both_modes_of_a_toy_are_found(name: str, tmp_path: Path) -> None:
    """No symmetry would find the other one."""
    if name == "synthesize":
        zeros = np.zeros(64, np.int64)
        toy = RealImages(two_modes(64), np.arange(64), zeros, "none")
        game: Game = Synthesis(toy, toy, classes=1, rules=RULES, width=16, noise=8)
    else:
        game = translation_of(two_modes(64), np.full((64, 32, 32, 1), 40, np.uint8), 16, 0.0)
    how = recipe(width=16, steps=900, batch_size=16, learning_rate=2e-3)
    outcome = training.train(game, how, 1, CPU, Checkpoint(tmp_path, "gan"))
    round_ = game.draw(200, torch.Generator().manual_seed(3))
    with torch.inference_mode():
        made, _ = game.fake(outcome.generators[900], round_)
    assert 0.1 < float(upper(made).float().mean()) < 0.9

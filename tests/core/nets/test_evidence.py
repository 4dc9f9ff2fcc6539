import numpy as np
import pytest
import torch

from stages.core.nets.evidence import Evidence, contributions, enlarged, place_of_maximum
from stages.core.nets.net import statistics
from tests.helpers.exported import net

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int = 5, channels: int = 1, px: int = 64) -> torch.Tensor:
    draws = np.random.default_rng(0)
    return torch.from_numpy(draws.integers(0, 256, (count, px, px, channels), dtype=np.uint8))


def test_contributions_add_up_to_the_statistics() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 4, 6, 5)
    maps[0, 1] = 0.0  # a dead channel
    maps[1, 2, 0, :3] = maps[1, 2].max() + 1  # several positions with the maximum
    weight = torch.randn(2, 12)
    shares = contributions(maps, weight)
    assert shares.shape == (3, 2, 6, 5)
    assert torch.allclose(shares.sum((2, 3)), statistics(maps) @ weight.T, atol=1e-5)


def test_the_place_of_a_maximum_is_the_first_one() -> None:
    torch.manual_seed(0)
    maps = torch.randint(0, 4, (3, 4, 6, 5)).float()
    assert torch.equal(place_of_maximum(maps), maps.flatten(2).argmax(2))
    assert torch.equal(place_of_maximum(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 2))


@pytest.mark.parametrize("kind", range(3))
def test_each_statistic_comes_from_where_it_is(kind: int) -> None:
    """A single bright position is all of the maximum, and most of mean and deviation."""
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 2, 5] = 64.0
    shares = contributions(maps, torch.eye(3)[kind : kind + 1])[0, 0]
    assert shares[2, 5] > 0.9 * shares.sum()
    assert torch.allclose(shares.sum(), statistics(maps)[0, kind], rtol=1e-5)


@pytest.mark.parametrize(("channels", "reduce"), [(1, 1), (3, 1), (1, 2), (1, 3)])
def test_evidence_adds_up_to_the_logits(channels: int, reduce: int) -> None:
    network = net(channels, reduce)
    seen = images(channels=channels)
    with torch.inference_mode():
        evidence, logits = Evidence(network)(seen), network(seen)
    side = (64 // reduce + 1) // 2
    assert evidence.shape == (5, 2, side, side)
    assert torch.allclose(evidence.sum((2, 3)), logits, atol=1e-4)
    assert logits.abs().max() > 0.1


@pytest.mark.parametrize(("small", "large"), [((2, 3), (8, 9)), ((3, 2), (7, 5)), ((4, 4), (4, 4))])
def test_what_is_enlarged_keeps_its_sum_and_place(
    small: tuple[int, int], large: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 3, *small)
    result = enlarged(values, torch.Size(large))
    assert result.shape == (2, 3, *large)
    assert torch.allclose(result.sum((2, 3)), values.sum((2, 3)), atol=1e-5)
    assert torch.equal(result[:, :, 0, 0] > 0, values[:, :, 0, 0] > 0)
    assert torch.equal(result[:, :, -1, -1] > 0, values[:, :, -1, -1] > 0)


def test_evidence_is_where_the_difference_is() -> None:
    """What a change to one corner does to the logits shows in that corner."""
    network = net()
    plain = torch.full((1, 64, 64, 1), 128, dtype=torch.uint8)
    marked = plain.clone()
    marked[:, 4:12, 48:60] = 250
    with torch.inference_mode():
        change = Evidence(network)(marked) - Evidence(network)(plain)
    by_quarter = change.abs().unflatten(2, (2, 16)).unflatten(4, (2, 16)).sum((3, 5))
    assert (by_quarter[:, :, 0, 1] > 0.5 * by_quarter.sum((2, 3))).all()

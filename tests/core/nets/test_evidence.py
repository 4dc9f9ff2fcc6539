import numpy as np
import pytest
import torch

from stages.core.nets.evidence import Evidence, Summary, cells, enlarged
from stages.core.nets.net import statistics
from tests.helpers.exported import net

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int = 5, channels: int = 1, px: int = 64) -> torch.Tensor:
    draws = np.random.default_rng(0)
    return torch.from_numpy(draws.integers(0, 256, (count, px, px, channels), dtype=np.uint8))


@pytest.mark.parametrize("side", [6, 3, 2])
def test_contributions_add_up_to_the_statistics(side: int) -> None:
    """Also where maps are pooled, and where cells at the edge reach outside."""
    torch.manual_seed(0)
    maps = [torch.randn(3, 4, 6, 6) - 3, torch.randn(3, 2, 7, 7), torch.randn(3, 3, 6, 6) + 9]
    maps[0][0, 1] = 0.0  # a dead channel
    maps[2][1, 2, 0, :3] = maps[2][1, 2].max() + 1  # several positions with the maximum
    of_all = Summary.of(maps, side)
    found = torch.cat(of_all.statistics(), 1)
    each = [statistics(x).chunk(3, 1) for x in maps]
    expected = torch.cat([parts[kind] for kind in range(3) for parts in each], 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(2, 27)
    shares = of_all.contributions(weight)
    assert shares.shape == (3, 2, side, side)
    torch.testing.assert_close(shares.sum((2, 3)), expected @ weight.T, atol=1e-4, rtol=1e-5)


def test_a_map_has_sixteen_cells_along_its_side_if_it_can() -> None:
    assert cells([80, 40, 20, 10, 5]) == 20
    assert cells([80, 40]) == 40
    assert cells([75, 38, 19, 10]) == 19
    assert cells([8, 4, 2]) == 8, "the finest has fewer"
    assert cells([37, 18]) == 37, "37 positions are no 18 cells"


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("pooled", [1, 2])
def test_each_statistic_comes_from_where_it_is(kind: int, pooled: int) -> None:
    """A single bright position is all of the maximum, and most of mean and deviation."""
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 2, 5] = 64.0
    of_all = Summary.of([maps], 8 // pooled)
    shares = of_all.contributions(torch.eye(3)[kind : kind + 1])[0, 0]
    assert shares[2 // pooled, 5 // pooled] > 0.9 * shares.sum()
    assert torch.allclose(shares.sum(), statistics(maps)[0, kind], rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "reduce", "side"), [(1, 1, 16), (3, 1, 16), (1, 2, 16), (1, 3, 11)]
)
def test_evidence_adds_up_to_the_logits(channels: int, reduce: int, side: int) -> None:
    network = net(channels, reduce)
    seen = images(channels=channels)
    with torch.inference_mode():
        (own, evidence), logits = Evidence(network).logits_and_evidence(seen), network(seen)
    assert evidence.shape == (5, 2, side, side)
    assert torch.allclose(own, logits, atol=1e-4)
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
    by_quarter = change.abs().unflatten(2, (2, 8)).unflatten(4, (2, 8)).sum((3, 5))
    assert (by_quarter[:, :, 0, 1] > 0.5 * by_quarter.sum((2, 3))).all()

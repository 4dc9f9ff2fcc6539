"""Near duplicates: exactly those pairs that comparing each with each would find."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.core.intake import duplicates
from stages.core.intake.duplicates import among, join_groups, near_pairs, tied
from stages.core.runner.errors import DataError

Hashes = NDArray[np.uint8]


def flipped(hashes: Hashes, bits: int, draws: np.random.Generator) -> Hashes:
    """Each hash with so many of its bits changed."""
    unpacked = np.unpackbits(hashes, axis=1)
    for row in unpacked:
        row[draws.choice(len(row), bits, replace=False)] ^= 1
    return np.packbits(unpacked, axis=1)


def planted(seed: int, count: int = 60, size: int = 32) -> Hashes:
    """Random hashes, each with neighbours at many distances, in any order; some more than once."""
    draws = np.random.default_rng(seed)
    base = draws.integers(0, 256, (count, size), dtype=np.uint8)
    near = [flipped(base[:20], bits, draws) for bits in (0, 1, 2, 5, 9, 10, 11, 30)]
    actual: Hashes = draws.permutation(np.concatenate([base, base[:5], base[:3], *near]))
    return actual


def distance(a: Hashes, b: Hashes) -> int:
    return int(np.unpackbits(a ^ b).sum())


def each_with_each(hashes: Hashes, most: int) -> set[tuple[int, int]]:
    """Pairs of different hashes by the first image of each; of equal ones, each with the next."""
    places: dict[bytes, list[int]] = {}
    for i, value in enumerate(hashes):
        places.setdefault(value.tobytes(), []).append(i)
    pairs = {pair for same in places.values() for pair in itertools.pairwise(same)}
    firsts = sorted(same[0] for same in places.values())
    return pairs | {
        (i, j)
        for i, j in itertools.combinations(firsts, 2)
        if distance(hashes[i], hashes[j]) <= most
    }


@pytest.mark.parametrize("most", [0, 1, 2, 5, 10, 11, 31, 64])
@pytest.mark.parametrize("seed", range(3))
def test_as_each_with_each(seed: int, most: int) -> None:
    hashes = planted(seed)
    actual = near_pairs(hashes, most)
    assert actual.dtype == np.int64
    pairs = list(map(tuple, actual.tolist()))
    assert pairs == sorted(each_with_each(hashes, most))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), max_size=12),
    most=st.integers(0, 20),
)
def test_as_each_with_each_among_crowded_hashes(rows: list[list[int]], most: int) -> None:
    hashes = np.array(rows, np.uint8).reshape(-1, 4)
    assert set(map(tuple, near_pairs(hashes, most).tolist())) == each_with_each(hashes, most)


def test_of_many_equal_hashes_each_is_tied_to_the_next() -> None:
    pairs = near_pairs(np.zeros((1000, 32), np.uint8), 10)
    assert pairs.tolist() == [[i, i + 1] for i in range(999)]


def test_too_much_alike_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_CANDIDATES", 100)
    hashes = np.zeros((300, 32), np.uint8)
    hashes[:, :2] = np.arange(300).astype(">u2").view(np.uint8).reshape(-1, 2)
    with pytest.raises(DataError) as caught:
        near_pairs(hashes, 10)
    assert "300 images are too much alike to look for near duplicates" in str(caught.value)
    assert "lower validate.near_duplicate_bits (now 10)" in str(caught.value)
    assert len(near_pairs(hashes, 0)) == 0


def test_ties_are_passed_on() -> None:
    actual = tied(7, np.array([[0, 3], [3, 5], [1, 2]]))
    assert actual[0] == actual[3] == actual[5]
    assert actual[1] == actual[2]
    assert len(set(actual.tolist())) == 4
    assert tied(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_groups_that_share_a_duplicate_are_one() -> None:
    groups = np.array(["b", "a", "c", "c", "d", "e", "f", "g", "h"], object)
    pairs = np.array([[0, 1], [2, 3], [4, 5], [5, 6], [6, 7]])
    assert join_groups(groups, pairs).tolist() == [
        "a+b", "a+b", "c", "c", *["d+e+f+1 more"] * 4, "h",
    ]  # fmt: skip


def test_groups_stay_as_they_are_without_pairs() -> None:
    groups = np.array(["b", "a", "b"], object)
    assert join_groups(groups, np.empty((0, 2), np.int64)).tolist() == ["b", "a", "b"]
    none = np.empty(0, object)
    assert join_groups(none, np.empty((0, 2), np.int64)).tolist() == []


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30),
    edges=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=8),
)
def test_joining_is_the_closure_of_same_group_and_pair(
    groups: list[str], edges: list[tuple[int, int]]
) -> None:
    pairs = [(a % len(groups), b % len(groups)) for a, b in edges]
    merged = dict.fromkeys(groups, "")
    component = {name: name for name in merged}
    for a, b in pairs:
        old, new = component[groups[b]], component[groups[a]]
        component = {k: new if v == old else v for k, v in component.items()}
    actual = join_groups(np.array(groups, object), np.array(pairs, np.int64).reshape(-1, 2))
    for i, j in itertools.combinations(range(len(groups)), 2):
        assert (actual[i] == actual[j]) == (component[groups[i]] == component[groups[j]])


def test_pairs_among_some() -> None:
    pairs = np.array([[0, 1], [1, 4], [2, 4], [4, 5]])
    assert among(pairs, pd.Index([1, 4, 5])).tolist() == [[0, 1], [1, 2]]
    assert among(pairs, pd.Index([0, 3])).shape == (0, 2)
    assert among(pairs[:0], pd.Index([0, 3])).shape == (0, 2)

"""An image like another one."""

import numpy as np
import pytest

from stages.core.gan.companions import Companions

GROUPS = np.array([0, 0, 1, 1, 2, 3, 4, 5])
DOMAINS = np.array(list("aaaabbcb"), object)


def test_companions_are_of_the_same_group_or_else_of_the_same_domain() -> None:
    companions = Companions(np.array([1, 3, 5, 7]), GROUPS, DOMAINS)
    rows = np.repeat([0, 2, 4, 6], 40)
    found = companions.of(rows, np.random.default_rng(3).random(len(rows)))
    expected = {0: {1}, 2: {3}, 4: {5, 7}, 6: {1, 3, 5, 7}}
    assert {row: set(found[rows == row].tolist()) for row in expected} == expected


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.49, 1), (0.5, 3), (0.999, 3)])
def test_a_share_says_which(share: float, expected: int) -> None:
    companions = Companions(np.array([1, 3]), np.zeros(4, np.int64), np.full(4, "", object))
    assert companions.of(np.array([0]), np.array([share])).tolist() == [expected]


def test_a_group_is_looked_for_in_its_domain() -> None:
    """A number of a group may stand for another group in each domain."""
    groups, domains = np.zeros(4, np.int64), np.array(list("aabb"), object)
    companions = Companions(np.array([1, 3]), groups, domains)
    assert companions.of(np.array([0, 2]), np.array([0.9, 0.1])).tolist() == [1, 3]

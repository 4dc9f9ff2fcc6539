"""For an image, another one that is like it in all but what is wanted, as far as there is one."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from stages.core.dataset.data import Rows


class Companions:
    """Some images by group and domain, to find for another image one like it among them."""

    def __init__(
        self, among: Rows, groups: NDArray[np.int64], domains: NDArray[np.object_]
    ) -> None:
        """Sort the images `among` which companions are looked for: one at least.

        Groups and domains are those of all images (N,).
        """
        self._among, self._groups, self._domains = among, groups, domains
        near: defaultdict[object, list[int]] = defaultdict(list)
        for row in among:
            for place in self._places(row):
                near[place].append(row)
        self._near = {place: np.array(rows, np.int64) for place, rows in near.items()}

    def _places(self, row: int) -> list[object]:
        """Where an image is at home, the narrowest place first."""
        domain = self._domains[row]
        return [(domain, self._groups[row]), domain]

    def of(self, rows: Rows, shares: NDArray[np.float64]) -> Rows:
        """For each image one of its group, or else of its domain, or else any (M,).

        Args:
            rows: images of any kind (M,).
            shares: which of those that there are, 0 to below 1 (M,): random numbers.
        """
        chosen = []
        for row, share in zip(rows, shares, strict=True):
            places = (self._near.get(place) for place in self._places(row))
            near = next((found for found in places if found is not None), self._among)
            chosen.append(near[int(share * len(near))])
        return np.array(chosen, dtype=np.int64)

"""Images that show the same: near duplicates by perceptual hash, and what they tie together."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.core.intake.images import HASH_BYTES
from stages.core.runner.errors import DataError

Pairs = NDArray[np.int64]

# Comparisons that are worth waiting for: about a minute on one core.
MOST_CANDIDATES = 10**9


def near_pairs(hashes: NDArray[np.uint8], distance: int) -> Pairs:
    """Pairs (i, j), i < j, of hashes that differ in at most `distance` bits: int64 (M, 2), sorted.

    Of images with the very same hash only consecutive ones are paired, which ties them all
    together. Two hashes that differ in d bits agree in at least one of d + 1 pieces, so only those
    that share a piece are compared (multi-index hashing, Norouzi et al. 2012).

    Args:
        hashes: uint8 (N, bytes).
        distance: 0 or more.

    Raises: DataError when too many images are alike to compare them.
    """
    unique, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    order = np.argsort(inverse, kind="stable")
    same = inverse[order][1:] == inverse[order][:-1]
    pairs = [np.stack([order[:-1][same], order[1:][same]], 1)]
    bits = np.unpackbits(unique, axis=1)
    candidates = 0
    for piece in range(distance + 1):
        if not distance:
            break
        # Every d-th bit: neighbouring frequencies say similar things.
        key = np.packbits(bits[:, piece :: distance + 1], axis=1)
        _, place, sizes = np.unique(key, axis=0, return_inverse=True, return_counts=True)
        candidates += int((sizes.astype(np.int64) ** 2).sum()) // 2
        if candidates > MOST_CANDIDATES:
            raise DataError(
                f"{len(unique)} images are too much alike to look for near duplicates; lower "
                f"validate.near_duplicate_bits (now {distance}), 0 looks for equal hashes only"
            )
        members = np.argsort(place.reshape(-1), kind="stable")
        ends = np.cumsum(sizes)
        for start, end in zip(ends - sizes, ends, strict=True):
            if end - start > 1:
                pairs.append(_close(unique, members[start:end], distance))
    near = np.concatenate(pairs[1:]) if len(pairs) > 1 else np.empty((0, 2), np.int64)
    both = np.concatenate([pairs[0], first[near]])
    return np.unique(np.sort(both, axis=1), axis=0).astype(np.int64)


def _close(hashes: NDArray[np.uint8], members: Pairs, distance: int) -> Pairs:
    """Pairs of `members` within the distance."""
    pairs = []
    for i, member in enumerate(members[:-1]):
        rest = members[i + 1 :]
        bits = np.bitwise_count(hashes[rest] ^ hashes[member]).sum(1)
        near = rest[bits <= distance]
        pairs.append(np.stack([np.full(len(near), member), near], 1))
    return np.concatenate(pairs)


def tied(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """Component (count,) of each item, by the given pairs."""
    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, component = connected_components(edges, directed=False)
    numbers: NDArray[np.int64] = component.astype(np.int64)
    return numbers


def among(pairs: Pairs, items: "pd.Index[int]") -> Pairs:
    """The pairs within some of the items, by their places among these."""
    places: Pairs = items.get_indexer(pairs.reshape(-1)).reshape(-1, 2).astype(np.int64)
    return places[(places >= 0).all(1)]


def join_groups(groups: "NDArray[np.object_]", pairs: Pairs) -> "NDArray[np.object_]":
    """Group names (N,) in which groups that share a near duplicate are one, `a+b`."""
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    component = tied(len(names), codes[pairs].reshape(-1, 2).astype(np.int64))
    joined = names.astype(object)
    for c in np.flatnonzero(np.bincount(component) > 1):
        members = names[component == c]
        more = f"+{len(members) - 3} more" if len(members) > 3 else ""
        joined[component == c] = "+".join(members[:3]) + more
    return joined[codes]


def near_duplicates(
    table: pd.DataFrame, bits: int, *, divided: bool
) -> tuple[Pairs, dict[str, int]]:
    """Pairs of images (by position) that show the same, and how many of which kind."""
    hashes = np.frombuffer(b"".join(table["phash"]), np.uint8).reshape(-1, HASH_BYTES)
    pairs = near_pairs(hashes, bits)
    if divided:  # divided by two backgrounds, the same content has two hashes
        contents = np.frombuffer(bytes.fromhex("".join(table["sha256"])), np.uint8)
        pairs = np.unique(np.concatenate([pairs, near_pairs(contents.reshape(-1, 32), 0)]), axis=0)
    left, right = (table.iloc[pairs[:, side]].reset_index(drop=True) for side in (0, 1))
    same = left["sha256"] == right["sha256"]
    both = (left["label"] != "") & (right["label"] != "")
    return pairs, {
        "identical": int(same.sum()),
        "near": int((~same).sum()),
        "across_groups": int((left["group"] != right["group"]).sum()),
        "contradicting": int((both & (left["label"] != right["label"])).sum()),
    }

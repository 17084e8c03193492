"""Packing: samples into windows of `capacity` tokens, planned from lengths alone.

Best-fit decreasing: the longest sample first, each into the open pack with the least room that still takes it. Rooms are
kept in one bit mask, so the best fit is the lowest set bit from the length up. Worked example, capacity 8, lengths
[5, 3, 4, 4, 2]: 5 opens A; 4 opens B; 4 fills B; 3 fills A; 2 opens C -> [[0, 1], [2, 3], [4]].
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pack:
    """Samples laid end to end: tokens [T], labels [T], and of each of S samples its length and sample_id."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    lengths: Sequence[int]
    sample_ids: Sequence[str]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs as lists of places in `lengths`; each place once. Ties: the earlier sample, the pack opened first.

    ValueError for a length outside 1..capacity.
    """
    if any(not 1 <= length <= capacity for length in lengths):
        raise ValueError(f"lengths must lie in 1..{capacity}")
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room -> heap of packs with it
    mask = 0  # bit r is set where a pack with room r is open
    for place in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable"):
        length = int(lengths[place])
        fitting = mask >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = heapq.heappop(by_room[room])
            if not by_room[room]:
                mask &= ~(1 << room)
        else:
            room, pack = capacity, len(packs)
            packs.append([])
        packs[pack].append(int(place))
        if left := room - length:
            heapq.heappush(by_room.setdefault(left, []), pack)
            mask |= 1 << left
    return packs


def padding_share(lengths: Sequence[int], rng: np.random.Generator, batch: int = 16) -> float:
    """Share of padding if samples came in random order and every batch were padded to its longest."""
    shuffled = rng.permutation(np.asarray(lengths, dtype=np.int64))
    batches = [shuffled[n : n + batch] for n in range(0, len(shuffled), batch)]
    padded = sum(int(chosen.max()) * len(chosen) for chosen in batches)
    return 1 - int(shuffled.sum()) / padded if padded else 0.0


def group_parts(counts: Sequence[int], least: int) -> list[tuple[int, int]]:
    """Contiguous runs [a, b) of parts with at least `least` samples each; a short last run joins its neighbour."""
    runs, begin, total = [], 0, 0
    for place, count in enumerate(counts, 1):
        total += count
        if total >= least:
            runs.append((begin, place))
            begin, total = place, 0
    if begin < len(counts):
        last_begin = runs.pop()[0] if runs else 0
        runs.append((last_begin, len(counts)))
    return runs

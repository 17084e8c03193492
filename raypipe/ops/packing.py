"""Packing: samples into windows of `capacity` tokens, planned from lengths alone.

A pack is a list of segments; attention isolates each from all others. Three strategies:

best_fit: a sample a segment, as many as fill a window. Best-fit decreasing on the histogram of lengths, a pack at a time: the
longest sample left, then the longest that fits, until two samples fill the window to the last token, which bit masks of the
lengths in stock tell at once. As packs of the same lengths are made together, a million samples take 0.1 s. Filling by pairs is
what plain best-fit decreasing lacks: 99.8 % against 98.0 % of windows of 2,048 on lengths like OSS-Instruct's, where
few samples are short enough to fill the gaps that long ones leave. Worked example, capacity 8, lengths [5, 3, 4, 4, 2]: the
pair 4 + 4 fills a window -> [4, 4]; so does 5 + 3 -> [5, 3]; 2 is left -> [2].

dynamic_pack: the paper's, as in the authors' collator. Micro-batches of 16 samples in random order; each sorted by length, ascending,
and joined next-fit into rows, which are padded to the longest of them. A row is one segment: its samples see each other.

pad: micro-batches of 16 samples in random order, each sample padded to the longest of its micro-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raypipe.ops.tokens import IGNORED

Strategy = Literal["best_fit", "dynamic_pack", "pad"]
Tokens = NDArray[np.int32]
MICRO_BATCH = 16  # samples, of dynamic_pack and pad: with it OSS-Instruct's padding is the paper's, 36.5 and 15.2 %
UNEVEN = 0.55  # least share of the room that the longer of a pair takes, where it can: keeps short samples for later


@dataclass(frozen=True)
class Pack:
    """Segments laid end to end: tokens [T], labels [T], of each segment its length, of each sample its sample_id and cluster_id."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    lengths: Sequence[int]
    sample_ids: Sequence[str]
    cluster_ids: Sequence[int | None]


@dataclass(frozen=True)
class Segment:
    """Places of its samples, and its length in tokens, padding included."""

    places: Sequence[int]
    length: int


def lay_out(
    strategy: Strategy, lengths: Sequence[int] | NDArray[np.int64], capacity: int, rng: np.random.Generator
) -> list[list[Segment]]:
    """Packs of samples of these lengths; each sample once. ValueError for a length outside 1..capacity."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths must lie in 1..{capacity}")
    if strategy == "best_fit":
        return [[Segment([n], int(lengths[n])) for n in places] for places in _members(best_fit(lengths, capacity))]
    shuffled = rng.permutation(len(lengths))
    batches = [shuffled[n : n + MICRO_BATCH] for n in range(0, len(shuffled), MICRO_BATCH)]
    packs = []
    for batch in batches:
        rows = _next_fit(batch, lengths, capacity) if strategy == "dynamic_pack" else [[n] for n in batch.tolist()]
        longest = max(int(lengths[row].sum()) for row in rows)
        packs.append([Segment(row, longest) for row in rows])
    return packs


def fill(
    pack: Sequence[Segment], samples: Sequence[tuple[Sequence[int] | Tokens, Sequence[int] | Tokens]], pad: int
) -> tuple[Tokens, Tokens]:
    """Tokens and labels [T] of a pack, from (tokens, labels) of the samples. Nothing predicts a segment's first token."""
    total = sum(segment.length for segment in pack)
    ids, labels, begin = np.full(total, pad, np.int32), np.full(total, IGNORED, np.int32), 0
    for segment in pack:
        place = begin
        for tokens, targets in (samples[n] for n in segment.places):
            ids[place : place + len(tokens)], labels[place : place + len(tokens)] = tokens, targets
            place += len(tokens)
        labels[begin] = IGNORED
        begin += segment.length
    return ids, labels


def best_fit(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """[N] number of the pack of each sample; among samples of one length the earlier goes into the earlier pack."""
    counts: list[int] = np.bincount(lengths, minlength=capacity + 1).tolist()
    in_order = np.argsort(lengths, kind="stable")
    following: list[int] = (np.cumsum(counts) - counts).tolist()  # of each length, the place of the next in this order
    owner = [0] * len(lengths)
    num_packs = 0
    # bit n of `stock`, bit capacity - n of `mirrored`: samples of length n are left
    stock = sum(1 << length for length, count in enumerate(counts) if count)
    mirrored = sum(1 << (capacity - length) for length, count in enumerate(counts) if count)
    while stock:
        taken = Counter[int]()
        room = capacity
        while chosen := _next(stock, mirrored, counts, room, capacity):
            for length in chosen:
                taken[length] += 1
                room -= length
                counts[length] -= 1
                if not counts[length]:
                    stock ^= 1 << length
                    mirrored ^= 1 << (capacity - length)
        again = min(counts[length] // number for length, number in taken.items())
        for length, number in taken.items():
            for pack in range(num_packs, num_packs + 1 + again):
                owner[following[length] : following[length] + number] = [pack] * number
                following[length] += number
            if again:
                counts[length] -= again * number
                if not counts[length]:
                    stock ^= 1 << length
                    mirrored ^= 1 << (capacity - length)
        num_packs += 1 + again
    packs = np.empty(len(lengths), dtype=np.int64)
    packs[in_order] = owner
    return packs


def _next(stock: int, mirrored: int, counts: Sequence[int], room: int, capacity: int) -> list[int]:
    """Lengths to put into this room: what fills it, alone or as a pair, or else the longest that fits; none where nothing does."""
    longest = stock.bit_length() - 1
    if room > 2 * longest:
        return [longest] if stock else []
    if counts[room]:
        return [room]
    if pairs := stock & (mirrored >> (capacity - room)):
        half = (room + 1) // 2
        if room == 2 * half and counts[half] == 1:
            pairs &= ~(1 << half)
        for least in (max(half, int(UNEVEN * room)), half):
            if above := pairs >> least:
                longer = least + (above & -above).bit_length() - 1
                return [longer, room - longer]
    fitting = stock & ((2 << room) - 1)
    return [fitting.bit_length() - 1] if fitting else []


def _members(packs: NDArray[np.int64]) -> list[list[int]]:
    order = np.argsort(packs, kind="stable")
    bounds = np.flatnonzero(np.diff(packs[order])) + 1
    return [part.tolist() for part in np.split(order, bounds)] if len(packs) else []


def _next_fit(batch: NDArray[np.int64], lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = [[]]
    length = 0
    for place in batch[np.argsort(lengths[batch], kind="stable")].tolist():
        if length + lengths[place] > capacity:
            rows.append([])
            length = 0
        rows[-1].append(place)
        length += int(lengths[place])
    return rows


def padding_share(
    strategy: Strategy, lengths: Sequence[int] | NDArray[np.int64], capacity: int, rng: np.random.Generator
) -> float:
    """Share of tokens that are padding; of best_fit, the share of its windows that stays empty, though nothing is computed there."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return 0.0
    if strategy == "best_fit":
        total = (int(best_fit(lengths, capacity).max()) + 1) * capacity
    else:
        total = sum(segment.length for pack in lay_out(strategy, lengths, capacity, rng) for segment in pack)
    return 1 - int(lengths.sum()) / total


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

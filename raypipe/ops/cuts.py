"""The cut of every group: above it lie as many rows, or tokens, as the group may keep. Exact, without a sort or a shuffle.

A row is a number of 192 bits, its key and its sample_id (the lower id is the higher number), so no two are equal. A fold counts the
rows of each group by the leading bits; the bucket of the cut is opened, and a further fold counts what lies in it by the next bits,
until so little is left that it is gathered and sorted. So the state is small whatever the rows: 4,096 buckets a group, then
GATHER_ROWS rows.

N rows, G groups, B buckets, M measures: rows, and where a quota is in tokens, tokens.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.ops.text import id_words

LEVELS = [(word, high, low) for word in range(3) for high, low in pairwise((64, 52, 44, 36, 28, 20, 12, 0))]
GATHER_ROWS = 100_000
RANK_BITS = 20  # 256 buckets an octave: a rank is known to some thousandths of its group

Group = tuple[int, str]  # cluster_id, and the value of select.per
Fold = Callable[[Callable[["Rows"], Any]], Any]  # sums a function of Rows over all of them
Quotas = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True)
class Rows:
    """Of some parts: the group of each row, an index into `groups`, or -1; and how many rows a group's fraction is of."""

    groups: tuple[Group, ...]
    group_N: NDArray[np.int64]
    key_N: NDArray[np.uint64]
    tokens_N: NDArray[np.int64]
    ids_N: pa.Array
    counted_G: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        return int(self.group_N.nbytes + self.key_N.nbytes + self.tokens_N.nbytes + self.ids_N.nbytes)

    def word(self, n: int, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The n-th of the three words of some rows. Ids are decoded for these only."""
        return self.key_N[places] if n == 0 else ~id_words(self.ids_N.take(pa.array(places)))[:, n - 1]


@dataclass(frozen=True)
class Cut:
    """Of a group: rows that its fraction is of, rows eligible, rows kept: those that are at least `at_least`, a number of 192 bits."""

    counted: int
    eligible: int
    keep: int
    at_least: int


def find_cuts(fold: Fold, quotas: Quotas, budget: int | None = None) -> dict[Group, Cut]:
    """By group, in order; nothing where no row is eligible.

    `quotas` makes of what is counted, eligible, and the eligible rows' tokens, [G] each, how many rows a group keeps. With a `budget`
    they are in tokens: a group keeps the longest beginning that its quota holds, and what is then left of the budget pays one row more
    for the groups with the largest remainders.
    """
    totals = fold(total).counts
    groups = tuple(sorted(group for group, (_, eligible, _) in totals.items() if eligible))
    if not groups:
        return {}
    total_3G = np.array([totals[group] for group in groups], np.int64).T
    quota_G, whole_MG = quotas(*total_3G), total_3G[1 : 2 if budget is None else 3]
    open_G = quota_G < whole_MG[-1]
    kept_MG, num_open = np.where(open_G, 0, whole_MG), int(whole_MG[0, open_G].sum())
    opened = Open(groups, open_G, np.zeros((len(groups), 3), np.uint64))
    while num_open > GATHER_ROWS and opened.level < len(LEVELS) - 1:
        counts_MGB = fold(Count(opened, by_tokens=budget is not None))
        down_to_MGB = counts_MGB[..., ::-1].cumsum(-1)[..., ::-1]  # in a bucket and those above
        bucket_G = np.maximum((kept_MG[-1, :, None] + down_to_MGB[-1] > quota_G[:, None]).sum(-1) - 1, 0)
        inside_MG, reached_MG = (
            np.take_along_axis(of, bucket_G[None, :, None], -1)[..., 0] for of in (counts_MGB, down_to_MGB)
        )
        kept_MG = kept_MG + np.where(open_G, reached_MG - inside_MG, 0)
        opened, num_open = opened.narrowed(bucket_G), int(inside_MG[0, open_G].sum())
    at_least_G = [0] * len(groups)
    if open_G.any():
        _cut_inside(fold(Pick(opened)), opened, quota_G, kept_MG, at_least_G, budget)
    columns = zip(total_3G[0].tolist(), whole_MG[0].tolist(), kept_MG[0].tolist(), at_least_G, strict=True)
    return {group: Cut(*figures) for group, figures in zip(groups, columns, strict=True)}


def _cut_inside(
    inside: Inside,
    opened: Open,
    quota_G: NDArray[np.int64],
    kept_MG: NDArray[np.int64],
    at_least_G: list[int],
    budget: int | None,
) -> None:
    """Fills in what is kept of the opened buckets, and the cuts. In each lies the first row that its quota does not hold."""
    order = np.lexsort([*(~inside.words_3N[n] for n in (2, 1, 0)), inside.group_N])
    edges_G = np.searchsorted(inside.group_N[order], np.arange(len(opened.groups) + 1))
    next_rows = []
    for g in np.flatnonzero(opened.open_G).tolist():
        mine = order[edges_G[g] : edges_G[g + 1]]
        measure_MN = np.stack([np.ones(len(mine), np.int64), inside.tokens_N[mine]])[: len(kept_MG)]
        keep = int(np.searchsorted(kept_MG[-1, g] + np.cumsum(measure_MN[-1]), quota_G[g], side="right"))
        kept_MG[:, g] += measure_MN[:, :keep].sum(1)
        dropped = _number(inside.words_3N[:, mine[keep]])
        at_least_G[g] = dropped + 1
        next_rows.append((int(kept_MG[-1, g] - quota_G[g]), g, measure_MN[:, keep], dropped))
    for _, g, more_M, dropped in sorted(next_rows, key=lambda row: row[:2]):
        if budget is not None and kept_MG[-1].sum() + more_M[-1] <= budget:
            kept_MG[:, g] += more_M
            at_least_G[g] = dropped


def _number(words_3: NDArray[np.uint64]) -> int:
    high, middle, low = map(int, words_3)
    return high << 128 | middle << 64 | low


def is_at_least(rows: Rows, numbers: Sequence[int]) -> NDArray[np.bool_]:
    """[N] whether a row has a group and is at least its number."""
    bound_3G = np.array([[number >> shift & (2**64 - 1) for number in numbers] for shift in (128, 64, 0)], np.uint64)
    kept_N = np.zeros(len(rows.group_N), bool)
    places = np.flatnonzero(rows.group_N >= 0)
    for n in range(3):
        word, bound = rows.word(n, places), bound_3G[n][rows.group_N[places]]
        kept_N[places[word > bound]] = True
        places = places[word == bound]
    kept_N[places] = True
    return kept_N


@dataclass(frozen=True)
class Totals:
    """By group: rows counted, rows eligible, and these rows' tokens."""

    counts: Mapping[Group, tuple[int, ...]]

    def __add__(self, other: Totals) -> Totals:
        found = dict(self.counts)
        for group, counts in other.counts.items():
            found[group] = tuple(a + b for a, b in zip(counts, found.get(group, (0, 0, 0)), strict=True))
        return Totals(found)


def total(rows: Rows) -> Totals:
    size = len(rows.groups)
    eligible_G, tokens_G = (of[1:] for of in _count(rows.group_N + 1, rows.tokens_N, size + 1))
    columns = (column.tolist() for column in (rows.counted_G, eligible_G, tokens_G))
    return Totals(dict(zip(rows.groups, zip(*columns, strict=True), strict=True)))


@dataclass(frozen=True)
class Open:
    """Of each group that is cut the bucket of the cut: rows with the leading bits of `prefix_G3`, as many as `level` says."""

    groups: tuple[Group, ...]
    open_G: NDArray[np.bool_]
    prefix_G3: NDArray[np.uint64]
    level: int = 0

    def inside(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of the rows inside, and of their groups."""
        group_N = _places(rows, self.groups)
        places = np.flatnonzero(np.append(self.open_G, False)[group_N])
        word, high, _ = LEVELS[self.level]
        for n in range(word + (high < 64)):
            shift = np.uint64(high if n == word else 0)
            prefix_G = self.prefix_G3[:, n] >> shift
            places = places[rows.word(n, places) >> shift == prefix_G[group_N[places]]]
        return places, group_N[places]

    def narrowed(self, bucket_G: NDArray[np.int64]) -> Open:
        word, _, low = LEVELS[self.level]
        prefix_G3 = self.prefix_G3.copy()
        prefix_G3[:, word] |= bucket_G.astype(np.uint64) << np.uint64(low)
        return Open(self.groups, self.open_G, prefix_G3, self.level + 1)


@dataclass(frozen=True)
class Count:
    """Rows to [M, G, B]: how many lie in each bucket of an opened one, and their tokens."""

    opened: Open
    by_tokens: bool

    def __call__(self, rows: Rows) -> NDArray[np.int64]:
        word, high, low = LEVELS[self.opened.level]
        (places, group), num_buckets = self.opened.inside(rows), 1 << (high - low)
        bucket = (rows.word(word, places) >> np.uint64(low)).astype(np.int64) & (num_buckets - 1)
        size, tokens = len(self.opened.groups) * num_buckets, rows.tokens_N[places] if self.by_tokens else None
        counts = _count(group * num_buckets + bucket, tokens, size)
        return np.stack(counts).reshape(-1, len(self.opened.groups), num_buckets)


@dataclass(frozen=True)
class Keys:
    """How many eligible rows have each leading RANK_BITS of a key: `cell` is the place of a group and these bits, ascending."""

    cell_C: NDArray[np.int64]
    count_C: NDArray[np.int64]

    def __add__(self, other: Keys) -> Keys:
        cell_C, place = np.unique(np.concatenate([self.cell_C, other.cell_C]), return_inverse=True)
        counts = np.concatenate([self.count_C, other.count_C])
        return Keys(cell_C, np.bincount(place, counts, len(cell_C)).astype(np.int64))

    def to_bytes(self) -> bytes:
        np.savez_compressed(buffer := io.BytesIO(), **vars(self))
        return buffer.getvalue()

    @staticmethod
    def of_bytes(data: bytes) -> Keys:
        with np.load(io.BytesIO(data), allow_pickle=False) as saved:
            return Keys(saved["cell_C"], saved["count_C"])

    def rank(self, group: int, key: int) -> tuple[int, int]:
        """The best and the worst rank in its group, from 1, that a row with this key may have."""
        first = group << RANK_BITS | key >> (64 - RANK_BITS)
        above, inside = (
            int(self.count_C[(self.cell_C >= low) & (self.cell_C < high)].sum())
            for low, high in ((first + 1, (group + 1) << RANK_BITS), (first, first + 1))
        )
        return above + 1, above + max(inside, 1)


@dataclass(frozen=True)
class CountKeys:
    groups: tuple[Group, ...]

    def __call__(self, rows: Rows) -> Keys:
        places = np.flatnonzero(rows.group_N >= 0)
        group_N = _places(rows, self.groups)[places]
        cell_N = group_N << RANK_BITS | (rows.key_N[places] >> np.uint64(64 - RANK_BITS)).astype(np.int64)
        return Keys(*np.unique(cell_N, return_counts=True))


@dataclass(frozen=True)
class Inside:
    """Rows of opened buckets: the places of their groups, their words and tokens."""

    group_N: NDArray[np.int64]
    words_3N: NDArray[np.uint64]
    tokens_N: NDArray[np.int64]

    def __add__(self, other: Inside) -> Inside:
        mine, theirs = vars(self), vars(other)
        return Inside(**{name: np.concatenate([mine[name], theirs[name]], axis=-1) for name in mine})


@dataclass(frozen=True)
class Pick:
    opened: Open

    def __call__(self, rows: Rows) -> Inside:
        places, group = self.opened.inside(rows)
        return Inside(group, np.stack([rows.word(n, places) for n in range(3)]), rows.tokens_N[places])


def _places(rows: Rows, groups: tuple[Group, ...]) -> NDArray[np.int64]:
    """[N] the place in `groups` of each row's group, or -1."""
    known = {group: n for n, group in enumerate(groups)}
    return np.array([*(known.get(group, -1) for group in rows.groups), -1], np.int64)[rows.group_N]


def _count(cell_N: NDArray[np.int64], tokens_N: NDArray[np.int64] | None, size: int) -> list[NDArray[np.int64]]:
    """[size] rows, and where given their tokens; exact, as float64 holds integers to 2^53."""
    rows = np.bincount(cell_N, minlength=size)
    return [rows] if tokens_N is None else [rows, np.bincount(cell_N, tokens_N, size).astype(np.int64)]

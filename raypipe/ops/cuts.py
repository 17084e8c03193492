"""The cut of every group: above it lie as many rows, or tokens, as the group may keep. Exact, without a sort or a shuffle.

A row is a number of 192 bits, its key and its sample_id, so no two are equal. A fold counts the rows of each group by the leading
bits; the bucket of the cut is opened, and a further fold counts what lies in it by the next bits, until so little is left that it is
gathered and sorted. So the state is small whatever the rows: 4,096 buckets a group, then GATHER_ROWS rows.

N rows, G groups, B buckets; words_3N are the 192 bits, leading word first; of a pair the first is rows, the second their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = [(word, high, low) for word in range(3) for high, low in pairwise((64, 52, 44, 36, 28, 20, 12, 0))]
GATHER_ROWS = 100_000

Group = tuple[int, str]  # cluster_id, and the value of select.per
Fold = Callable[[Callable[["Rows"], Any]], Any]  # sums a function of Rows over all of them
Quotas = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True)
class Rows:
    """Eligible rows of some parts, each with its group, an index into `groups`; and how many rows a group's fraction is of."""

    groups: tuple[Group, ...]
    group_N: NDArray[np.int64]
    words_3N: NDArray[np.uint64]
    tokens_N: NDArray[np.int64]
    counted_G: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        return self.group_N.nbytes + self.words_3N.nbytes + self.tokens_N.nbytes


@dataclass(frozen=True)
class Cut:
    """Of a group, in rows and tokens. What is eligible and at least `at_least`, a number of 192 bits, is kept."""

    counted: int
    eligible: int
    tokens: int
    keep: int
    keep_tokens: int
    at_least: int


def find_cuts(fold: Fold, quotas: Quotas, budget: int | None = None) -> dict[Group, Cut]:
    """By group, in order; nothing where no row is eligible.

    `quotas` makes of what is counted, eligible, and the eligible rows' tokens, [G] each, how many rows a group keeps. With a `budget`
    they are in tokens: a group keeps the longest beginning that its quota holds, and what is then left of the budget pays one more row
    for the groups with the largest remainders.
    """
    totals = fold(total).counts
    groups = tuple(sorted(group for group, (_, eligible, _) in totals.items() if eligible))
    if not groups:
        return {}
    total_3G = np.array([totals[group] for group in groups], np.int64).T
    by, whole_2G = int(budget is not None), total_3G[1:]
    left_G = quotas(*total_3G)
    open_G = left_G < whole_2G[by]
    kept_2G, num_open = np.where(open_G, 0, whole_2G), int(whole_2G[0, open_G].sum())
    opened = Open(groups, np.zeros((len(groups), 3), np.uint64), open_G)
    while num_open > GATHER_ROWS and opened.level < len(LEVELS) - 1:
        counts_2GB = fold(Count(opened))
        down_to_2GB = counts_2GB[..., ::-1].cumsum(-1)[..., ::-1]  # in a bucket and those above
        bucket_G = np.maximum((down_to_2GB[by] > left_G[:, None]).sum(-1) - 1, 0)
        inside_2G, reached_2G = (
            np.take_along_axis(of, bucket_G[None, :, None], -1)[..., 0] for of in (counts_2GB, down_to_2GB)
        )
        above_2G = np.where(open_G, reached_2G - inside_2G, 0)
        kept_2G, left_G, num_open = kept_2G + above_2G, left_G - above_2G[by], int(inside_2G[0, open_G].sum())
        opened = opened.narrowed(bucket_G)
    at_least_G = [0] * len(groups)
    if open_G.any():
        _cut_inside(fold(Pick(opened)), opened, left_G, budget, kept_2G, at_least_G)
    columns = zip(*total_3G.tolist(), *kept_2G.tolist(), at_least_G, strict=True)
    return {group: Cut(*figures) for group, figures in zip(groups, columns, strict=True)}


def _cut_inside(
    inside: Inside,
    opened: Open,
    left_G: NDArray[np.int64],
    budget: int | None,
    kept_2G: NDArray[np.int64],
    at_least_G: list[int],
) -> None:
    """Fills in what is kept of the opened buckets, and the cuts. In each lies the first row that its quota does not hold."""
    order = np.lexsort([*(~inside.words_3N[n] for n in (2, 1, 0)), inside.group_N])
    edges_G = np.searchsorted(inside.group_N[order], np.arange(len(opened.groups) + 1))
    next_rows = []
    for g in np.flatnonzero(opened.open_G).tolist():
        mine = order[edges_G[g] : edges_G[g + 1]]
        tokens = inside.tokens_N[mine]
        spent = np.cumsum(tokens if budget is not None else np.ones_like(tokens))
        keep = int(np.searchsorted(spent, left_G[g], side="right"))
        kept_2G[:, g] += keep, tokens[:keep].sum()
        dropped = number_of(inside.words_3N[:, mine[keep]])
        at_least_G[g] = dropped + 1
        next_rows.append((int(spent[keep] - tokens[keep] - left_G[g]), g, int(tokens[keep]), dropped))
    for _, g, more, dropped in sorted(next_rows):
        if budget is not None and kept_2G[1].sum() + more <= budget:
            kept_2G[:, g] += 1, more
            at_least_G[g] = dropped


def number_of(words: Sequence[Any] | NDArray[np.uint64]) -> int:
    return int(words[0]) << 128 | int(words[1]) << 64 | int(words[2])


def is_at_least(words_3N: NDArray[np.uint64], numbers: Sequence[int], group_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N] whether a row is at least the number of its group."""
    bounds = [[number >> shift & (2**64 - 1) for number in numbers] for shift in (128, 64, 0)]
    kept_N = np.ones(len(group_N), bool)
    for word_N, bound_G in zip(words_3N[::-1], np.array(bounds[::-1], np.uint64), strict=True):
        bound_N = bound_G[group_N]
        kept_N = (word_N > bound_N) | ((word_N == bound_N) & kept_N)
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
    columns = (rows.counted_G, np.bincount(rows.group_N, minlength=size), _sums(rows.group_N, rows.tokens_N, size))
    return Totals(dict(zip(rows.groups, zip(*(column.tolist() for column in columns), strict=True), strict=True)))


@dataclass(frozen=True)
class Open:
    """Of each group that is cut the bucket of the cut: rows with the leading bits of `prefix_G3`, as many as `level` says."""

    groups: tuple[Group, ...]
    prefix_G3: NDArray[np.uint64]
    open_G: NDArray[np.bool_]
    level: int = 0

    def rows(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_] | slice]:
        """[N] the places of their groups, and which lie in the buckets."""
        place = {group: n for n, group in enumerate(self.groups)}
        group_N = np.array([place.get(group, 0) for group in rows.groups], np.int64)[rows.group_N]
        word, high, _ = LEVELS[self.level]
        if self.level == 0 and self.open_G.all():
            return group_N, slice(None)
        inside_N = self.open_G[group_N]
        for n in range(word + (high < 64)):
            shift = np.uint64(high if n == word else 0)
            inside_N &= rows.words_3N[n] >> shift == (self.prefix_G3[:, n] >> shift)[group_N]
        return group_N, inside_N

    def narrowed(self, bucket_G: NDArray[np.int64]) -> Open:
        word, _, low = LEVELS[self.level]
        prefix_G3 = self.prefix_G3.copy()
        prefix_G3[:, word] |= bucket_G.astype(np.uint64) << np.uint64(low)
        return Open(self.groups, prefix_G3, self.open_G, self.level + 1)


@dataclass(frozen=True)
class Count:
    """Rows to [2, G, B]: how many lie in each bucket of an opened one, and their tokens."""

    opened: Open

    def __call__(self, rows: Rows) -> NDArray[np.int64]:
        word, high, low = LEVELS[self.opened.level]
        (group_N, inside_N), num_buckets = self.opened.rows(rows), 1 << (high - low)
        bucket_N = (rows.words_3N[word, inside_N] >> np.uint64(low)).astype(np.int64) & (num_buckets - 1)
        cell_N, size = group_N[inside_N] * num_buckets + bucket_N, len(self.opened.groups) * num_buckets
        counts = np.stack([np.bincount(cell_N, minlength=size), _sums(cell_N, rows.tokens_N[inside_N], size)])
        return counts.reshape(2, len(self.opened.groups), num_buckets)


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
        group_N, inside_N = self.opened.rows(rows)
        return Inside(group_N[inside_N], rows.words_3N[:, inside_N], rows.tokens_N[inside_N])


def _sums(place_N: NDArray[np.int64], tokens_N: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Exact: float64 holds integers to 2^53."""
    return np.bincount(place_N, tokens_N, size).astype(np.int64)

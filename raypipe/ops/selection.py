"""Which samples to keep: the top share of every group by a key, exact, without a sort or a shuffle.

Every strategy is a group and a key for each eligible row; the rest is one rule: keep the floor(keep_fraction * eligible) rows
of a group with the highest (key, then lowest sample_id). A key is an unsigned 64-bit number in the order of the score. One
fold counts keys by their leading 20 bits; a second gathers the rows of the one bucket where each group's cut falls; so the
state is small (256 buckets an octave of the score) and the cut is exact. All strategies draw from the same eligible rows,
so that they keep equal numbers and differ only in the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.config import Select
from raypipe.ops.text import draw, id_words, is_held_out

BUCKET_BITS = 20
BY_CLUSTER = ("paper", "cluster_random")  # the other strategies know one group, 0
SELECTED, HELD_OUT, IFD_TOO_HIGH, BELOW_CUT = "selected", "held_out", "ifd_too_high", "below_cut"


@dataclass(frozen=True)
class Rows:
    """What selection sees of a part: [N] each, `ids` [N, 2]. `reason` is final but for eligible rows, where it is empty."""

    group: NDArray[np.int64]
    key: NDArray[np.uint64]
    ids: NDArray[np.uint64]
    reason: NDArray[np.object_]

    @property
    def eligible(self) -> NDArray[np.bool_]:
        return np.asarray(self.reason == "")


def view(tables: list[pa.Table], config: Select, seed: int) -> Rows:
    """From aligned tables of clean (status), cluster (cluster_id) and score (status, ifd, num_response_tokens)."""
    clean, cluster, score = tables
    ids = id_words(clean.column("sample_id"))
    ifd = _numbers(score.column("ifd"), np.nan)
    cleaned, scored = (table.column("status").to_numpy().astype(object) for table in (clean, score))
    held_out = is_held_out(ids, config.held_out_fraction)
    reason = np.select(
        [cleaned != "ok", held_out, np.isnan(ifd), ~(ifd < config.max_ifd)],
        [cleaned, HELD_OUT, scored, IFD_TOO_HIGH],
        "",
    )
    group = _numbers(cluster.column("cluster_id"), -1).astype(np.int64)
    if config.strategy not in BY_CLUSTER:
        group = np.zeros_like(group)
    if config.strategy in ("random", "cluster_random"):
        key = draw(ids, seed)
    elif config.strategy == "longest":
        key = _numbers(score.column("num_response_tokens"), 0).astype(np.uint64)
    else:
        key = ordered_bits(ifd)
    return Rows(group, key, ids, reason)


def ordered_bits(score: NDArray[np.float64]) -> NDArray[np.uint64]:
    """[N] unsigned numbers in the order of the scores (-inf .. inf); NaN is not ordered."""
    bits = score.view(np.uint64)
    negative = bits >> np.uint64(63) == 1
    return np.where(negative, ~bits, bits | np.uint64(1 << 63))


def score_of(key: int) -> float:
    """The score whose ordered bits these are."""
    bits = key & ~(1 << 63) if key >> 63 else ~key & (2**64 - 1)
    return float(np.array(bits, np.uint64).view(np.float64))


@dataclass(frozen=True)
class Histogram:
    """Sparse counts of (group, leading bits of the key)."""

    counts: dict[tuple[int, int], int]

    def __add__(self, other: Histogram) -> Histogram:
        total = dict(self.counts)
        for cell, count in other.counts.items():
            total[cell] = total.get(cell, 0) + count
        return Histogram(total)


@dataclass(frozen=True)
class CountKeys:
    """First fold."""

    config: Select
    seed: int

    def __call__(self, tables: list[pa.Table]) -> Histogram:
        rows = view(tables, self.config, self.seed)
        cells = np.stack([rows.group, _bucket(rows.key)])[:, rows.eligible]
        unique, counts = np.unique(cells, axis=1, return_counts=True)
        return Histogram({(int(g), int(b)): int(n) for g, b, n in zip(*unique, counts, strict=True)})


@dataclass(frozen=True)
class Quota:
    """Of a group: how many are eligible, how many to keep, and of those how many from the bucket of the cut."""

    eligible: int
    keep: int
    bucket: int
    keep_in_bucket: int


def quotas(histogram: Histogram, keep_fraction: float) -> dict[int, Quota]:
    groups: dict[int, dict[int, int]] = {}
    for (group, bucket), count in histogram.counts.items():
        groups.setdefault(group, {})[bucket] = count
    return {group: _quota(buckets, keep_fraction) for group, buckets in sorted(groups.items())}


def _quota(buckets: dict[int, int], keep_fraction: float) -> Quota:
    eligible = sum(buckets.values())
    keep = left = num_kept(keep_fraction, eligible)
    for bucket in sorted(buckets, reverse=True):
        if left <= buckets[bucket]:
            return Quota(eligible, keep, bucket, left)
        left -= buckets[bucket]
    raise AssertionError("more to keep than there is")


def num_kept(keep_fraction: float, eligible: int) -> int:
    """floor of the exact decimal product: int(90 * 0.7) would be 62."""
    return int(Fraction(str(keep_fraction)) * eligible)


@dataclass(frozen=True)
class Candidates:
    """Rows in the buckets of the cuts: group, key, two id words; [N] each."""

    rows: NDArray[np.uint64]

    def __add__(self, other: Candidates) -> Candidates:
        return Candidates(np.concatenate([self.rows, other.rows], axis=1))


@dataclass(frozen=True)
class GatherCut:
    """Second fold."""

    config: Select
    seed: int
    quotas: dict[int, Quota]

    def __call__(self, tables: list[pa.Table]) -> Candidates:
        rows = view(tables, self.config, self.seed)
        inside = rows.eligible & (
            _bucket(rows.key) == _per_group(rows.group, {g: q.bucket for g, q in self.quotas.items()}, -1)
        )
        return Candidates(np.stack([rows.group.astype(np.uint64), rows.key, rows.ids[:, 0], rows.ids[:, 1]])[:, inside])


@dataclass(frozen=True)
class Cut:
    """The last row kept of a group: keep what is above (key, then lowest id) or equal. None keeps nothing."""

    key: int
    id_words: tuple[int, int]


def cuts(quotas_by_group: dict[int, Quota], candidates: Candidates) -> dict[int, Cut | None]:
    found: dict[int, Cut | None] = {}
    group_N, key_N, high_N, low_N = candidates.rows
    for group, quota in quotas_by_group.items():
        (mine,) = np.nonzero(group_N == np.uint64(group))
        order = mine[np.lexsort([low_N[mine], high_N[mine], ~key_N[mine]])]
        last = order[quota.keep_in_bucket - 1] if quota.keep_in_bucket else None
        found[group] = None if last is None else Cut(int(key_N[last]), (int(high_N[last]), int(low_N[last])))
    return found


@dataclass(frozen=True)
class Mark:
    """The map: aligned tables to sample_id, selected, reason."""

    config: Select
    seed: int
    cuts: dict[int, Cut | None]

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        rows = view(tables, self.config, self.seed)
        cut = {group: cut for group, cut in self.cuts.items() if cut is not None}
        key = _per_group(rows.group, {g: c.key for g, c in cut.items()}, 0, np.uint64)
        high = _per_group(rows.group, {g: c.id_words[0] for g, c in cut.items()}, 0, np.uint64)
        low = _per_group(rows.group, {g: c.id_words[1] for g, c in cut.items()}, 0, np.uint64)
        before = (rows.ids[:, 0] < high) | ((rows.ids[:, 0] == high) & (rows.ids[:, 1] <= low))
        kept = rows.eligible & np.isin(rows.group, list(cut)) & ((rows.key > key) | ((rows.key == key) & before))
        reason = np.where(rows.eligible, np.where(kept, SELECTED, BELOW_CUT), rows.reason)
        return pa.table(
            {"sample_id": tables[0].column("sample_id"), "selected": kept, "reason": pa.array(reason, pa.string())}
        )


def _bucket(key: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (key >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)


def _per_group(group: NDArray[np.int64], values: dict[int, int], missing: int, dtype: Any = np.int64) -> NDArray[Any]:
    """[N] `values[group]`, or `missing`."""
    unique, place = np.unique(group, return_inverse=True)
    return np.array([values.get(int(g), missing) for g in unique], dtype)[place]


def _numbers(column: pa.ChunkedArray, missing: float) -> NDArray[Any]:
    return np.asarray(pc.fill_null(column, pa.scalar(missing, column.type)).to_numpy())

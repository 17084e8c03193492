"""Which samples to keep: the top of every group by a key.

A strategy is a group and a key for every eligible row. Of a group the rows with the highest (key, then lowest sample_id) are kept:
a fraction of them, or the group's share of a budget of samples or tokens. All strategies draw from the same eligible rows, so that
they keep equal numbers and differ in the choice alone. ops.cuts finds where a group is cut.

N rows, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.config import Select
from raypipe.ops.cuts import Cut, Group, Rows, is_at_least
from raypipe.ops.text import draw, id_words, is_held_out

BY_CLUSTER = ("paper", "cluster_random")  # the other strategies know one cluster, 0
SELECTED, HELD_OUT, BELOW_CUT = "selected", "held_out", "below_cut"
IFD_TOO_HIGH, IFD_TOO_LOW, NO_VALUE = "ifd_too_high", "ifd_too_low", "no_column_value"


@dataclass(frozen=True)
class View:
    """A part as selection sees it, [N] each. A row that any of `drops` holds is not eligible; the first says why."""

    cluster_N: NDArray[np.int64]
    value_N: pa.Array | None  # of select.per
    words_3N: NDArray[np.uint64]
    tokens_N: NDArray[np.int64]
    drops: Sequence[tuple[NDArray[np.bool_], Any]]

    def without(self, drops: int) -> NDArray[np.bool_]:
        """Rows that the first few do not hold."""
        return ~np.logical_or.reduce([dropped_N for dropped_N, _ in self.drops[:drops]])

    @property
    def eligible_N(self) -> NDArray[np.bool_]:
        return self.without(len(self.drops))


def view(tables: Sequence[pa.Table], select: Select, seed: int) -> View:
    """Of aligned tables: clean (sample_id, status, carried columns), cluster (cluster_id) and score (status, ifd, tokens)."""
    clean, cluster, score = tables
    ids_N2 = id_words(clean.column("sample_id"))
    ifd_N = _numbers(score.column("ifd"), np.nan)
    response_N = _numbers(score.column("num_response_tokens"), 0).astype(np.int64)
    drops = [
        (pc.not_equal(clean.column("status"), "ok").to_numpy(), clean.column("status")),
        (is_held_out(ids_N2, select.held_out_fraction), HELD_OUT),
        (np.isnan(ifd_N), score.column("status")),
        (ifd_N >= select.max_ifd, IFD_TOO_HIGH),
        (ifd_N < select.min_ifd, IFD_TOO_LOW),
    ]
    if select.strategy in ("random", "cluster_random"):
        key_N = draw(ids_N2, seed)
    elif select.strategy == "longest":
        key_N = ordered_bits(response_N.astype(np.float64))
    elif select.strategy == "column":
        number_N = as_numbers(clean.column(str(select.column)))
        key_N = ordered_bits(number_N)
        drops.append((np.isnan(number_N), NO_VALUE))
    else:
        key_N = ordered_bits(ifd_N + 0.0)
    cluster_N = _numbers(cluster.column("cluster_id"), 0).astype(np.int64)
    return View(
        cluster_N if select.strategy in BY_CLUSTER else np.zeros_like(cluster_N),
        clean.column(select.per).combine_chunks() if select.per else None,
        np.stack([key_N, *~ids_N2.T]),
        response_N + _numbers(score.column("num_instruction_tokens"), 0).astype(np.int64),
        drops,
    )


def as_numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """[N] of a carried column, whose values are text; NaN where that is no finite number."""
    found = []
    for text in column.to_pylist():
        try:
            found.append(float(text))
        except (TypeError, ValueError):
            found.append(np.nan)
    value_N = np.array(found, np.float64) + 0.0  # -0 becomes 0
    return np.where(np.isfinite(value_N), value_N, np.nan)


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
class Gather:
    """Parts to their eligible rows."""

    select: Select
    seed: int

    def __call__(self, parts: Iterable[Sequence[pa.Table]]) -> Rows:
        views = [view(tables, self.select, self.seed) for tables in parts]
        eligible_N = np.concatenate([one.eligible_N for one in views])
        counted_N = eligible_N
        if self.select.fraction_of == "cluster":
            counted_N = np.concatenate([one.without(2) for one in views])
        value_N = pa.concat_arrays([one.value_N for one in views]) if self.select.per else None
        groups, group_N = _grouped(np.concatenate([one.cluster_N for one in views]), value_N, counted_N)
        return Rows(
            groups,
            group_N[eligible_N],
            np.concatenate([one.words_3N for one in views], axis=1)[:, eligible_N],
            np.concatenate([one.tokens_N for one in views])[eligible_N],
            np.bincount(group_N[counted_N], minlength=len(groups)),
        )


def _grouped(
    cluster_N: NDArray[np.int64], value_N: pa.Array | None, among_N: NDArray[np.bool_]
) -> tuple[tuple[Group, ...], NDArray[np.int64]]:
    """The groups that occur among some rows, and the place in them of each of these; of other rows any place."""
    values, code_N = [""], np.zeros(len(cluster_N), np.int64)
    if value_N is not None:
        encoded = pc.fill_null(value_N, "").dictionary_encode()
        values, code_N = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    cell_N = cluster_N * len(values) + code_N
    there = np.bincount(cell_N[among_N], minlength=int(cell_N.max(initial=0)) + 1) > 0
    groups = [(int(cell) // len(values), values[int(cell) % len(values)]) for cell in np.flatnonzero(there)]
    return tuple(groups), np.maximum(np.cumsum(there) - 1, 0)[cell_N]


def quotas(
    select: Select, counted_G: NDArray[np.int64], eligible_G: NDArray[np.int64], tokens_G: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[G] rows that each group keeps at most; with select.num_tokens tokens."""
    if select.num_tokens is not None:
        whole = sum(tokens := tokens_G.tolist())
        return np.array([select.num_tokens * mine // max(whole, 1) for mine in tokens], np.int64)
    if select.num_samples is not None:
        return np.array(shares(min(select.num_samples, int(eligible_G.sum())), eligible_G.tolist()), np.int64)
    kept_G = np.array([num_kept(select.keep_fraction, counted) for counted in counted_G.tolist()], np.int64)
    return np.minimum(kept_G, eligible_G)


def num_kept(keep_fraction: float, counted: int) -> int:
    """floor of the exact decimal product: int(90 * 0.7) would be 62."""
    return int(Fraction(str(keep_fraction)) * counted)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in proportion to the weights, by largest remainder; the earlier of equal remainders first."""
    whole = sum(weights)
    found = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda n: -(total * weights[n] % whole))
    for n in by_remainder[: total - sum(found)]:
        found[n] += 1
    return found


@dataclass(frozen=True)
class Mark:
    """The map: aligned tables to sample_id, selected, reason."""

    select: Select
    seed: int
    cuts: Mapping[Group, Cut]

    def __call__(self, tables: Sequence[pa.Table]) -> pa.Table:
        seen = view(tables, self.select, self.seed)
        eligible_N = seen.eligible_N
        groups, group_N = _grouped(seen.cluster_N, seen.value_N, eligible_N)
        kept_N = eligible_N.copy()
        if groups:
            kept_N &= is_at_least(seen.words_3N, [self.cuts[group].at_least for group in groups], group_N)
        masks, reasons = zip(*seen.drops, (kept_N, SELECTED), strict=True)
        reason = pc.case_when(pc.make_struct(*map(pa.array, masks)), *map(_whole, reasons), pa.scalar(BELOW_CUT))
        return pa.table({"sample_id": tables[0].column("sample_id"), "selected": kept_N, "reason": reason})


def _whole(reason: Any) -> Any:
    return pa.scalar(reason) if isinstance(reason, str) else reason.combine_chunks()


def _numbers(column: pa.ChunkedArray, missing: float) -> NDArray[Any]:
    return np.asarray(pc.fill_null(column, pa.scalar(missing, column.type)).to_numpy())

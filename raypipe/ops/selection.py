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
IFD_TOO_HIGH, IFD_TOO_LOW, NO_VALUE, NO_CLUSTER = "ifd_too_high", "ifd_too_low", "no_column_value", "no_cluster"
SEMANTIC_DUPLICATE = "semantic_duplicate"


@dataclass(frozen=True)
class View:
    """A part as selection sees it, [N] each. A row that any of `drops` holds is not eligible; the first says why."""

    ids_N: pa.Array
    cluster_N: NDArray[np.int64]
    value_N: pa.Array | None  # of select.per
    key_N: NDArray[np.uint64]
    tokens_N: NDArray[np.int64]
    drops: Sequence[tuple[NDArray[np.bool_], Any]]

    def left_by(self, last: str | None = None) -> NDArray[np.bool_]:
        """Rows that none holds, of those up to this reason."""
        left_N = np.ones(len(self.key_N), bool)
        for dropped_N, reason in self.drops:
            left_N &= ~dropped_N
            if isinstance(reason, str) and reason == last:
                break
        return left_N


def view(tables: Sequence[pa.Table], select: Select, seed: int) -> View:
    """Of aligned tables: clean (sample_id, status, carried columns), cluster (cluster_id and, where asked for, repeats) and score (status, ifd, tokens)."""
    clean, cluster, score = tables
    ids_N = clean.column("sample_id").combine_chunks()
    ifd_N = _numbers(score.column("ifd"), np.nan)
    response_N = _numbers(score.column("num_response_tokens"), 0).astype(np.int64)
    drops = [
        (pc.not_equal(clean.column("status"), "ok").to_numpy(), clean.column("status")),
        (is_held_out(ids_N, select.held_out_fraction), HELD_OUT),
        (
            cluster.column("cluster_id").is_null().to_numpy(),
            NO_CLUSTER,
        ),  # of a sample: its embedding or cluster was not given
        (np.isnan(ifd_N), score.column("status")),
        (ifd_N >= select.max_ifd, IFD_TOO_HIGH),
        (ifd_N < select.min_ifd, IFD_TOO_LOW),
    ]
    if "repeats" in cluster.column_names:
        drops.insert(1, (cluster.column("repeats").is_valid().to_numpy(), SEMANTIC_DUPLICATE))
    if select.strategy in ("random", "cluster_random"):
        key_N = draw(id_words(ids_N), seed)
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
        ids_N,
        cluster_N if select.strategy in BY_CLUSTER else np.zeros_like(cluster_N),
        clean.column(select.per).combine_chunks() if select.per else None,
        key_N,
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
    """Parts to the Rows of them all."""

    select: Select
    seed: int

    def __call__(self, parts: Iterable[Sequence[pa.Table]]) -> Rows:
        return rows_of([view(tables, self.select, self.seed) for tables in parts], self.select)


def rows_of(views: Sequence[View], select: Select) -> Rows:
    cluster_N, key_N, tokens_N = (
        np.concatenate([getattr(one, name) for one in views]) for name in ("cluster_N", "key_N", "tokens_N")
    )
    eligible_N = np.concatenate([one.left_by() for one in views])
    counted_N = (
        eligible_N if select.fraction_of == "survivors" else np.concatenate([one.left_by(NO_CLUSTER) for one in views])
    )
    values, code_N = [""], np.int64(0)
    if select.per:
        encoded = pc.fill_null(pa.concat_arrays([one.value_N for one in views]), "").dictionary_encode()
        values, code_N = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    cell_N = cluster_N * len(values) + code_N
    counted = np.bincount(cell_N[counted_N], minlength=int(cell_N.max(initial=0)) + 1)
    cells = np.flatnonzero(counted)
    groups = tuple((int(cell) // len(values), values[int(cell) % len(values)]) for cell in cells)
    place = np.full(len(counted), -1)
    place[cells] = np.arange(len(cells))
    ids_N = pa.concat_arrays([one.ids_N for one in views])
    return Rows(groups, np.where(eligible_N, place[cell_N], -1), key_N, tokens_N, ids_N, counted[cells])


def quotas(
    select: Select, counted_G: NDArray[np.int64], eligible_G: NDArray[np.int64], tokens_G: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[G] rows that each group keeps at most; with select.num_tokens tokens."""
    if select.num_tokens is not None:
        whole = sum(tokens := tokens_G.tolist())
        return np.array([select.num_tokens * mine // max(whole, 1) for mine in tokens], np.int64)
    if select.num_samples is not None:
        return np.array(shares(min(select.num_samples, int(eligible_G.sum())), eligible_G.tolist()), np.int64)
    assert select.keep_fraction is not None  # one of three is given
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


def mark(
    tables: Sequence[pa.Table], select: Select, seed: int, cuts: Mapping[Group, Cut]
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Aligned tables to sample_id, selected, reason; and the tokens of the rows that are kept."""
    seen = view(tables, select, seed)
    rows = rows_of([seen], select)
    kept_N = is_at_least(rows, [cuts[group].at_least if group in cuts else 0 for group in rows.groups])
    masks, reasons = zip(*seen.drops, (kept_N, SELECTED), strict=True)
    reason = pc.case_when(pc.make_struct(*map(pa.array, masks)), *map(_whole, reasons), pa.scalar(BELOW_CUT))
    return pa.table({"sample_id": seen.ids_N, "selected": kept_N, "reason": reason}), seen.tokens_N[kept_N]


def _whole(reason: Any) -> Any:
    return pa.scalar(reason) if isinstance(reason, str) else reason.combine_chunks()


def _numbers(column: pa.ChunkedArray, missing: float) -> NDArray[Any]:
    return np.asarray(pc.fill_null(column, pa.scalar(missing, column.type)).to_numpy())

"""Later rows that repeat an earlier one, found by tasks over all parts: how their answers become a small part for each part."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.part import THREADS, Table, commit_part

Pairs = NDArray[np.int64]  # [4, M]: part and row of later rows, then part and row of the first one that each repeats


def first_each(pairs: Pairs) -> Pairs:
    """Of each later row the pair with the earliest first one, in order."""
    pairs = pairs[:, np.lexsort(pairs[::-1])]
    is_first = np.ones(pairs.shape[1], bool)
    is_first[1:] = (pairs[:2, 1:] != pairs[:2, :-1]).any(axis=0)
    return pairs[:, is_first]


def put_pairs(pairs: Pairs, out: Table, todo: set[str]) -> None:
    """One small part for each of `todo`: `row`, and `first` as 'part row' of the row it repeats."""
    part_N, row_N, first_part_N, first_row_N = first_each(pairs)
    places = [place for place, part in enumerate(out.parts) if part in todo]

    def put(place: int) -> None:
        (mine,) = np.nonzero(part_N == place)
        first = [f"{out.parts[p]} {r}" for p, r in zip(first_part_N[mine], first_row_N[mine], strict=True)]
        columns: dict[str, Any] = {"row": pa.array(row_N[mine], pa.int32()), "first": pa.array(first, pa.string())}
        commit_part(out.folder, out.parts[place], pa.table(columns), counts={})

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(put, places))

"""Clean: which rows are samples. A row is a duplicate only of an earlier one, so old parts never change when the lake grows.

One map puts each part's sample_ids aside, sorted (`_ids/`, 16 bytes a row: whole ids, so that no two samples are ever taken
for one); one task per bucket of leading bits finds the later rows; one map marks. Growth reads `_ids` of old parts, never
their text.

Columns: sample_id, status (ok, duplicate), evidence (of a duplicate: part and row of the first), and those of ingest.carry, so that
who wants them does not read the texts.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.items import map_items
from raypipe.ops.text import id_words
from raypipe.part import THREADS, Table, commit_part
from raypipe.parts import map_parts
from raypipe.resources import Pool
from raypipe.stage import Inputs, Result
from raypipe.store import Folder

BUCKET_ROWS = 4_000_000  # of ids that one task sorts: about 300 MB


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    ids, samples = inputs["ingest"].only("sample_id"), inputs["ingest"].only("sample_id", *config.ingest.carry)
    todo = set(ids.parts) - set(out.list())
    if todo:
        map_parts(SortIds, [ids], out / "_ids", pool=Pool(), light=True)
        _put_duplicates(Table(out / "_ids", ids.parts), todo, inputs["ingest"].manifest["rows"], out / "_duplicates")
    return Result(map_parts(Mark, [samples, Table(out / "_duplicates", ids.parts)], out, pool=Pool(), light=True))


class SortIds:
    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        words_N2 = id_words(tables[0].column("sample_id"))
        order = np.lexsort([words_N2[:, 1], words_N2[:, 0]])
        return pa.table({"high": words_N2[order, 0], "low": words_N2[order, 1], "row": order.astype(np.int32)})


class Mark:
    """`tables`: sample_ids and carried columns of a part, and which of its rows are later duplicates, of what."""

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        samples, duplicates = tables
        status = np.full(len(samples), "ok", object)
        evidence = np.full(len(samples), None, object)
        rows = duplicates.column("row").to_numpy()
        status[rows] = "duplicate"
        evidence[rows] = duplicates.column("first").to_pylist()
        made = pa.table(
            {
                "sample_id": samples.column("sample_id"),
                "status": pa.array(status, pa.string()),
                "evidence": pa.array(evidence, pa.string()),
            }
        )
        for name in samples.column_names[1:]:
            made = made.append_column(name, samples.column(name))
        return made


def find_duplicates(bucket: tuple[int, int], ids: Table) -> NDArray[np.int64]:
    """[4, M]: part and row of every later duplicate whose leading word lies in [a, b), then part and row of the first."""
    low_bound, high_bound = bucket
    pieces = []
    for place, part in enumerate(ids.parts):
        table = ids.read(part)
        high = table.column("high").to_numpy()
        a, b = (
            np.searchsorted(high, np.uint64(low_bound)),
            len(high) if high_bound >= 2**64 else np.searchsorted(high, np.uint64(high_bound)),
        )
        low, row = table.column("low").to_numpy()[a:b], table.column("row").to_numpy()[a:b]
        pieces.append(np.stack([high[a:b], low, np.full(b - a, place, np.uint64), row.astype(np.uint64)]))
    high, low, place, row = np.concatenate(pieces, axis=1)
    order = np.lexsort([row, place, low, high])
    same = np.zeros(len(order), bool)
    same[1:] = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    first = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    later = order[same]
    return np.stack([place[later], row[later], place[first[same]], row[first[same]]]).astype(np.int64)


def _put_duplicates(ids: Table, todo: set[str], num_rows: int, out: Folder) -> None:
    """One small part for each of `todo`: `row`, and `first` as 'part row' of the row it repeats."""
    count = -(-max(num_rows, 1) // BUCKET_ROWS)
    edges = [2**64 * n // count for n in range(count + 1)]
    found = map_items(partial(find_duplicates, ids=ids), list(itertools.pairwise(edges)), label=out.name)
    part_N, row_N, first_part_N, first_row_N = np.concatenate(found, axis=1)
    places = [place for place, part in enumerate(ids.parts) if part in todo]

    def put(place: int) -> None:
        (mine,) = np.nonzero(part_N == place)
        mine = mine[np.argsort(row_N[mine])]
        first = [f"{ids.parts[p]} {r}" for p, r in zip(first_part_N[mine], first_row_N[mine], strict=True)]
        columns: dict[str, Any] = {"row": pa.array(row_N[mine], pa.int32()), "first": pa.array(first, pa.string())}
        commit_part(out, ids.parts[place], pa.table(columns), counts={})

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(put, places))

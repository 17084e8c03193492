"""Rows to look at: those of parts spread evenly over the lake, some hundred thousand however large it is.

Whole parts, because a part is read whole whatever is wanted of it; spread in equal steps, because files next to each other are
alike. The driver reads them itself, ahead in threads: 80 parts of 4 MiB take seconds, Ray's actors as long to start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.ops.composition import CANDIDATES
from raypipe.ops.style import languages, styles
from raypipe.part import Table
from raypipe.read_ahead import read_ahead

SAMPLED_ROWS = 200_000
LANGUAGE, GUESSED = "language", 2000


def spread(parts: Sequence[str], num_rows: int, most: int = SAMPLED_ROWS) -> tuple[str, ...]:
    """As many parts as hold about `most` of `num_rows` rows, the middle ones of equal runs; all, where they hold no more."""
    count = min(len(parts), max(1, len(parts) * most // max(num_rows, 1)))
    return tuple(parts[(2 * n + 1) * len(parts) // (2 * count)] for n in range(count))


def gathered(tables: Sequence[Table], parts: Sequence[str], of: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """What `of` makes of each part, one after the other. It gets the columns of all tables side by side (of equal names the last), with
    `part`, its place among `parts`, and `row`."""
    made = []
    with read_ahead(tables, parts) as ahead:
        for number, part in enumerate(parts):
            read = [table.read(part) for table in ahead]
            place = {"part": np.full(len(read[0]), number, np.int32), "row": np.arange(len(read[0]), dtype=np.int32)}
            made.append(of(reduce(beside, [*read, pa.table(place)])))
    return pa.concat_tables(made)


def styled(ingest: Table, parts: Sequence[str]) -> pa.Table:
    """Of every row its sample_id, the styles of its response (ops.style), and where it is."""

    def without_text(rows: pa.Table) -> pa.Table:
        return beside(rows.drop_columns("response"), styles(rows.column("response")))

    return gathered([ingest.only("sample_id", "response")], parts, without_text)


def values_of(
    tables: Mapping[str, Table], column: str, sample_ids: Collection[str], carried: Collection[str]
) -> dict[str, str | None]:
    """A carried column of these samples, by sample_id; where LANGUAGE is asked for and not carried, their language as `ops.style` tells it, of
    at most GUESSED of them."""
    wanted = pa.array(sample_ids, pa.string())
    if column in carried:
        clean = tables["clean"].only("sample_id", "status", column)
        is_wanted = (pc.field("status") == "ok") & pc.is_in(pc.field("sample_id"), wanted)
        rows = gathered([clean], clean.parts, lambda rows: rows.filter(is_wanted))
        values = rows.column(column).to_pylist()
    elif column == LANGUAGE:
        ingest = tables["ingest"].only("sample_id", "response")
        parts = spread(ingest.parts, tables["ingest"].manifest["rows"])
        rows = gathered([ingest], parts, lambda rows: rows.filter(pc.is_in(pc.field("sample_id"), wanted))).slice(
            0, GUESSED
        )
        values = languages(rows.column("response").to_pylist())
    else:
        raise ValueError(f"{column} is not carried, and is not {LANGUAGE}")
    return dict(zip(rows.column("sample_id").to_pylist(), values, strict=True))


def candidates(tables: Mapping[str, Table], parts: Sequence[str], known: pa.Table) -> pa.Table:
    """Scored samples that are not held out: of `known`, which is what `styled` gave, with cluster, scores and select's reason."""
    scores = ("ifd", "num_instruction_tokens", "num_response_tokens", "nll_conditional", "nll_unconditional")
    read = [
        tables["cluster"].only("cluster_id", "sq_distance"),
        tables["score"].only(*scores),
        tables["select"].only("reason"),
    ]
    rows = beside(gathered(read, parts, lambda rows: rows), known)
    return rows.filter(pc.is_in(rows.column("reason"), pa.array(CANDIDATES)))


def beside(table: pa.Table, other: pa.Table) -> pa.Table:
    """Columns of both, of equal names the other's."""
    return pa.table({name: each.column(name) for each in (table, other) for name in each.column_names})


def rows_at(table: Table, parts: Sequence[str], rows: pa.Table) -> pa.Table:
    """The same rows of another of the lake's tables, in the order of `rows`, whose columns `part` and `row` say where they are."""
    part_N, row_N = rows.column("part").to_numpy(), rows.column("row").to_numpy()
    order = np.lexsort([row_N, part_N])
    wanted = np.unique(part_N) if len(part_N) else [0]  # one at least, for its columns
    with read_ahead([table], [parts[n] for n in wanted]) as (ahead,):
        found = [ahead.read(parts[n]).replace_schema_metadata().take(np.sort(row_N[part_N == n])) for n in wanted]
    return pa.concat_tables(found).take(np.argsort(order))

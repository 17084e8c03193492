"""A part on its way through Ray Data: one row, and the three steps it takes. No Ray here.

Whatever in Ray Data splits, merges or drops works on rows of a block, so a one-row envelope passes all of it, also when the
part has no rows, and batch_size=1 means "one part". Sealing and opening are zero-copy but for columns of several chunks.

`read`, then `Call` (in an actor), then `write`, which leaves a receipt: an envelope without tables. An error of ours travels
in the envelope; anything else ends the job.

A part function may have a method `prepare`, from a list of tables to whatever it is called with instead: an actor that is called
twice at once prepares one part while it computes another. It computes one at a time, and only that is counted as an attempt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from raypipe.errors import DataError, RaypipeError
from raypipe.part import Footer, Table, check_aligned, commit_part, count_rows, digest_of, figures_of
from raypipe.store import Folder

ATTEMPTS = 4  # times that a part is begun before it is blamed for the deaths of its processes
PartFunction = Callable[[Any], pa.Table]  # of a list of tables, or of what its `prepare` makes of them


@dataclass(frozen=True)
class Envelope:
    part: str
    tables: tuple[pa.Table, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)  # column digests of what the part is made from
    attempt: int = 1
    seconds: float = 0.0
    idle_s: float = 0.0  # that the function waited for this part
    figures: Mapping[str, float] = field(default_factory=dict)  # that it gave beside its rows
    error: tuple[str, str] | None = None  # class and text of a RaypipeError
    stopped: bool = False  # not begun, because the run is to stop
    in_vain: bool = False  # another driver was first
    footer: Footer | None = None  # of what was committed

    def seal(self) -> pa.Table:
        account = {**vars(self), "tables": (), "inputs": dict(self.inputs), "figures": dict(self.figures)}
        rows = {f"{n}": _as_one_row(table) for n, table in enumerate(self.tables)}
        return pa.table({"account": [json.dumps(account)], **rows})

    @staticmethod
    def open(sealed: pa.Table) -> Envelope:
        """`flatten`, not `values`: Ray hands out slices, and `values` ignores the slice."""
        account = json.loads(sealed["account"][0].as_py())
        rows = [sealed[f"{n}"].combine_chunks().flatten() for n in range(sealed.num_columns - 1)]
        return Envelope(**{**account, "tables": tuple(pa.Table.from_struct_array(row) for row in rows)})

    def failed(self, error: RaypipeError) -> Envelope:
        return Envelope(self.part, error=(type(error).__name__, str(error)))

    def check(self) -> Envelope:
        """Itself; raises the error that it carries, in its own class."""
        if self.error:
            kind, text = self.error
            raise next(known for known in _family(RaypipeError) if known.__name__ == kind)(text)
        return self


def read(part: str, inputs: Sequence[Table]) -> Envelope:
    try:
        tables = tuple(table.read(part) for table in inputs)
    except RaypipeError as error:
        return Envelope(part).failed(error)
    return Envelope(part, tables, {str(n): digest_of(table) for n, table in enumerate(tables)})


class Call:
    """Makes the part function once, then calls it once a part that is still missing in `out`.

    `enter(part, step)` is asked before a part is prepared and before it is computed: how often that was begun, this time
    included, or 0 when the run is to stop. An error of ours in making the function is each part's error.
    """

    def __init__(self, make: Callable[[], PartFunction], out: Folder, enter: Callable[[str, str], int]) -> None:
        self.out, self.enter = out, enter
        self.thread = ThreadPoolExecutor(1)  # of the function: libraries bind threads to the one that calls them
        self.refusal: RaypipeError | None = None
        self.free_since: float | None = None
        try:
            self.function = self.thread.submit(make).result()
        except RaypipeError as error:
            self.refusal = error

    def __call__(self, given: Envelope) -> Envelope:
        if given.error:
            return given
        try:
            return self._made(given)
        except RaypipeError as error:
            return given.failed(error)

    def _made(self, given: Envelope) -> Envelope:
        if self.refusal:
            raise self.refusal
        if not hasattr(self.function, "prepare"):
            return self.thread.submit(self._computed, given, list(given.tables)).result()
        # one that is prepared beside another's deaths is not to blame for them
        self._check_deaths(given.part, self.enter(given.part, "prepare"), 2 * ATTEMPTS)
        return self.thread.submit(self._computed, given, self.function.prepare(given.tables)).result()

    def _computed(self, given: Envelope, prepared: Any) -> Envelope:
        if (attempt := self.enter(given.part, "compute")) == 0:
            return Envelope(given.part, stopped=True)
        if self.out.has(given.part):
            return Envelope(given.part)
        self._check_deaths(given.part, attempt, ATTEMPTS)
        started = time.perf_counter()
        idle_s = started - (self.free_since or started)  # the first part's is the start's
        table = self.function(prepared)
        check_aligned(table, given.tables[0], given.part)
        self.free_since = time.perf_counter()
        seconds, figures = self.free_since - started, figures_of(table)
        return replace(given, tables=(table,), attempt=attempt, seconds=seconds, idle_s=idle_s, figures=figures)

    def _check_deaths(self, part: str, begun: int, most: int) -> None:
        if begun > most:
            raise DataError(
                f"{self.out.uri(part)}: its process died each of the {most} times it was begun (out of memory, a crash "
                "in a library, or machines taken away). Make the batches smaller or the machines larger; or find the row in "
                "the part of the same name in ingest, and leave it out of the lake"
            )


def write(made: Envelope, out: Folder) -> Envelope:
    """Commit. A part with an error is not written: the next run makes it again."""
    if made.error or not made.tables:
        return made
    (table,) = made.tables
    try:
        footer, ours = commit_part(
            out,
            made.part,
            table,
            counts=count_rows(table),
            seconds=made.seconds,
            idle_s=made.idle_s,
            attempt=made.attempt,
            figures=made.figures,
            inputs=made.inputs,
        )
    except RaypipeError as error:
        return made.failed(error)
    return Envelope(made.part, footer=footer, in_vain=not ours)


def _as_one_row(table: pa.Table) -> pa.Array:
    table = table.combine_chunks()
    columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
    fields = [pa.field(name, column.type) for name, column in zip(table.column_names, columns, strict=True)]
    struct = pa.StructArray.from_arrays(columns, fields=fields)
    return pa.LargeListArray.from_arrays(pa.array([0, len(table)], pa.int64()), struct)


def _family(kind: type[RaypipeError]) -> list[type[Any]]:
    return [kind, *(known for child in kind.__subclasses__() for known in _family(child))]

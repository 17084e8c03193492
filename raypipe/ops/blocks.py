"""Blocks of a lake's rows, and how one is read: all of it at once, then row by row what is not beyond doubt.

Three kinds: rows of JSON as they stand in a file, rows of a Parquet or Arrow file, and rows that no reader could get at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.ops.columnar import LOOKED_AT, certain_samples, json_table
from raypipe.ops.json_array import Element
from raypipe.ops.rows import Fields, Reject, Sample, parse_line, sample_of

RAW_BYTES = 1 << 16  # kept of a rejected row
BOM = b"\xef\xbb\xbf"
REJECTED = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("raw", pa.binary())])


class Block(Protocol):
    """`numbers` and `offsets` say where each row stands in its file: its line or row, from 1, and its first byte, as far as they are known."""

    def __len__(self) -> int: ...
    @property
    def uri(self) -> str: ...
    @property
    def numbers(self) -> pa.Int64Array: ...
    @property
    def offsets(self) -> pa.Int64Array: ...

    def names(self) -> Sequence[str]:
        """Of the fields of its first row that has some."""

    def table(self, fields: Fields) -> pa.Table | None:
        """None where its rows must be parsed one by one."""

    def parse(self, place: int, fields: Fields) -> Sample | Reject: ...

    def raw(self, place: int) -> bytes | None:
        """At most RAW_BYTES of a row."""


@dataclass(frozen=True)
class Lines:
    """Rows of JSON: row i is data[starts[i]:ends[i]], without space around it."""

    uri: str
    data: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    numbers: pa.Int64Array
    offsets: pa.Int64Array

    def __len__(self) -> int:
        return len(self.starts)

    def names(self) -> Sequence[str]:
        return next((list(row) for row in self._first if isinstance(row, dict)), [])

    def table(self, fields: Fields) -> pa.Table | None:
        """Each row begins with { and ends with }, and there are as many objects as rows: so each row is one object."""
        bytes_N = np.frombuffer(self.data, np.uint8)
        if (
            not len(self)
            or (bytes_N[self.starts] != ord("{")).any()
            or (bytes_N[self.ends - 1] != ord("}")).any()
            or not _is_utf8(self.data)
        ):
            return None
        table = json_table(self.data, self._first, fields)
        return table if table is not None and len(table) == len(self) else None

    def parse(self, place: int, fields: Fields) -> Sample | Reject:
        found = parse_line(self._line(place), fields)
        if found == Reject("too_deep"):  # for Python; Arrow goes to any depth in what it leaves out
            return next(_samples(self._only(place).table(fields), fields), found)
        return found

    def raw(self, place: int) -> bytes:
        return self._line(place)[:RAW_BYTES]

    def _line(self, place: int) -> bytes:
        return self.data[self.starts[place] : self.ends[place]]

    def _only(self, place: int) -> Lines:
        line, one = self._line(place), slice(place, place + 1)
        return Lines(self.uri, line, np.array([0]), np.array([len(line)]), self.numbers[one], self.offsets[one])

    @cached_property
    def _first(self) -> list[Any]:
        rows = []
        for place in range(min(LOOKED_AT, len(self))):
            try:
                rows.append(json.loads(self._line(place)))
            except (ValueError, RecursionError):
                continue
        return rows


def lines_of(data: bytes, uri: str, offset: int = 0, number: int | None = 1, end: int | None = None) -> Lines:
    """Text from a line's beginning on, which stands at `offset` of a file and is its line `number`; lines from `end` on, and blank ones, are left out."""
    breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    ends = breaks if data.endswith(b"\n") else np.append(breaks, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])
    ours = len(starts) if end is None else int(np.searchsorted(starts, end - offset))
    if offset == 0 and data.startswith(BOM):
        starts[0] = len(BOM)
    starts, ends = _without_space(data, starts[:ours], ends[:ours])
    (kept,) = np.nonzero(ends > starts)
    numbers = pa.nulls(len(kept), pa.int64()) if number is None else pa.array(number + kept, pa.int64())
    starts, ends = starts[kept], ends[kept]
    ours_only = data if end is None else data[: ends[-1] if len(ends) else 0]
    return Lines(uri, ours_only, starts, ends, numbers, pa.array(offset + starts, pa.int64()))


def _without_space(
    data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each row. A carriage return at its end is common, other space is not."""
    bytes_N, last = np.frombuffer(data, np.uint8), len(data) - 1
    starts, ends = starts.copy(), ends - ((ends > starts) & (bytes_N[np.maximum(ends - 1, 0)] == ord("\r")))
    spaced = (bytes_N[np.minimum(starts, last)] <= ord(" ")) | (bytes_N[np.maximum(ends - 1, 0)] <= ord(" "))
    for row in np.flatnonzero(spaced & (ends > starts)):
        line = data[starts[row] : ends[row]]
        starts[row] += len(line) - len(line.lstrip())
        ends[row] = starts[row] + len(line.strip())
    return starts, ends


def elements_of(elements: Sequence[Element], uri: str, number: int) -> Lines:
    """Elements of an array, `number` the first one's place in it, from 1."""
    lengths = np.array([len(element.data) for element in elements])
    ends = np.cumsum(lengths + 1) - 1
    offsets = pa.array([element.offset for element in elements], pa.int64())
    numbers = pa.array(np.arange(number, number + len(elements)), pa.int64())
    return Lines(uri, b"\n".join(element.data for element in elements), ends - lengths, ends, numbers, offsets)


@dataclass(frozen=True)
class Records:
    """Rows of a table, `numbers` from `first`."""

    uri: str
    rows: pa.Table
    first: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def numbers(self) -> pa.Int64Array:
        return pa.array(np.arange(self.first, self.first + len(self)), pa.int64())

    @property
    def offsets(self) -> pa.Int64Array:
        return pa.nulls(len(self), pa.int64())

    def names(self) -> Sequence[str]:
        return list(self.rows.column_names)

    def table(self, fields: Fields) -> pa.Table | None:
        return self.rows

    def parse(self, place: int, fields: Fields) -> Sample | Reject:
        return sample_of(self._row(place), fields)

    def raw(self, place: int) -> bytes:
        return json.dumps(self._row(place), ensure_ascii=False, default=str).encode(errors="replace")[:RAW_BYTES]

    def _row(self, place: int) -> dict[str, Any]:
        return dict(self.rows.slice(place, 1).to_pylist()[0])


@dataclass(frozen=True)
class Lost:
    """`count` rows, or one piece of a file, that nobody can read: where they are, why, and what is known of their bytes."""

    uri: str
    reason: str
    number: int | None = None  # of the first
    offset: int | None = None
    data: bytes | None = None
    count: int = 1

    def __len__(self) -> int:
        return self.count

    @property
    def numbers(self) -> pa.Int64Array:
        return pa.array([None if self.number is None else self.number + n for n in range(self.count)], pa.int64())

    @property
    def offsets(self) -> pa.Int64Array:
        return pa.array([self.offset] * self.count, pa.int64())

    def names(self) -> Sequence[str]:
        return []

    def table(self, fields: Fields) -> pa.Table | None:
        return None

    def parse(self, place: int, fields: Fields) -> Reject:
        return Reject(self.reason)

    def raw(self, place: int) -> bytes | None:
        return self.data and self.data[:RAW_BYTES]


@dataclass(frozen=True)
class Read:
    """What a block's rows are, in their order: samples and rejects, each with `row`, its place in the block, and the bytes each is worth."""

    samples: pa.Table
    rejects: pa.Table
    sizes: NDArray[np.int64]
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.sizes)

    def slice(self, first: int, last: int) -> Read:
        """Rows first to last, the last one not included. Of a whole block only."""
        samples, rejects = _between(self.samples, first, last), _between(self.rejects, first, last)
        return Read(samples, rejects, self.sizes[first:last], self.names)


def read_block(block: Block, fields: Fields) -> Read:
    table = block.table(fields)
    certain = [] if table is None else [certain_samples(table, fields)]
    doubtful = np.ones(len(block), bool)
    for made in certain:
        doubtful[made.column("row").to_numpy()] = False
    found = [(place, block.parse(place, fields)) for place in np.flatnonzero(doubtful).tolist()]
    parsed = [(place, sample) for place, sample in found if isinstance(sample, Sample)]
    samples = (
        pa.concat_tables([*certain, _as_table(parsed, fields)]).sort_by("row") if parsed or not certain else certain[0]
    )
    rejects = [(place, reject.reason, block.raw(place)) for place, reject in found if isinstance(reject, Reject)]
    columns = zip(*rejects, strict=True) if rejects else ([], [], [])
    rejected = pa.table(
        [pa.array(column, kind) for column, kind in zip(columns, REJECTED.types, strict=True)], schema=REJECTED
    )
    sizes = np.zeros(len(block), np.int64)
    for made, texts in ((samples, samples.column_names[2:]), (rejected, ["raw"])):
        for name in texts:
            sizes[made.column("row").to_numpy()] += pc.fill_null(pc.binary_length(made.column(name)), 0).to_numpy()
    return Read(_placed(samples, block), _placed(rejected, block), sizes, block.names())


def _as_table(parsed: Sequence[tuple[int, Sample]], fields: Fields) -> pa.Table:
    rows = [(place, found.sample_id, found.instruction, found.response, *found.carried) for place, found in parsed]
    schema = pa.schema(
        [
            ("row", pa.int64()),
            *((name, pa.string()) for name in ("sample_id", "instruction", "response", *fields.carry)),
        ]
    )
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def _samples(table: pa.Table | None, fields: Fields) -> Iterator[Sample]:
    if table is not None:
        for _, *texts in zip(*certain_samples(table, fields).to_pydict().values(), strict=True):
            yield Sample(texts[0], texts[1], texts[2], tuple(texts[3:]))


def _placed(made: pa.Table, block: Block) -> pa.Table:
    """With where each row stands in its file."""
    rows = made.column("row")
    uris = pa.repeat(pa.scalar(block.uri), len(made))
    where = {"source_uri": uris, "source_line": block.numbers.take(rows), "source_offset": block.offsets.take(rows)}
    return pa.table({**{name: made.column(name) for name in made.column_names}, **where})


def _is_utf8(data: bytes) -> bool:
    """By Arrow, which is 30 times as fast as to decode it."""
    edges = pa.py_buffer(np.array([0, len(data)], np.int32))
    try:
        pa.Array.from_buffers(pa.string(), 1, [None, edges, pa.py_buffer(data)]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _between(table: pa.Table, first: int, last: int) -> pa.Table:
    rows = table.column("row").to_numpy()
    a, b = np.searchsorted(rows, [first, last])
    return table.slice(a, b - a)

"""A part on its way through Ray Data: one row.

Whatever in Ray Data splits, merges or drops works on rows of a block, so a one-row envelope passes all of it, also when the
part has no rows, and batch_size=1 means "one part". Sealing and opening are zero-copy but for columns of several chunks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raypipe.errors import RaypipeError


@dataclass(frozen=True)
class Envelope:
    part: str
    tables: tuple[pa.Table, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)  # column digests of what the part is made from
    seconds: float = 0.0
    error: tuple[str, str] | None = None  # class and text of a RaypipeError

    def seal(self) -> pa.Table:
        account = json.dumps(
            {"part": self.part, "inputs": dict(self.inputs), "seconds": self.seconds, "error": self.error}
        )
        return pa.table({"account": [account], **{f"{n}": _as_one_row(table) for n, table in enumerate(self.tables)}})

    @staticmethod
    def failed(part: str, error: RaypipeError) -> Envelope:
        return Envelope(part, error=(type(error).__name__, str(error)))

    @staticmethod
    def open(sealed: pa.Table) -> Envelope:
        """`flatten`, not `values`: Ray hands out slices, and `values` ignores the slice."""
        account = json.loads(sealed["account"][0].as_py())
        rows = [sealed[f"{n}"].combine_chunks().flatten() for n in range(sealed.num_columns - 1)]
        return Envelope(tables=tuple(pa.Table.from_struct_array(row) for row in rows), **account)

    def check(self) -> Envelope:
        """Itself; raises the error that it carries, in its own class."""
        if self.error:
            kind, text = self.error
            raise next(known for known in _family(RaypipeError) if known.__name__ == kind)(text)
        return self


def _as_one_row(table: pa.Table) -> pa.Array:
    table = table.combine_chunks()
    columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
    fields = [pa.field(name, column.type) for name, column in zip(table.column_names, columns, strict=True)]
    struct = pa.StructArray.from_arrays(columns, fields=fields)
    return pa.LargeListArray.from_arrays(pa.array([0, len(table)], pa.int64()), struct)


def _family(kind: type[RaypipeError]) -> list[type[Any]]:
    return [kind, *(known for child in kind.__subclasses__() for known in _family(child))]

"""A part: one Parquet object of bounded size, the unit of work, of commit and of resume.

Its footer holds its account: counts by status, seconds of work, of what it was made, and a digest of every column. So nothing
is forgotten by a kill, a manifest is footers added up, and whoever reads a column knows whether it is what was written. A
seal over the account and the part's own name tells a changed account, and the bytes of another part.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.errors import DataError
from raypipe.ops.digests import column_digests, columns_digest
from raypipe.store import Folder

FOOTER, SEAL, PART, FIGURES = b"raypipe", b"raypipe.seal", b"part", b"figures"
UNREADABLE = (pa.ArrowException, OSError, KeyError, TypeError, ValueError)  # what changed bytes lead to
THREADS = 16
UNIQUE = {"sample_id", "instruction", "response"}  # of which hardly a value is there twice
RISING = {"source_line", "source_offset"}

Footer = Mapping[str, Any]  # name, bytes, rows, counts, seconds, idle_s, attempt, figures, made, inputs, columns


@dataclass(frozen=True)
class Table:
    """The parts of a finished stage, in order. Row i of a part is the same sample in every row-wise stage."""

    folder: Folder
    parts: tuple[str, ...]
    columns: tuple[str, ...] | None = None  # read these only
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def only(self, *columns: str) -> Table:
        return replace(self, columns=columns)

    def bare(self) -> Table:
        """Where to read and what, without the part list and manifest: what a task needs of thousands of parts."""
        return replace(self, parts=(), manifest={})

    def read(self, part: str) -> pa.Table:
        """The columns asked for; the part's name is put beside its account in the schema's metadata.

        One request for the whole part. DataError, with what to do, where a column is not what was written.
        """
        return read_part(self.folder, part, self.columns)


def read_part(folder: Folder, part: str, columns: Sequence[str] | None = None) -> pa.Table:
    data = folder.read(part)
    try:
        table = pq.read_table(
            pa.BufferReader(data), columns=None if columns is None else list(columns), use_threads=False
        )
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata  # the table's is a second copy
        wanted = _account(folder, part, metadata)["columns"]
    except UNREADABLE as error:
        raise damaged(folder, part, f"it cannot be read ({_first_line(error)})") from error
    _check_digests(folder, part, table, wanted, list(wanted) if columns is None else columns)
    return table.replace_schema_metadata({FOOTER: metadata[FOOTER], PART: part})


def read_columns(folder: Folder, part: str, columns: Sequence[str]) -> pa.Table:
    """Of a part with many columns these alone, by a request each; the others stay where they are."""
    try:
        with folder.open(part) as file:
            parquet = pq.ParquetFile(file)
            table, wanted = (
                parquet.read(list(columns), use_threads=False),
                _account(folder, part, parquet.metadata.metadata),
            )
    except UNREADABLE as error:
        raise damaged(folder, part, f"it cannot be read ({_first_line(error)})") from error
    _check_digests(folder, part, table, wanted["columns"], columns)
    return table


def _check_digests(
    folder: Folder, part: str, table: pa.Table, wanted: Mapping[str, str], columns: Sequence[str]
) -> None:
    found = column_digests(table)
    for name in columns:
        if found.get(name) != wanted.get(name):
            raise damaged(folder, part, f"column {name!r} has digest {found.get(name)}, wanted {wanted.get(name)}")


def damaged(folder: Folder, part: str, what: str) -> DataError:
    stage = re.search(r"/([a-z]+)-[0-9a-f]{12}(/|$)", folder.path)
    return DataError(
        f"{folder.uri(part)}: {what}: it is not what was committed. Make damaged parts again by: "
        f"raypipe run CONFIG --repair {stage[1] if stage else 'STAGE'}"
    )


def commit_part(
    folder: Folder,
    part: str,
    table: pa.Table,
    *,
    counts: Mapping[str, int],
    seconds: float = 0.0,
    idle_s: float = 0.0,
    attempt: int = 1,
    figures: Mapping[str, float] | None = None,
    inputs: Mapping[str, str] | None = None,
    row_group_size: int = 4096,
) -> tuple[Footer, bool]:
    """Put a part; returns the footer of what is under its name now, and whether that is ours: another writer may be first."""
    account = {
        "rows": len(table),
        "counts": dict(counts),
        "seconds": round(seconds, 3),
        "idle_s": round(idle_s, 3),  # of the actor, before it
        "attempt": attempt,  # how often its computation was begun
        "figures": dict(figures or {}),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "inputs": dict(inputs or {}),
        "columns": column_digests(table),
    }
    sink, told = pa.BufferOutputStream(), json.dumps(account).encode()
    described = table.replace_schema_metadata({FOOTER: told, SEAL: _seal(folder, part, told)})
    pq.write_table(
        described,
        sink,
        compression="zstd",
        row_group_size=row_group_size,
        write_page_checksum=True,  # for who reads row groups alone, and no whole column to compare with its digest
        **_encodings(table.schema),
    )
    data = sink.getvalue()
    if not folder.put(part, data.to_pybytes()):
        return read_footer(folder, part), False
    return {"name": part, "bytes": data.size, **account}, True


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """A dictionary of floats holds nearly all of them: embeddings took 8.5 CPU seconds a million rows to read, without one 2.1. So does one of texts."""
    floats, others = list[str](), list[str]()
    for column in schema:
        path, kind = column.name, column.type
        while hasattr(kind, "value_type"):
            path, kind = f"{path}.list.element", kind.value_type
        (floats if pa.types.is_floating(kind) else others).append(path)
    return {
        "use_dictionary": [path for path in others if path not in UNIQUE | RISING],
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT")
        | dict.fromkeys(RISING & {*others}, "DELTA_BINARY_PACKED"),
    }


def read_footer(folder: Folder, part: str) -> Footer:
    with folder.open(part) as file:
        try:
            account = _account(folder, part, pq.read_metadata(file).metadata)
        except UNREADABLE as error:
            raise damaged(folder, part, f"its footer cannot be read ({_first_line(error)})") from error
        size = file.seek(0, 2)
    return {"name": part, "bytes": size, **account}


def _seal(folder: Folder, part: str, account: bytes) -> bytes:
    return hashlib.sha256(f"{folder.name}/{part}\n".encode() + account).hexdigest()[:16].encode()


def _account(folder: Folder, part: str, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """One of UNREADABLE unless it is whole and this part's own."""
    if metadata[SEAL] != _seal(folder, part, metadata[FOOTER]):
        raise ValueError("its account was changed, or is another part's")
    return dict(json.loads(metadata[FOOTER]))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_footers(folder: Folder, parts: Sequence[str]) -> dict[str, Footer]:
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(parts, threads.map(lambda part: read_footer(folder, part), parts), strict=True))


def add_up(footers: Iterable[Footer]) -> dict[str, Any]:
    sums, counts, figures = Counter[str](), Counter[str](), Counter[str]()
    for footer in footers:
        sums.update({name: footer[name] for name in ("rows", "bytes", "seconds", "idle_s")})
        counts.update(footer["counts"])
        figures.update(footer["figures"])
    return {
        "rows": sums["rows"],
        "bytes": sums["bytes"],
        "actor_s": round(sums["seconds"], 3),
        "idle_share": round(
            sums["idle_s"] / (sums["idle_s"] + sums["seconds"] or 1), 4
        ),  # of actors, between two parts
        "counts": dict(sorted(counts.items())),
        "figures": dict(sorted(figures.items())),
    }


def with_figures(table: pa.Table, **figures: float) -> pa.Table:
    """What a part function has to say beside its rows: goes into the part's footer, and added up into the manifest."""
    return table.replace_schema_metadata({FIGURES: json.dumps(figures)})


def figures_of(table: pa.Table) -> dict[str, float]:
    return dict(json.loads((table.schema.metadata or {}).get(FIGURES, b"{}")))


def digest_of(table: pa.Table) -> str:
    """What the part that a table was read from says of its columns, read or not."""
    return columns_digest(json.loads(table.schema.metadata[FOOTER])["columns"])


def count_rows(table: pa.Table) -> dict[str, int]:
    """Rows by status or reason; where a table has neither, by whether the column after sample_id is there."""
    for name in ("status", "reason"):
        if name in table.column_names:
            return {str(item["values"]): item["counts"] for item in pc.value_counts(table[name]).to_pylist()}
    nulls = table.column(min(1, table.num_columns - 1)).null_count
    return {name: count for name, count in (("ok", len(table) - nulls), ("null", nulls)) if count}


def check_aligned(made: pa.Table, given: pa.Table, part: str) -> None:
    """DataError unless a row-wise stage answered row for row; tables without sample_id are not row-wise."""
    if not {"sample_id"} <= set(made.column_names) & set(given.column_names):
        return
    if not made.column("sample_id").equals(given.column("sample_id")):
        raise DataError(
            f"{part}: got {len(made)} rows with other sample_ids, wanted the {len(given)} rows of ingest in order. "
            "Remove the folder and run again"
        )

"""Ingest: lines of a lake to samples in parts of bounded size, and a reject with its reason for every line that is none.

One task a slice, which streams it: memory is that of one part. The rejects of a part are put before the part, so whatever
has its part has them too. The last part of a slice ends in `-end`, so one listing tells which slices are done.

Columns: sample_id, source_uri, source_line (from 1), instruction, response.
"""

from __future__ import annotations

import gzip
import json
import logging
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import pyarrow as pa

from raypipe.config import Columns, Config
from raypipe.errors import ConfigError, DataError, StorageError
from raypipe.lake import Lake, Slice
from raypipe.ops.text import Reject, Sample, parse_line
from raypipe.parts import map_items
from raypipe.stage import Inputs, Result, Table, add_up, encode_part, part_footers
from raypipe.store import Folder

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source_uri", pa.string()),
        ("source_line", pa.int64()),
        ("instruction", pa.string()),
        ("response", pa.string()),
    ]
)
REJECTED_SCHEMA = pa.schema(
    [("source_uri", pa.string()), ("source_line", pa.int64()), ("reason", pa.string()), ("raw", pa.binary())]
)
log = logging.getLogger("raypipe")
RAW_BYTES = 1 << 16  # kept of a rejected line


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    lake = inputs.lake
    finished = set(_by_slice(lake, out.list()))
    todo = [place for place in range(len(lake.slices)) if place not in finished]
    log.info("%s: %d of %d files to make", out.name, len(todo), len(lake.slices))
    work = [(place, lake.slices[place], lake.chain[place]) for place in todo]
    map_items(
        partial(ingest_slice, out=out, columns=config.ingest.columns, part_bytes=config.ingest.part_bytes),
        work,
        label=out.name,
    )
    by_slice = _by_slice(lake, out.list())
    parts = [part for place in range(len(lake.slices)) for part in by_slice[place]]
    _check_budget(config, add_up(part_footers(out, parts))["counts"], out)
    return Result(
        parts,
        {"rejected_folder": "_rejected", "slices": len(lake.slices), "bytes_read": sum(s.size for s in lake.slices)},
    )


def ingest_slice(work: tuple[int, Slice, str], *, out: Folder, columns: Columns, part_bytes: int) -> None:
    place, piece, chain = work
    instruction, response = ((c,) if isinstance(c, str) else c for c in (columns.instruction, columns.response))
    buffer, number = _Buffer(piece.uri), 0
    for line_number, line in _lines(piece):
        if buffer.num_bytes >= part_bytes:
            buffer.commit(out, f"part-{place:07d}-{number:04d}-{chain}.parquet")
            buffer, number = _Buffer(piece.uri), number + 1
        buffer.add(line_number, line, parse_line(line, instruction, response))
    buffer.commit(out, f"part-{place:07d}-{number:04d}-{chain}-end.parquet")


@dataclass
class _Buffer:
    """Rows of the part that is being filled."""

    uri: str
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    rejects: list[tuple[Any, ...]] = field(default_factory=list)
    num_bytes: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, line_number: int, line: bytes, found: Sample | Reject) -> None:
        if isinstance(found, Reject):
            self.rejects.append((self.uri, line_number, found.reason, line[:RAW_BYTES]))
            self.num_bytes += min(len(line), RAW_BYTES)
        else:
            self.rows.append((found.sample_id, self.uri, line_number, found.instruction, found.response))
            self.num_bytes += len(found.instruction) + len(found.response)

    def commit(self, out: Folder, part: str) -> None:
        seconds = time.perf_counter() - self.started
        rejected = Counter(reject[2] for reject in self.rejects)
        if rejected:
            table = _table(self.rejects, REJECTED_SCHEMA)
            (out / "_rejected").put(part, encode_part(table, counts=rejected, seconds=0, inputs={}))
        counts = rejected + Counter(ok=len(self.rows))
        out.put(part, encode_part(_table(self.rows, SCHEMA), counts=counts, seconds=seconds, inputs={}))


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def _lines(piece: Slice) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end); blank lines are left out. A file that breaks off is DataError, with its line."""
    number = 0
    try:
        with _open(piece.uri) as file:
            for number, line in enumerate(file, 1):
                if stripped := line.strip():
                    yield number, stripped
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{piece.uri}: not whole gzip after line {number} ({error}). Mend the file, or leave it out of ingest.paths"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{piece.uri}: cannot be read: {error.strerror}. Give this user the right to it, or leave it out of ingest.paths"
        ) from error


def _open(uri: str) -> IO[bytes]:
    return gzip.open(uri, "rb") if uri.endswith(".gz") else open(uri, "rb")  # type: ignore[return-value]


def _by_slice(lake: Lake, names: Sequence[str]) -> dict[int, list[str]]:
    """Parts of the slices whose last part is there, in order. Parts of another lake bear another chain."""
    found: dict[int, list[str]] = {}
    for name in sorted(name for name in names if name.startswith("part-")):
        place, chain = int(name[5:12]), name[18 : 18 + 12]
        if place < len(lake.chain) and lake.chain[place] == chain:
            found.setdefault(place, []).append(name)
    return {place: parts for place, parts in found.items() if parts[-1].endswith("-end.parquet")}


def _check_budget(config: Config, counts: dict[str, int], out: Folder) -> None:
    samples, read = counts.get("ok", 0), sum(counts.values())
    reasons = {name: count for name, count in sorted(counts.items(), key=lambda item: -item[1]) if name != "ok"}
    said = ", ".join(f"{count:,} {name}" for name, count in reasons.items())
    if not samples and (commonest := next(iter(reasons), "")).endswith("_column"):
        wanted = commonest.removeprefix("no_").removesuffix("_column")
        raise ConfigError(
            f"ingest.columns.{wanted}: no row has {getattr(config.ingest.columns, wanted)!r} ({read:,} rows read: {said}). "
            f"Set it to a field of the lake's rows; {_example(out, commonest)}"
        )
    if not samples:
        raise DataError(f"ingest: {read:,} rows read, none is a sample: {said}. See {out.path}/_rejected")
    if (read - samples) / read > config.ingest.max_rejected_fraction:
        raise DataError(
            f"ingest: {read - samples:,} of {read:,} rows rejected ({(read - samples) / read:.2%}): {said}; allowed "
            f"{config.ingest.max_rejected_fraction:.2%}. Look at {out.path}/_rejected, then mend the lake or raise "
            "ingest.max_rejected_fraction"
        )


def _example(out: Folder, reason: str) -> str:
    """What fields the first row rejected for this reason has."""
    folder = out / "_rejected"
    rejects = (row for part in folder.list() for row in Table(folder, ()).read(part).to_pylist())
    row = next(row for row in rejects if row["reason"] == reason)
    if len(row["raw"]) == RAW_BYTES:
        return f"see {folder.path}"
    return f"line {row['source_line']} of {row['source_uri']} has {', '.join(map(repr, json.loads(row['raw'])))}"

"""Ingest: lines of a lake to samples in parts of bounded size, and a reject with its reason for every line that is none.

One task a slice, which streams it: memory is that of one part. The rejects of a part are put before the part, so whatever
has its part has them too. The last part of a slice ends in `-end`, so one listing tells which slices are done.

Columns: sample_id, source_uri, source_line (from 1), instruction, response, then those of ingest.carry, as text.
"""

from __future__ import annotations

import gzip
import json
import logging
import random
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from raypipe.config import Config, Ingest
from raypipe.errors import ConfigError, DataError
from raypipe.items import map_items
from raypipe.lake import Lake, Slice
from raypipe.ops.text import Reject, Sample, parse_line
from raypipe.part import Footer, add_up, commit_part, read_footer, read_part
from raypipe.stage import Inputs, Result, all_footers
from raypipe.store import Folder, storage_of

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
    lake, rule = inputs.lake, config.ingest
    before = _by_slice(lake, out.list())
    places = range(len(lake.slices))
    todo = [Work(place, lake.slices[place], lake.chain[place]) for place in places if not _is_whole(before.get(place))]
    log.info("%s: %d of %d files to make", out.name, len(todo), len(lake.slices))
    random.shuffle(todo)  # a second driver seldom takes the same file
    endpoint = config.storage.endpoint
    task = partial(ingest_slice, out=out, rule=rule, endpoint=endpoint)
    made = map_items(task, todo, label=out.name, name=lambda work: work.slice.uri)
    known = {footer["name"]: footer for footers in made for footer in footers}
    there = _by_slice(lake, out.list()) if todo else before
    parts = {part: known.get(part) for place in places for part in there[place]}
    footers = all_footers(out, parts, lake)
    _check_budget(config, add_up(footers.values())["counts"], out)
    bytes_read = sum(piece.size for piece in lake.slices)
    return Result(footers, {"rejected_folder": "_rejected", "slices": len(lake.slices), "bytes_read": bytes_read})


@dataclass(frozen=True)
class Work:
    place: int  # in the lake
    slice: Slice
    chain: str

    def part_name(self, number: int, end: str = "") -> str:
        return f"part-{self.place:07d}-{number:04d}-{self.chain}{end}.parquet"


def ingest_slice(work: Work, *, out: Folder, rule: Ingest, endpoint: str | None = None) -> list[Footer]:
    """Footers of the parts made. Lines of parts that are there already are passed over unparsed."""
    columns = rule.columns
    instruction, response = ((c,) if isinstance(c, str) else c for c in (columns.instruction, columns.response))
    there = _first_ones(sorted(name for name in out.list(f"part-{work.place:07d}-") if work.chain in name))
    if _is_whole(there):
        return []
    read = int(read_footer(out, there[-1])["inputs"]["last_line"]) if there else 0
    buffer, number, footers = _Buffer(work.slice.uri, rule.carry, last_line=read), len(there), []
    for line_number, line in _lines(work.slice, endpoint):
        if line_number <= read:
            continue
        if buffer.num_bytes >= rule.part_bytes:
            footers.append(buffer.commit(out, work.part_name(number)))
            buffer, number = _Buffer(work.slice.uri, rule.carry), number + 1
        buffer.add(line_number, line, parse_line(line, instruction, response, rule.carry))
    return [*footers, buffer.commit(out, work.part_name(number, "-end"))]


@dataclass
class _Buffer:
    """Rows of the part that is being filled."""

    uri: str
    carry: Sequence[str]
    last_line: int = 0
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    rejects: list[tuple[Any, ...]] = field(default_factory=list)
    num_bytes: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, line_number: int, line: bytes, found: Sample | Reject) -> None:
        self.last_line = line_number
        if isinstance(found, Reject):
            self.rejects.append((self.uri, line_number, found.reason, line[:RAW_BYTES]))
            self.num_bytes += min(len(line), RAW_BYTES)
        else:
            self.rows.append(
                (found.sample_id, self.uri, line_number, found.instruction, found.response, *found.carried)
            )
            self.num_bytes += len(found.instruction) + len(found.response) + sum(map(len, filter(None, found.carried)))

    def commit(self, out: Folder, part: str) -> Footer:
        seconds = time.perf_counter() - self.started
        rejected = Counter(reject[2] for reject in self.rejects)
        if rejected:
            commit_part(out / "_rejected", part, _table(self.rejects, REJECTED_SCHEMA), counts=rejected)
        counts, inputs = rejected + Counter(ok=len(self.rows)), {"last_line": str(self.last_line)}
        schema = pa.schema([*SCHEMA, *((name, pa.string()) for name in self.carry)])
        return commit_part(out, part, _table(self.rows, schema), counts=counts, seconds=seconds, inputs=inputs)[0]


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def _lines(piece: Slice, endpoint: str | None) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end); blank lines are left out. A file that breaks off is DataError, with its line."""
    number = 0
    try:
        with storage_of(piece.uri, endpoint).stream(piece.uri, piece.size, piece.version) as raw:
            file = gzip.GzipFile(fileobj=raw) if piece.uri.endswith(".gz") else raw
            for number, line in enumerate(file, 1):
                if stripped := line.strip():
                    yield number, stripped
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{piece.uri}: not whole gzip after line {number} ({error}). Mend the file, or leave it out of ingest.paths"
        ) from error


def _by_slice(lake: Lake, names: Sequence[str]) -> dict[int, list[str]]:
    """Parts of each slice, in order. Parts of another lake bear another chain."""
    found: dict[int, list[str]] = {}
    for name in sorted(name for name in names if name.startswith("part-")):
        place, chain = int(name[5:12]), name[18 : 18 + 12]
        if place < len(lake.chain) and lake.chain[place] == chain:
            found.setdefault(place, []).append(name)
    return {place: _first_ones(parts) for place, parts in found.items()}


def _first_ones(parts: Sequence[str]) -> list[str]:
    """Up to the first gap, which only a repair leaves: parts of a slice are made in order."""
    return [part for number, part in enumerate(parts) if int(part[13:17]) == number]


def _is_whole(parts: Sequence[str] | None) -> bool:
    return parts is not None and len(parts) > 0 and parts[-1].endswith("-end.parquet")


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
    rejects = (row for part in folder.list() for row in read_part(folder, part).to_pylist())
    row = next(row for row in rejects if row["reason"] == reason)
    if len(row["raw"]) == RAW_BYTES:
        return f"see {folder.path}"
    return f"line {row['source_line']} of {row['source_uri']} has {', '.join(map(repr, json.loads(row['raw'])))}"

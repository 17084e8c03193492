"""Ingest: rows of a lake to samples in parts of bounded size, and a reject with its reason for every row that is none.

One task a slice, which streams it: memory is that of one part and a few blocks. The rejects of a part are put before the part, so
whatever has its part has them too. The last part of a slice ends in `-end`, so one listing tells which slices are done.

Columns: sample_id, source_uri, source_line (row of the file, from 1; null after a cut), source_offset (of its first byte, uncompressed; null where
a file has no lines), instruction, response, then those of ingest.carry, as text.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.config import Config
from raypipe.errors import ConfigError, DataError
from raypipe.items import map_items
from raypipe.lake import Lake, Slice, place_and_chain
from raypipe.ops.blocks import Block, Read, read_block
from raypipe.ops.rows import Fields
from raypipe.part import Footer, commit_part, read_footer
from raypipe.slices import read_slice
from raypipe.sources import Ingest
from raypipe.stage import Inputs, Result, all_footers
from raypipe.store import Folder

SHOWN = 20  # files, in a manifest
BROKEN = {
    "broken_gzip",
    "broken_zstd",
    "expands_too_far",
    "broken_parquet",
    "broken_page",
    "broken_arrow",
    "unclosed_array",
}
PLACE = ("source_uri", "source_line", "source_offset")
log = logging.getLogger("raypipe")


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    lake, rule = inputs.lake, config.ingest
    groups = {group[-1]: group for group in lake.groups()}
    before = _first_parts(lake, out)
    todo = [
        Work(place, lake.slices[group.start : group.stop], lake.chain[place])
        for place, group in groups.items()
        if not _is_whole(before.get(place))
    ]
    log.info("%s: %d of %d slices to make", out.name, sum(len(work.slices) for work in todo), len(lake.slices))
    random.shuffle(todo)  # a second driver seldom takes the same file
    task = partial(ingest_slices, out=out, rule=rule, endpoint=config.storage.endpoint)
    made = map_items(task, todo, label=out.name, name=lambda work: work.slices[0].uri)
    known = {footer["name"]: footer for footers in made for footer in footers}
    there = _first_parts(lake, out) if todo else before
    parts = {part: known.get(part) for place in groups for part in there[place]}
    footers = all_footers(out, parts, lake)
    files = _files(lake, groups, there, footers)
    _check_budget(config, files, out)
    figures = {"rejected_folder": "_rejected", "slices": len(lake.slices), "bytes_read": lake.num_bytes}
    return Result(footers, {**figures, **_report(files)})


@dataclass(frozen=True)
class Work:
    """Slices whose rows go into the same parts, which bear the place of the last one in the lake."""

    place: int
    slices: Sequence[Slice]
    chain: str

    def part_name(self, number: int, end: str = "") -> str:
        return f"part-{self.place:07d}-{number:04d}-{self.chain}{end}.parquet"


def fields_of(rule: Ingest) -> Fields:
    def paths(names: str | Sequence[str]) -> tuple[str, ...]:
        return (names,) if isinstance(names, str) else tuple(names)

    columns = rule.columns
    return Fields(paths(columns.instruction), paths(columns.response), columns.messages, rule.multi_turn, rule.carry)


def ingest_slices(work: Work, *, out: Folder, rule: Ingest, endpoint: str | None = None) -> list[Footer]:
    """Footers of the parts made. Rows of parts that are there already are passed over unparsed."""
    there = _first_ones(sorted(name for name in out.list(f"part-{work.place:07d}-") if work.chain in name))
    if _is_whole(there):
        return []
    fields = fields_of(rule)
    blocks = (block for piece in work.slices for block in read_slice(piece, fields, endpoint))
    done = int(read_footer(out, there[-1])["inputs"]["rows_read"]) if there else 0
    buffer, number, footers = _Buffer(fields, rule.part_bytes, done), len(there), []
    for read, first in _after(done, blocks, fields):
        while first < len(read):
            if buffer.num_bytes >= rule.part_bytes:
                footers.append(buffer.commit(out, work.part_name(number)))
                buffer, number = _Buffer(fields, rule.part_bytes, buffer.rows_read), number + 1
            first = buffer.add(read, first)
    return [*footers, buffer.commit(out, work.part_name(number, "-end"))]


def _after(done: int, blocks: Iterator[Block], fields: Fields) -> Iterator[tuple[Read, int]]:
    """Blocks that have more than the first `done` rows of all, and of each how many of its rows are among them."""
    for block in blocks:
        if len(block) > done:
            yield read_block(block, fields), done
        done = max(0, done - len(block))


@dataclass
class _Buffer:
    """Rows of the part that is being filled."""

    fields: Fields
    part_bytes: int
    rows_read: int  # of its slices, up to here
    samples: list[pa.Table] = field(default_factory=list)
    rejects: list[pa.Table] = field(default_factory=list)
    num_bytes: int = 0
    names: Sequence[str] = ()  # of the fields of its first rows
    started: float = field(default_factory=time.perf_counter)

    def add(self, read: Read, first: int) -> int:
        """Takes rows from `first` on until it is full; gives the first one that it did not take."""
        sizes = np.cumsum(read.sizes[first:])
        last = min(len(read), first + 1 + int(np.searchsorted(sizes, self.part_bytes - self.num_bytes)))
        taken = read.slice(first, last)
        self.samples.append(taken.samples)
        self.rejects.append(taken.rejects)
        self.names = self.names or read.names
        self.num_bytes += int(sizes[last - first - 1])
        self.rows_read += last - first
        return last

    def commit(self, out: Folder, part: str) -> Footer:
        seconds = time.perf_counter() - self.started
        text = [(name, pa.string()) for name in ("instruction", "response", *self.fields.carry)]
        place = list(zip(PLACE, (pa.string(), pa.int64(), pa.int64()), strict=True))
        samples = _together(self.samples, [("sample_id", pa.string()), *place, *text])
        rejects = _together(self.rejects, [*place, ("reason", pa.string()), ("raw", pa.binary())])
        rejected = Counter(rejects.column("reason").to_pylist())
        if rejected:
            commit_part(out / "_rejected", part, rejects, counts=rejected)
        counts = rejected + Counter(ok=len(samples))
        inputs = {"rows_read": str(self.rows_read), "fields": json.dumps(self.names)}
        return commit_part(out, part, samples, counts=counts, seconds=seconds, inputs=inputs)[0]


def _together(tables: Sequence[pa.Table], columns: Sequence[tuple[str, pa.DataType]]) -> pa.Table:
    schema = pa.schema(columns)
    return pa.concat_tables([schema.empty_table(), *(table.select(schema.names) for table in tables)]).combine_chunks()


def parts_of(lake: Lake, names: Sequence[str]) -> dict[int, list[str]]:
    """Of names in a folder the parts of this lake, in order, by the place that they bear. Parts of another lake bear another chain."""
    ends = {group[-1] for group in lake.groups()}
    found: dict[int, list[str]] = {}
    for name in sorted(name for name in names if name.startswith("part-")):
        place, chain = place_and_chain(name)
        if place in ends and lake.chain[place] == chain:
            found.setdefault(place, []).append(name)
    return found


def _first_parts(lake: Lake, out: Folder) -> dict[int, list[str]]:
    return {place: _first_ones(parts) for place, parts in parts_of(lake, out.list()).items()}


def _first_ones(parts: Sequence[str]) -> list[str]:
    """Up to the first gap, which only a repair leaves: parts of a group are made in order."""
    return [part for number, part in enumerate(parts) if int(part[13:17]) == number]


def _is_whole(parts: Sequence[str] | None) -> bool:
    return parts is not None and len(parts) > 0 and parts[-1].endswith("-end.parquet")


@dataclass(frozen=True)
class _File:
    """What was in a file, or in a group of small ones, named by the first."""

    uri: str
    fields: Sequence[str]  # of its first row
    counts: Mapping[str, int]

    def mostly(self) -> str:
        return max(self.counts, key=self.counts.__getitem__, default="")


def _files(
    lake: Lake, groups: Mapping[int, range], there: Mapping[int, Sequence[str]], footers: Mapping[str, Footer]
) -> list[_File]:
    files: dict[str, _File] = {}
    for place, group in groups.items():
        uri, parts = lake.slices[group.start].uri, [footers[part] for part in there[place]]
        counts = Counter[str](files[uri].counts if uri in files else {})
        for part in parts:
            counts.update(part["counts"])
        fields = files[uri].fields if uri in files else json.loads(parts[0]["inputs"]["fields"])
        files[uri] = _File(uri, fields, counts)
    return list(files.values())


def _report(files: Sequence[_File]) -> dict[str, Any]:
    """Kinds of rows, and files that were not read to their end; of both the first ones by name. What needs a person is logged."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for file in files:
        if file.fields:
            kinds.setdefault(tuple(sorted(file.fields)), []).append(file.uri)
    broken = [
        (file.uri, ", ".join(sorted(file.counts.keys() & BROKEN))) for file in files if file.counts.keys() & BROKEN
    ]
    if broken:
        log.warning(
            "ingest: %d of %d files were not read to their end, the first is %s: %s",
            len(broken),
            len(files),
            *broken[0],
        )
    if lacking := [file for file in files if file.mostly().endswith("_column")]:
        said = (len(lacking), len(files), lacking[0].mostly(), _fields_of(lacking[0]))
        log.warning("ingest: %d of %d files have other fields than ingest.columns names (%s); %s", *said)
    named = [{"fields": list(fields), "files": len(uris), "first": uris[0]} for fields, uris in kinds.items()]
    return {"kinds": named[:SHOWN], "broken_files": [list(one) for one in broken[:SHOWN]]}


def _fields_of(file: _File) -> str:
    return f"{file.uri} has {', '.join(map(repr, file.fields)) or 'no fields'}"


def _check_budget(config: Config, files: Sequence[_File], out: Folder) -> None:
    counts = Counter[str]()
    for file in files:
        counts.update(file.counts)
    read = counts.total()
    samples = counts.pop("ok", 0)
    said = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    columns = config.ingest.columns
    if not samples and (commonest := max(counts, key=counts.__getitem__, default="")).endswith("_column"):
        wanted = commonest.removeprefix("no_").removesuffix("_column")
        talks = [name for name in ("messages", "conversations") if name in files[0].fields and columns.messages is None]
        remedy = f"Set ingest.columns={{messages: {talks[0]}}}" if talks else "Set it to a field of the lake's rows"
        raise ConfigError(
            f"ingest.columns.{wanted}: no row has {getattr(columns, wanted)!r} ({read:,} rows read: {said}). {remedy}; {_fields_of(files[0])}"
        )
    if not samples:
        raise DataError(f"ingest: {read:,} rows read, none is a sample: {said}. See {out.path}/_rejected")
    if (read - samples) / read > config.ingest.max_rejected_fraction:
        worst = max(files, key=lambda file: sum(file.counts.values()) - file.counts.get("ok", 0))
        raise DataError(
            f"ingest: {read - samples:,} of {read:,} rows rejected ({(read - samples) / read:.2%}): {said}; allowed "
            f"{config.ingest.max_rejected_fraction:.2%}; most of them in {worst.uri}. Look at {out.path}/_rejected, mend them (raypipe replay CONFIG FILE) or the lake, or raise "
            "ingest.max_rejected_fraction"
        )

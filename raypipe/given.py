"""Rows that a user brings, keyed by sample_id, put beside the samples they belong to.

They come in any order and any number of Parquet files, so they are exchanged through storage: a task for each row group finds its rows'
places among the samples, and puts them aside by bucket of neighbouring parts (`_given-*/`); then a task for each bucket puts its parts. Of
two rows of one id the first counts, in the order of the files. Memory: 24 bytes a sample, shared, and a batch or a bucket of rows.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.errors import ConfigError, DataError, Stopped
from raypipe.folds import groups_of
from raypipe.items import map_items
from raypipe.lake import Lake, Slice, list_slices
from raypipe.ops.places import Places
from raypipe.ops.text import id_words
from raypipe.part import THREADS, UNREADABLE, Footer, Table, add_up, commit_part, count_rows, figures_of, read_part
from raypipe.read_ahead import read_ahead
from raypipe.store import Folder, storage_of

BATCH_ROWS = 1 << 17  # that a task holds: 200 MB of 384 float32
PLACE = "_place"  # of the sample: its part's number * 2^32 + its row
ID = re.compile("[0-9a-f]{32}")

# a file's rows as the stage wants them, without those that hold a null; ValueError with what, got, wanted, do
Check = Callable[[pa.Table], pa.Table]
Make = Callable[[pa.Table, pa.Table], pa.Table]  # a part of a stage, from its samples and the rows given for them


@dataclass(frozen=True)
class Given:
    """What was exchanged, and its account."""

    folder: Folder
    edges: tuple[int, ...]  # of buckets, as numbers of parts
    schema: pa.Schema
    rows: int
    unknown: int  # their ids are of no sample

    def rows_of(self, bucket: int) -> pa.Table:
        """By place, each place once."""
        folder = self.folder / f"{bucket:05d}"
        pieces = [read_part(folder, name).replace_schema_metadata() for name in folder.list()]
        rows = pa.concat_tables([self.schema.empty_table(), *pieces])
        _, first = np.unique(rows.column(PLACE).to_numpy(), return_index=True)  # sorted; the first of equal ones
        return rows.take(first)


def exchange(
    key: str,
    paths: Sequence[str],
    columns: Sequence[str],
    check: Check,
    samples: Table,
    out: Folder,
    lake: Lake,
    endpoint: str | None,
) -> Given:
    """`columns` beside sample_id are read, and checked; `samples` has the lake's sample_ids. ConfigError for files of something else, DataError where no id is among them.

    Anew for a lake that has grown: buckets follow from the number of parts, and an id may be of a sample that was not there before.
    """
    files, out = list_slices(key, paths, endpoint=endpoint), out / f"_given-{lake.digest}"
    buckets = groups_of(samples.parts)
    edges = tuple(accumulate(map(len, buckets), initial=0))
    with ThreadPoolExecutor(THREADS) as threads:
        counts = list(threads.map(partial(_row_groups, key, endpoint=endpoint), files))
    items = [
        (place, file, group)
        for place, (file, count) in enumerate(zip(files, counts, strict=True))
        for group in range(count)
    ]
    if todo := _todo(items, out):
        task = partial(
            _put_aside,
            key=key,
            columns=columns,
            check=check,
            places=_places(samples),
            edges=edges,
            out=out,
            endpoint=endpoint,
        )
        map_items(task, todo, label=f"{key}: exchange", name=lambda item: f"{item[1].uri} row group {item[2]}")
    accounts = [json.loads(out.read(_name(item))) for item in items]
    schema = _one_schema(key, items, accounts)
    rows, unknown = (sum(account[name] for account in accounts) for name in ("rows", "unknown"))
    if rows == unknown:
        example = next((account["example"] for account in accounts if account["example"]), "none")
        raise DataError(
            f"{key}: none of the {rows:,} given ids is of a sample of this lake, for example {example}. A sample_id is 32 hexadecimal "
            f"digits that follow from the texts alone; those of this lake are in the column sample_id of {samples.folder.path}"
        )
    return Given(out, edges, schema, rows, unknown)


def _todo(items: Sequence[tuple[int, Slice, int]], out: Folder) -> list[tuple[int, Slice, int]]:
    """Those without an account, or without an object that it names: --repair removes what is damaged."""
    there = {file.uri[len(out.path) + 1 :] for file in out.walk()}
    done = (name for name in map(_name, items) if name in there)
    whole = {name for name in done if there.issuperset(json.loads(out.read(name))["objects"])}
    return [item for item in items if _name(item) not in whole]


def _places(samples: Table) -> Places:
    words, places = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    with read_ahead([samples.only("sample_id")], samples.parts) as (ahead,):
        for number, part in enumerate(samples.parts):
            words.append(id_words(ahead.read(part).column("sample_id")))
            places.append((number << 32) + np.arange(len(words[-1])))
    return Places.of(np.concatenate(words), np.concatenate(places))


def _row_groups(key: str, file: Slice, endpoint: str | None) -> int:
    return int(_opened(key, file, endpoint).metadata.num_row_groups)


def _opened(key: str, file: Slice, endpoint: str | None) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage_of(file.uri, endpoint).open(file.uri))
    except UNREADABLE as error:
        raise ConfigError(
            f"{key}: {file.uri} is no Parquet file ({str(error).splitlines()[0]}). Give Parquet files keyed by sample_id"
        ) from error


def _name(item: tuple[int, Slice, int]) -> str:
    return f"{item[0]:06d}-{item[2]:04d}.json"


def _put_aside(
    item: tuple[int, Slice, int],
    *,
    key: str,
    columns: Sequence[str],
    check: Check,
    places: Places,
    edges: Sequence[int],
    out: Folder,
    endpoint: str | None,
) -> None:
    """A row group's rows, batch by batch, into their buckets; its account last."""
    _, file, group = item
    account: dict[str, Any] = {"rows": 0, "unknown": 0, "example": None, "objects": []}
    opened, wanted = _opened(key, file, endpoint), ["sample_id", *columns]
    read = wanted if set(wanted) <= set(opened.schema_arrow.names) else None  # else all, to say what is there
    for number, batch in enumerate(opened.iter_batches(BATCH_ROWS, row_groups=[group], columns=read)):
        rows = _checked(key, file, pa.Table.from_batches([batch]), check)
        place = places.find(id_words(rows.column("sample_id")))
        known = place >= 0
        account["rows"] += len(rows)
        account["unknown"] += int((~known).sum())
        if not known.all():
            account["example"] = account["example"] or rows.column("sample_id")[int(np.argmin(known))].as_py()
        rows = rows.append_column(PLACE, pa.array(place)).filter(known)
        rows = rows.take(np.argsort(place[known], kind="stable"))
        if len(place):
            account["schema"] = base64.b64encode(rows.schema.serialize()).decode()
        account["objects"] += _put_buckets(rows, edges, f"{_name(item)[:-5]}-{number:04d}.parquet", out)
    now = storage_of(file.uri, endpoint).find(file.uri)
    if now is None or now.version != file.version:
        raise Stopped(f"{key}: {file.uri} was changed since it was listed. Run again: it is read anew")
    out.put(_name(item), json.dumps(account).encode())


def _put_buckets(rows: pa.Table, edges: Sequence[int], name: str, out: Folder) -> list[str]:
    """Returns what was put. Names in a bucket sort in the order of the files and their rows."""
    cuts = np.searchsorted(rows.column(PLACE).to_numpy(), np.array(edges, np.int64) << 32)
    filled = [(f"{bucket:05d}", first, last) for bucket, (first, last) in enumerate(pairwise(cuts)) if last > first]
    for bucket, first, last in filled:
        commit_part(out / bucket, name, rows.slice(first, last - first), counts={})
    return [f"{bucket}/{name}" for bucket, _, _ in filled]


def _checked(key: str, file: Slice, rows: pa.Table, check: Check) -> pa.Table:
    try:
        column = rows.column("sample_id") if "sample_id" in rows.column_names else None
        if column is None or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ValueError(
                f"got columns {rows.schema.to_string(show_schema_metadata=False)!r}, wanted sample_id as text. Add it"
            )
        odd = next((one for one in column.to_pylist() if one is None or not ID.fullmatch(one)), "")
        if odd != "":
            raise ValueError(
                f"got sample_id {odd!r}, wanted 32 hexadecimal digits. Take them from raypipe's clean or ingest"
            )
        made = check(rows.set_column(rows.column_names.index("sample_id"), "sample_id", pc.cast(column, pa.string())))
        return made.combine_chunks()
    except ValueError as error:
        raise ConfigError(f"{key}: {file.uri}: {error}") from error


def _one_schema(key: str, items: Sequence[tuple[int, Slice, int]], accounts: Iterable[dict[str, Any]]) -> pa.Schema:
    found: dict[str, str] = {}
    for (_, file, _), account in zip(items, accounts, strict=True):
        if "schema" in account:
            found.setdefault(account["schema"], file.uri)
    schemas = {uri: pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text))) for text, uri in found.items()}
    if not schemas:
        raise DataError(f"{key}: the given files hold no row. Give others, or leave {key} out")
    if len(schemas) > 1:
        (one, first), (other, second) = list(schemas.items())[:2]
        raise ConfigError(
            f"{key}: {one} has {first.types[1]} and {other} has {second.types[1]}, wanted one kind. Give files of one model"
        )
    return next(iter(schemas.values()))


def numbers(rows: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of `kind`, nulls as they are. ValueError where it is not there, or its values do not fit."""
    if name not in rows.column_names:
        raise ValueError(f"got columns {', '.join(rows.column_names)}, wanted {name} too. Add it")
    column = rows.column(name)
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"column {name}: got {column.type}, wanted {kind} ({str(error).splitlines()[0]}). Convert it"
        ) from error


def put_beside(given: Given, samples: Table, make: Make, out: Folder) -> dict[str, Footer | None]:
    """Every missing part of `out`, as map_parts does: what `make` makes of a part's samples and, row for row, what was given for them."""
    parts: dict[str, Footer | None] = dict.fromkeys(samples.parts)
    there = set(out.list())
    items = [(bucket, samples.parts[a:b], a) for bucket, (a, b) in enumerate(pairwise(given.edges))]
    task = partial(_put_parts, given=given, samples=samples.bare(), make=make, out=out)
    todo = [item for item in items if not there.issuperset(item[1])]
    for footers in map_items(task, todo, label=out.name, name=lambda item: f"{item[1][0]} to {item[1][-1]}"):
        parts |= {footer["name"]: footer for footer in footers}
    return parts


def _put_parts(
    item: tuple[int, Sequence[str], int], *, given: Given, samples: Table, make: Make, out: Folder
) -> list[Footer]:
    bucket, parts, first = item
    rows, footers = given.rows_of(bucket), []
    for number, part in enumerate(parts, first):
        if not out.has(part):
            started, table = time.perf_counter(), samples.read(part)
            made = make(table, _beside(table, rows, number))
            counts, figures = count_rows(made), figures_of(made)
            seconds = time.perf_counter() - started
            footers.append(commit_part(out, part, made, counts=counts, seconds=seconds, figures=figures)[0])
    return footers


def _beside(samples: pa.Table, rows: pa.Table, part: int) -> pa.Table:
    """Of a bucket's rows those of a part, row for row; null where nothing was given."""
    place = rows.column(PLACE).to_numpy()
    first, last = np.searchsorted(place, [part << 32, (part + 1) << 32])
    at = np.full(len(samples), -1)
    at[place[first:last] & (2**32 - 1)] = np.arange(first, last)
    return rows.drop_columns([PLACE, "sample_id"]).take(pa.array(at, mask=at < 0))


def account(key: str, given: Given, footers: Mapping[str, Footer], samples: Table) -> dict[str, Any]:
    """For a stage's summary, with words where something is missing or too much. Parts count as `not_given` samples without a row."""
    missing = int(add_up(footers.values())["figures"]["not_given"])
    said = []
    if missing:
        of = samples.manifest["counts"].get("ok", 0)
        said.append(f"{key}: {missing:,} of {of:,} samples are not among the given rows, and are never selected")
    if given.unknown:
        said.append(
            f"{key}: {given.unknown:,} of {given.rows:,} given ids are of no sample of this lake, and were left out"
        )
    return {"given_rows": given.rows, "unknown_ids": given.unknown, "not_given": missing, "warnings": said}

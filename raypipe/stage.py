"""A stage is a function that may be killed anywhere and called again on the same folder.

Its folder is `{stage}-{recipe}`: the recipe digests everything that decides the content, so a folder is written once and
never rewritten. Work is committed part by part; the manifest is put last and is what makes a stage finished. A manifest is
named by the lake it covers, so a lake that grows adds a manifest, and new parts, to the folders it had.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.config import Config
from raypipe.errors import DataError
from raypipe.identity import git_commit, package_versions
from raypipe.lake import Lake
from raypipe.ops.digests import canonical_json, columns_digest
from raypipe.store import Folder

log = logging.getLogger("raypipe")
FOOTER, PART = b"raypipe", b"part"
HELD_OUT_PACKS = "_held_out"  # folder beside pack's parts that train evaluates on


@dataclass(frozen=True)
class Stage:
    """`content` gives the part of the config, and of the files it names, that decides what is in a row."""

    name: str
    reads: tuple[str, ...]
    content: Callable[[Config], dict[str, Any]]
    version: int = 1  # raised whenever the same inputs give other rows
    whole_lake: bool = False  # needs all rows at once: another lake is another folder


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
        """The columns asked for; the part's name is put beside its account in the schema's metadata."""
        with self.folder.open(part) as file:
            table = pq.read_table(file, columns=None if self.columns is None else list(self.columns))
        return table.replace_schema_metadata({**(table.schema.metadata or {}), PART: part})


@dataclass(frozen=True)
class Inputs:
    lake: Lake
    tables: Mapping[str, Table]

    def __getitem__(self, stage: str) -> Table:
        return self.tables[stage]


@dataclass(frozen=True)
class Result:
    """What a stage's run function returns: the parts it answers for, and figures for its manifest."""

    parts: Sequence[str] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)


def recipe(stage: Stage, config: Config, upstream: Mapping[str, str], lake: str) -> dict[str, Any]:
    """Everything that decides the content of a stage's folder; `upstream` are the folders it reads."""
    made_of = {"stage": stage.name, "version": stage.version, "content": stage.content(config), "reads": dict(upstream)}
    return {**made_of, "lake": lake} if stage.whole_lake else made_of


def folder_name(made_of: Mapping[str, Any]) -> str:
    return f"{made_of['stage']}-{hashlib.sha256(canonical_json(made_of).encode()).hexdigest()[:12]}"


def manifest_name(lake: str) -> str:
    return f"manifest-{lake}.json"


def read_manifest(folder: Folder, lake: str) -> dict[str, Any] | None:
    """None while the stage is not finished for this lake."""
    name = manifest_name(lake)
    return dict(json.loads(folder.read(name))) if folder.has(name) else None


def open_table(folder: Folder, manifest: Mapping[str, Any]) -> Table:
    return Table(folder, tuple(part["name"] for part in manifest["parts"]), manifest=manifest)


def run_stage(stage: Stage, made_of: Mapping[str, Any], config: Config, inputs: Inputs, out: Folder) -> Table:
    """Run what is left of a stage and put its manifest. Imports the stage's module, and with it Ray, only now."""
    lake = inputs.lake.digest
    log.info("%s starts in %s", stage.name, out.path)
    started = time.monotonic()
    result: Result = importlib.import_module(f"raypipe.stages.{stage.name}").run(config, inputs, out)
    footers = part_footers(out, result.parts)
    totals = _checked_totals(footers, inputs, out)
    wall_s = round(time.monotonic() - started, 3)
    manifest = {
        "stage": stage.name,
        "recipe": dict(made_of),
        "lake": lake,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": wall_s,  # of the session that finished it
        **totals,
        "summary": dict(result.summary),
        "config": config.model_dump(mode="json"),
        "packages": package_versions(),
        "commit": git_commit(),
        "parts": footers,
    }
    out.put(manifest_name(lake), json.dumps(manifest, indent=1).encode())
    counts = ", ".join(f"{count:,} {name}" for name, count in totals["counts"].items())
    said = f": {len(footers):,} parts, {totals['rows']:,} rows ({counts})" if footers else ""
    log.info("%s done in %.1f s%s", stage.name, wall_s, said)
    return open_table(out, manifest)


def _checked_totals(footers: Sequence[Mapping[str, Any]], inputs: Inputs, out: Folder) -> dict[str, Any]:
    """Footers added up; DataError unless a row-wise stage has as many rows as what it was made from."""
    totals, parts = add_up(footers), tuple(footer["name"] for footer in footers)
    for name, table in inputs.tables.items():
        if parts == table.parts and totals["rows"] != table.manifest["rows"]:
            raise DataError(
                f"{out.path}: got {totals['rows']:,} rows, wanted the {table.manifest['rows']:,} of {name}. "
                "Remove the folder and run again"
            )
    return totals


def encode_part(
    table: pa.Table, *, counts: Mapping[str, int], seconds: float, inputs: Mapping[str, str], row_group_size: int = 4096
) -> bytes:
    """Parquet bytes of a part, its account in the footer: counts by status, seconds of work, digests of input and columns."""
    account = {
        "counts": dict(counts),
        "seconds": round(seconds, 3),
        "inputs": dict(inputs),
        "columns": columns_digest(table),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({FOOTER: json.dumps(account)}),
        sink,
        compression="zstd",
        row_group_size=row_group_size,
    )
    return bytes(sink.getvalue())


def part_footers(folder: Folder, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Accounts of parts, in order: from manifests already in the folder, else from the parts themselves."""
    known: dict[str, dict[str, Any]] = {}
    for name in folder.list():
        if name.startswith("manifest-"):
            known |= {part["name"]: part for part in json.loads(folder.read(name))["parts"]}
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda part: known.get(part) or read_footer(folder, part), parts))


def read_footer(folder: Folder, part: str) -> dict[str, Any]:
    with folder.open(part) as file:
        metadata, size = pq.read_metadata(file), file.size()
    return {"name": part, "rows": metadata.num_rows, "bytes": size, **json.loads(metadata.metadata[FOOTER])}


def add_up(footers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    rows, size, seconds, counts = 0, 0, 0.0, Counter[str]()
    for footer in footers:
        rows, size, seconds = rows + footer["rows"], size + footer["bytes"], seconds + footer["seconds"]
        counts.update(footer["counts"])
    return {"rows": rows, "bytes": size, "actor_s": round(seconds, 3), "counts": dict(sorted(counts.items()))}


def columns_digest_of(table: pa.Table) -> str:
    """What the part that a table was read from says of its columns."""
    return str(json.loads(table.schema.metadata[FOOTER])["columns"])


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

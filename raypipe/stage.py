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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypipe.config import Config
from raypipe.errors import DataError
from raypipe.identity import git_commit, package_versions
from raypipe.lake import Lake
from raypipe.ops.digests import canonical_json
from raypipe.part import Footer, Table, add_up, read_footers
from raypipe.store import Folder

log = logging.getLogger("raypipe")


@dataclass(frozen=True)
class Stage:
    """`content` gives the part of the config, and of the files it names, that decides what is in a row."""

    name: str
    reads: tuple[str, ...]
    content: Callable[[Config], dict[str, Any]]
    version: int = 1  # raised whenever the same inputs give other rows
    # needs all rows at once: another lake is another folder
    whole_lake: Callable[[Config], bool] = lambda config: False


@dataclass(frozen=True)
class Inputs:
    lake: Lake
    tables: Mapping[str, Table]

    def __getitem__(self, stage: str) -> Table:
        return self.tables[stage]

    def bare(self) -> Inputs:
        """For a task that names its parts itself."""
        return Inputs(Lake((), ()), {name: table.bare() for name, table in self.tables.items()})


Known = Mapping[str, Footer | None]  # parts in order, each with its footer where this session knows it


@dataclass(frozen=True)
class Result:
    """What a stage's run function returns: the parts it answers for, and figures for its manifest."""

    parts: Known = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


def recipe(stage: Stage, config: Config, upstream: Mapping[str, str], lake: str) -> dict[str, Any]:
    """Everything that decides the content of a stage's folder; `upstream` are the folders it reads."""
    made_of = {"stage": stage.name, "version": stage.version, "content": stage.content(config), "reads": dict(upstream)}
    return {**made_of, "lake": lake} if stage.whole_lake(config) else made_of


def folder_name(made_of: Mapping[str, Any]) -> str:
    return f"{made_of['stage']}-{hashlib.sha256(canonical_json(made_of).encode()).hexdigest()[:12]}"


def manifest_name(lake: str) -> str:
    return f"manifest-{lake}.json"


def read_manifest(folder: Folder, lake: str) -> dict[str, Any] | None:
    """None while the stage is not finished for this lake."""
    data = folder.find(manifest_name(lake))
    return None if data is None else dict(json.loads(data))


def open_table(folder: Folder, manifest: Mapping[str, Any]) -> Table:
    return Table(folder, tuple(part["name"] for part in manifest["parts"]), manifest=manifest)


def run_stage(stage: Stage, made_of: Mapping[str, Any], config: Config, inputs: Inputs, out: Folder) -> Table:
    """Run what is left of a stage and put its manifest. Imports the stage's module, and with it Ray, only now."""
    lake = inputs.lake.digest
    log.info("%s starts in %s", stage.name, out.path)
    started = time.monotonic()
    result: Result = importlib.import_module(f"raypipe.stages.{stage.name}").run(config, inputs, out)
    footers = list(all_footers(out, result.parts, inputs.lake).values())
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


def all_footers(folder: Folder, parts: Known, lake: Lake) -> dict[str, Footer]:
    """Footers of all parts, in order: what this session knows, then the newest manifest of a shorter lake, then the parts."""
    known = {part: footer for part, footer in parts.items() if footer}
    if len(known) < len(parts):
        there = set(folder.list())
        before = next((digest for digest in reversed(lake.chain) if manifest_name(digest) in there), None)
        if before:
            known = {part["name"]: part for part in json.loads(folder.read(manifest_name(before)))["parts"]} | known
    known |= read_footers(folder, [part for part in parts if part not in known])
    return {part: known[part] for part in parts}

"""Runs by name: what `runs/NAME.json` under a root says of each, and reading what a run made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.errors import ConfigError, DataError
from raypipe.recipes import STAGE_NAMES
from raypipe.s3 import arrow_filesystem
from raypipe.stage import manifest_name, open_table, read_manifest
from raypipe.store import Folder

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset


def read(root: str | Path, stage: str, run: str | None = None, *, endpoint: str | None = None) -> Dataset:
    """A stage's parts as a pyarrow dataset; `run` is needed where several runs share the root."""
    import pyarrow.dataset as ds  # here, because it loads pandas

    root = str(root)
    place = Folder.at(root, endpoint)
    runs = recorded_runs(place)
    if not runs or (run is None and len(runs) > 1) or (run is not None and run not in runs):
        raise ConfigError(f"{root}: got run {run!r}, wanted one of {sorted(runs)}. Pass run=NAME")
    record = runs[run or next(iter(runs))]
    if stage not in record["folders"]:
        raise ConfigError(f"{root}: got stage {stage!r}, wanted one of {', '.join(STAGE_NAMES)}")
    folder = place / record["folders"][stage]
    manifest = read_manifest(folder, record["lake"])
    if manifest is None:
        raise ConfigError(
            f"{folder.uri(manifest_name(record['lake']))} is missing: {stage} is not finished. Run it first"
        )
    uris = [folder.uri(part) for part in open_table(folder, manifest).parts]
    if not root.startswith("s3://"):
        return ds.dataset(uris, format="parquet")
    return ds.dataset(
        [uri.removeprefix("s3://") for uri in uris], format="parquet", filesystem=arrow_filesystem(endpoint)
    )


def recorded_runs(root: Folder) -> dict[str, dict[str, Any]]:
    """By name. DataError for a file that is no run's record."""
    runs = root / "runs"
    names = [name for name in runs.list() if name.endswith(".json")]
    return {name.removesuffix(".json"): _parsed(runs.uri(name), runs.read(name)) for name in names}


def _parsed(uri: str, data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
        if {"lake", "folders"} <= record.keys():
            return dict(record)
    except (ValueError, AttributeError):
        pass
    raise DataError(f"{uri}: got something else, wanted a run's record. Run its config again, or remove the file")

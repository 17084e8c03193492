"""`raypipe replay`: rows that ingest rejected, as a file to be mended; then the mended file, ingested after the lake.

The file is itself one of a lake: a row a line, as the row stands in its file, so that any editor or script can mend it. Where a row
is an object, a field `_rejected` says why and where it was.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from raypipe import pipeline
from raypipe.config import Config
from raypipe.errors import ConfigError
from raypipe.lake import Lake
from raypipe.part import read_part
from raypipe.store import Folder, location


def replay(config: Config, file: str) -> str:
    """What it did, in words. Where the file is not there, it is written; where it is, its rows are ingested."""
    path, endpoint = location(file), config.storage.endpoint
    folder, name = Folder.at(path.rpartition("/")[0], endpoint), path.rpartition("/")[2]
    if folder.has(name):
        return _ingested(config, path)
    planned = pipeline.plan(config)
    found, lines = Counter[str](), list[bytes]()
    for row in _rejects(planned["ingest"].folder, planned.lake):
        line = _line(row)
        found[row["reason"] if line else "not kept"] += 1
        lines += [line] if line else []
    if not lines:
        raise ConfigError(
            f"replay: {planned['ingest'].folder.path} has no rejected rows of this lake that could be mended. Ingest it first"
        )
    with folder.create(name) as out:
        out.writelines(lines)
    return (
        f"{path}: {len(lines):,} rows ({_said(found)}). Mend what can be mended, remove the others, and give the same command again\n"
        "not kept: of a row longer than 64 KiB, or that nobody could read, there is only the place; see _rejected/"
    )


def _rejects(folder: Folder, lake: Lake) -> Iterator[Mapping[str, Any]]:
    """Also of an ingest that stopped, over its budget."""
    from raypipe.stages.ingest import parts_of  # loads Ray

    rejected = folder / "_rejected"
    for parts in parts_of(lake, rejected.list()).values():
        for part in parts:
            yield from read_part(rejected, part).to_pylist()


def _line(row: Mapping[str, Any]) -> bytes | None:
    """Its bytes, with a field more where they are an object; None where they are not all there."""
    from raypipe.ops.blocks import RAW_BYTES

    raw: bytes | None = row["raw"]
    if raw is None or len(raw) == RAW_BYTES:
        return None
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        why = json.dumps({name: value for name, value in row.items() if name != "raw"}).encode()
        raw = raw[:-1] + b", " * bool(fields) + b'"_rejected": ' + why + b"}"
    return raw.replace(b"\n", b" ") + b"\n"


def _ingested(config: Config, path: str) -> str:
    from raypipe.stages.ingest import parts_of  # loads Ray

    paths = (*config.ingest.paths, path)
    ingest = config.ingest.model_copy(update={"paths": paths})
    done = pipeline.run(config.model_copy(update={"ingest": ingest}), until="ingest")
    table, counts = done["ingest"].table, Counter[str]()
    footers = {part["name"]: part for part in table.manifest["parts"]}
    for place, parts in parts_of(done.lake, table.parts).items():
        if done.lake.slices[place].uri == path:
            for part in parts:
                counts.update(footers[part]["counts"])
    samples = counts.pop("ok", 0)
    return (
        f"{path}: {samples:,} samples, {counts.total():,} rejected again ({_said(counts)})\n"
        f"To have them in every run, add the file to the config: ingest.paths: {json.dumps(paths)}"
    )


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "none"

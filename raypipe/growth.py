"""How a lake differs from that of a run's last time: grown at its end, which costs what is new, or changed before, which costs all that follows."""

from __future__ import annotations

import json

from raypipe.lake import Lake, place_and_chain
from raypipe.stage import read_manifest
from raypipe.store import Folder


def since_last_run(record: bytes | None, lake: Lake, ingest: Folder) -> list[str]:
    """In words; nothing where the lake is the same, or the run has no record yet. `ingest` is the folder that this run's parts are in."""
    before = json.loads(record)["lake"] if record else lake.digest
    if before == lake.digest:
        return []
    if before in lake.chain:
        new = len(lake.chain) - 1 - lake.chain.index(before)
        return [
            f"the lake has grown since the last run: {new:,} slices after its {lake.chain.index(before) + 1:,}, which are kept"
        ]
    manifest = read_manifest(ingest, before)
    if manifest is None:
        return []
    there, parts = set(lake.chain), (place_and_chain(part["name"]) for part in manifest["parts"])
    first = max((place for place, chain in parts if chain in there), default=-1) + 1
    if first == len(lake.slices):
        return ["files at the end of the last run's lake are gone; those that are left are kept"]
    return [
        f"! the lake differs from that of the last run from slice {first + 1:,} of {len(lake.slices):,} on: {lake.slices[first].uri} or one just before it "
        f"was changed, added or removed. {first:,} slices are kept, all later ones are made again. To add files cheaply, name them so that they come last"
    ]

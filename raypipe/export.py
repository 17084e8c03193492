"""`raypipe export`: what a run selected, as files that other trainers load, with a dataset card.

`DIR/data/{split}-00000-of-00012.jsonl` is where the Hub and `datasets` look for splits: train is what was selected, test what was held
out. A shard is one Ray task, which reads some neighbouring parts and puts one file. export.json comes first and says of what the folder
is; the card comes last and is the sign that it is whole. So a killed export goes on, and one that is there starts no Ray.

Cost: the texts of a part are read once for each split; a task holds the samples of its shard, and the file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypipe import pipeline
from raypipe.config import Config
from raypipe.errors import ConfigError
from raypipe.ops import dataset_card, formats
from raypipe.ops.selection import HELD_OUT, SELECTED
from raypipe.part import Table
from raypipe.s3 import patience
from raypipe.screen import aligned, size
from raypipe.session import ray_session
from raypipe.stage import open_table
from raypipe.store import Folder

VERSION = 1  # raised whenever the same rows give other files
SPLITS = {"train": SELECTED, "test": HELD_OUT}  # by the reason that select gives
SHARD_SAMPLES, SHARD_TOKENS = 50_000, 25_000_000  # the tokens are about 100 MB of text
RECIPE, CARD, DATA = "export.json", "README.md", "data"

Splits = Mapping[str, Mapping[str, int]]  # samples, shards and bytes of each


@dataclass(frozen=True)
class Shard:
    split: str
    name: str  # of its file
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Export:
    folder: Folder
    form: str
    splits: Splits
    was_there: bool


def export(config: Config, place: str, form: str) -> Export:
    """ConfigError unless select is finished and `place` is empty, or holds this export or the beginning of it."""
    with patience(pipeline.PLAN_PATIENCE_S):
        planned = pipeline.plan(config, "pack", asked="export")
        tables = _tables(planned)
        shards = planned_shards(tables["select"].manifest["parts"], formats.suffix(form))
        out, recipe = Folder.at(place, config.storage.endpoint), _recipe(planned, form, shards)
        _check_free(out, recipe, shards)
        out.put(RECIPE, json.dumps(recipe, indent=1).encode())  # a folder that refuses does so now
        there = set((out / DATA).list())
        left = [shard for shard in shards if shard.name not in there]
        was_there = not left and out.has(CARD)
    if not was_there:
        licences = _written(tables, shards, left, out / DATA, form, config.ingest.carry)
        out.put(CARD, dataset_card.render(_account(config, planned, form, _splits(out, recipe), licences)).encode())
    return Export(out, form, _splits(out, recipe), was_there)


def shown(made: Export) -> str:
    """For the screen; every number is in the card."""
    rows = [("split", "samples", "shards", "size")]
    for name, split in made.splits.items():
        rows.append((name, f"{split['samples']:,}", f"{split['shards']:,}", size(split["bytes"])))
    said = f"export  {made.folder.path}  ({made.form}{', whole already: nothing was done' * made.was_there})"
    return "\n".join([aligned(rows, right={1, 2, 3}), f"card    {made.folder.uri(CARD)}", said])


def planned_shards(parts: Sequence[Mapping[str, Any]], suffix: str) -> list[Shard]:
    """Parts as select's manifest lists them to shards of about equal numbers of samples, none empty; by split, in order."""
    selected, tokens = (
        sum(_count(part, "train") for part in parts),
        sum(part["figures"]["kept_tokens"] for part in parts),
    )
    most = min(SHARD_SAMPLES, SHARD_TOKENS * selected / max(tokens, 1))  # samples
    shards = []
    for split in SPLITS:
        mine = [part for part in parts if _count(part, split)]
        before = [0, *accumulate(_count(part, split) for part in mine)]
        wanted = math.ceil(before[-1] / max(most, 1))
        by_place = groupby(zip(mine, before, strict=False), key=lambda pair: pair[1] * wanted // before[-1])
        groups = [tuple(part["name"] for part, _ in group) for _, group in by_place]
        names = (f"{split}-{number:05d}-of-{len(groups):05d}.{suffix}" for number in range(len(groups)))
        shards += [Shard(split, name, group) for name, group in zip(names, groups, strict=True)]
    return shards


def write_shard(shard: Shard, *, tables: Mapping[str, Table], out: Folder, form: str) -> None:
    found = []
    for part in shard.parts:
        read = {stage: table.read(part) for stage, table in tables.items()}
        kept = pc.equal(read.pop("select").column("reason"), SPLITS[shard.split])
        found.append(formats.beside(**read).filter(kept))
    out.put(shard.name, formats.encoded(pa.concat_tables(found), form))


def count_values(shard: Shard, *, columns: Table, select: Table) -> list[Counter[str | None]]:
    """How often the samples of a shard have each value of each column."""
    counts: list[Counter[str | None]] = [Counter() for _ in columns.columns or ()]
    for part in shard.parts:
        kept = columns.read(part).filter(pc.equal(select.read(part).column("reason"), SPLITS[shard.split]))
        for counter, column in zip(counts, kept.columns, strict=True):
            counter.update({item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()})
    return counts


def _count(part: Mapping[str, Any], split: str) -> int:
    return int(part["counts"].get(SPLITS[split], 0))


def _tables(planned: pipeline.Plan) -> dict[str, Table]:
    steps = [planned[stage] for stage in ("ingest", "clean", "cluster", "score", "select")]
    return {step.stage.name: open_table(step.folder, step.manifest or {}) for step in steps}  # plan() saw them finished


def _recipe(planned: pipeline.Plan, form: str, shards: Sequence[Shard]) -> dict[str, Any]:
    """All that decides the files, and how many there are."""
    counts, files = (planned["select"].manifest or {})["counts"], Counter(shard.split for shard in shards)
    return {
        "format": form,
        "version": VERSION,
        "select": planned["select"].folder.name,
        "lake": planned.lake.digest,
        "splits": {
            split: {"samples": counts[SPLITS[split]], "shards": files[split]} for split in SPLITS if files[split]
        },
    }


def _check_free(out: Folder, recipe: Mapping[str, Any], shards: Sequence[Shard]) -> None:
    """ConfigError for a folder of anything else. Names with a dot in front, as a clone of a repository has, may be there."""
    found = out.find(RECIPE)
    if found and (other := json.loads(found)) != recipe:
        differs = ", ".join(
            f"{key} {other.get(key)!r}, wanted {recipe[key]!r}" for key in recipe if other.get(key) != recipe[key]
        )
        raise ConfigError(f"export: {out.uri(RECIPE)} is of another export: got {differs}. Give another folder")
    known = {RECIPE, CARD, DATA, *(f"{DATA}/{shard.name}" for shard in shards)} if found else {DATA}
    there = [name for name in (*out.list(), *(f"{DATA}/{name}" for name in (out / DATA).list())) if name not in known]
    if there:
        more = f" and {len(there) - 3:,} more" * (len(there) > 3)
        raise ConfigError(
            f"export: got {out.path} with {', '.join(there[:3])}{more} in it, wanted an empty folder. Give another one"
        )


def _written(
    tables: Mapping[str, Table],
    shards: Sequence[Shard],
    left: Sequence[Shard],
    out: Folder,
    form: str,
    carry: Sequence[str],
) -> dict[str, Counter[str | None]]:
    """Writes what is left. Returns values of carried licence columns over all selected samples, read from clean, which has no texts."""
    from raypipe.items import map_items  # loads Ray

    used = {stage: tables[stage].only(*names).bare() for stage, names in formats.reads(form, carry).items()}
    select = tables["select"].only("reason").bare()
    named = [name for name in carry if "license" in name.lower() or "licence" in name.lower()]
    write = partial(write_shard, tables={**used, "select": select}, out=out, form=form)
    count = partial(count_values, columns=tables["clean"].only(*named).bare(), select=select)
    train = [shard for shard in shards if shard.split == "train" and named]
    with ray_session():
        map_items(write, left, label="export", name=lambda shard: out.uri(shard.name))
        counted = map_items(count, train, label="licences", name=lambda shard: out.uri(shard.name))
    return {name: sum(counts, Counter()) for name, counts in zip(named, zip(*counted, strict=True), strict=True)}


def _splits(out: Folder, recipe: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    sizes = Counter[str]()
    for file in (out / DATA).walk():
        sizes[file.uri.rpartition("/")[2].partition("-")[0]] += file.size
    return {split: {**counts, "bytes": sizes[split]} for split, counts in recipe["splits"].items()}


def _account(
    planned: pipeline.Plan, form: str, splits: Splits, licences: Mapping[str, Counter[str | None]]
) -> dict[str, Any]:
    """What the card is made of."""
    config, manifests = planned.config, {step.stage.name: step.manifest for step in planned.stages if step.manifest}
    select, without = manifests["select"], {"storage", "resources", "pack", "train", "report"}
    settings = asked.model_dump(
        mode="json", exclude=without
    )  # as a user may give them: the plan's name models on S3 by etags
    settings["score"]["backend"] = config.score.backend
    return {
        "config": config,
        "settings": settings,
        "format": form,
        "features": formats.features(form, config.ingest.carry),
        "splits": splits,
        "counts": {stage: manifest["counts"] for stage, manifest in manifests.items()},
        "num_clusters": len(manifests["cluster"]["summary"]["cluster_sizes"]),
        "folders": [planned[stage].folder.name for stage in ("ingest", "clean", "embed", "cluster", "score", "select")],
        "lake": planned.lake.digest,
        "version": select["packages"].get("raypipe"),
        "finished": select["finished"],
        "licences": {name: counts.most_common() for name, counts in licences.items()},
    }

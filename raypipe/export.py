"""`raypipe export`: what a run selected, as files that other trainers load, with a dataset card.

`DIR/data/{split}-00000-of-00012.jsonl` is where the Hub and `datasets` look for splits: train is what was selected, test what was held
out. One Ray task makes and puts one file. export.json comes first and says of what the folder is; the card comes last and is the sign
that it is whole. So a killed export goes on, and one that is there starts no Ray.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from raypipe import pipeline
from raypipe.config import Config
from raypipe.errors import ConfigError, StorageError
from raypipe.export_files import SPLITS, Shard, count_values, planned_shards, write_shard
from raypipe.ops import dataset_card, formats
from raypipe.part import Table
from raypipe.recipes import STAGE_NAMES
from raypipe.s3 import patience
from raypipe.screen import aligned, size
from raypipe.session import ray_session
from raypipe.store import Folder

VERSION = 1  # raised whenever the same rows give other files
RECIPE, CARD, DATA = "export.json", "README.md", "data"

Splits = Mapping[str, Mapping[str, int]]  # samples, shards and bytes of each


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
        _check_free(out, told := json.dumps(recipe, indent=1).encode(), shards)
        out.put(RECIPE, told)  # a folder that refuses does so now
        there = set((out / DATA).list())
        left = [shard for shard in shards if shard.name not in there]
        was_there = not left and out.has(CARD)
    licences = {} if was_there else _written(tables, shards, left, out / DATA, form, config.ingest.carry)
    splits = _splits(out, recipe, shards)
    if not was_there:
        out.put(CARD, dataset_card.render(_account(config, planned, form, splits, licences)).encode())
    return Export(out, form, splits, was_there)


def shown(made: Export) -> str:
    """For the screen; every number is in the card."""
    rows = [("split", "samples", "shards", "size")]
    for name, split in made.splits.items():
        rows.append((name, f"{split['samples']:,}", f"{split['shards']:,}", size(split["bytes"])))
    said = f"export  {made.folder.path}  ({made.form}{', whole already: nothing was done' * made.was_there})"
    return "\n".join([aligned(rows, right={1, 2, 3}), f"card    {made.folder.uri(CARD)}", said])


def _tables(planned: pipeline.Plan) -> dict[str, Table]:
    names = ("ingest", "clean", "cluster", "score", "select")
    return {name: planned[name].table for name in names}  # plan() saw them finished


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


def _check_free(out: Folder, recipe: bytes, shards: Sequence[Shard]) -> None:
    """ConfigError for a folder of anything else. Names with a dot in front, as a clone of a repository has, may be there."""
    found = out.find(RECIPE)
    if found not in (None, recipe):
        got, wanted = (" ".join(data.decode(errors="replace").split())[:400] for data in (found or b"", recipe))
        raise ConfigError(
            f"export: {out.uri(RECIPE)} is of another export: got {got}, wanted {wanted}. Give another folder"
        )
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


def _splits(out: Folder, recipe: Mapping[str, Any], shards: Sequence[Shard]) -> dict[str, dict[str, int]]:
    """StorageError where a file is not there that a task has put: on another machine's disk."""
    sizes = {file.uri.rpartition("/")[2]: file.size for file in (out / DATA).walk()}
    if lost := [shard.name for shard in shards if shard.name not in sizes]:
        raise StorageError(
            f"{out.uri(DATA)}: {lost[0]} was written and is not there ({len(lost):,} of {len(shards):,} files). Give a folder that "
            "every node sees, or s3://"
        )
    sums = Counter[str]()
    for shard in shards:
        sums[shard.split] += sizes[shard.name]
    return {split: {**counts, "bytes": sums[split]} for split, counts in recipe["splits"].items()}


def _account(
    asked: Config, planned: pipeline.Plan, form: str, splits: Splits, licences: Mapping[str, Counter[str | None]]
) -> dict[str, Any]:
    """What the card is made of."""
    before = planned.stages[: STAGE_NAMES.index("pack")]
    settings = asked.model_dump(mode="json", exclude={"storage", "resources", "pack", "train", "evaluate", "report"})
    settings["score"]["backend"] = planned.config.score.backend  # else as asked: the plan names models on S3 by etags
    return {
        "config": planned.config,
        "settings": settings,
        "format": form,
        "features": formats.features(form, asked.ingest.carry),
        "splits": splits,
        "manifests": {step.stage.name: step.manifest for step in before},
        "folders": [step.folder.name for step in before],
        "licences": {name: counts.most_common() for name, counts in licences.items()},
    }

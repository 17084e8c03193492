"""The files of an export: which parts each is made from, and making one.

A shard is one split's samples of neighbouring parts, so a task reads few parts and holds one file. The numbers that select counted
decide which parts: nobody reads a row to know. Cost: the texts of a part are read once for each split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypipe.ops import formats
from raypipe.ops.selection import HELD_OUT, SELECTED
from raypipe.part import Table
from raypipe.store import Folder

SPLITS = {"train": SELECTED, "test": HELD_OUT}  # by the reason that select gives
SHARD_SAMPLES, SHARD_TOKENS = 50_000, 25_000_000  # the tokens are about 100 MB of text


@dataclass(frozen=True)
class Shard:
    split: str
    name: str  # of its file
    parts: tuple[str, ...]


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

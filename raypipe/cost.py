"""What is left of scoring will cost: tokens, time, hours of accelerators. Known from parts that are finished, or from rows that
were scored to measure it; otherwise it is unknown, and nothing is guessed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from raypipe.errors import ConfigError
from raypipe.ops.estimate import Interval, ratio_total
from raypipe.part import read_footers
from raypipe.resources import Pool
from raypipe.store import Folder

MEASURED = "measured.json"  # beside score's parts
NUM_PARTS = 64  # whose footers are read, at most
MEASURE = "raypipe plan CONFIG --measure (on a machine as the actors have; it scores some rows, and is remembered)"


class Batch(NamedTuple):
    """Rows that were scored together, and what that took; seconds are an actor's, idle ones too."""

    rows: int
    tokens: float
    seconds: float
    cpu_s: float


@dataclass(frozen=True)
class Cost:
    rows: int  # that are left
    basis: str = ""
    tokens: Interval | None = None
    seconds: Interval | None = None  # of actors
    cpu_s: Interval | None = None


def cost_of_scoring(folder: Folder, ingest: Mapping[str, Any]) -> Cost:
    """Of the parts of `ingest`, a manifest, that are not yet in score's `folder`."""
    there = set(folder.list())
    left = sum(part["rows"] for part in ingest["parts"] if part["name"] not in there)
    finished = sorted(there & {part["name"] for part in ingest["parts"]})
    if finished:
        some = random.Random(0).sample(finished, min(NUM_PARTS, len(finished)))
        batches = [_batch(footer) for footer in read_footers(folder, some).values() if footer["rows"]]
        return estimate(batches, left, f"{len(some):,} finished parts")
    if data := folder.find(MEASURED):
        measured = json.loads(data)
        batches = [Batch(*batch) for batch in measured["batches"]]
        return estimate(batches, left, f"{sum(b.rows for b in batches):,} rows measured on {measured['where']}")
    return Cost(left)


def estimate(batches: Sequence[Batch], rows: int, basis: str) -> Cost:
    if not batches:
        return Cost(rows)
    num_rows, *costs = zip(*batches, strict=True)
    return Cost(rows, basis, *(ratio_total(cost, num_rows, rows) for cost in costs))


def remember(folder: Folder, batches: Sequence[Batch], where: str) -> None:
    folder.replace(MEASURED, json.dumps({"where": where, "batches": batches}, indent=1).encode())


def check_budget(cost: Cost, pool: Pool, max_gpu_hours: float | None) -> None:
    """ConfigError where scoring will take more than is allowed, or nobody knows."""
    if max_gpu_hours is None or not pool.gpus or not cost.rows:
        return
    if cost.seconds is None:
        raise ConfigError(
            f"resources.max_gpu_hours: {max_gpu_hours:g}, and what scoring {cost.rows:,} rows costs is unknown. Measure it by: {MEASURE}"
        )
    if (hours := cost.seconds.mid / 3600 * pool.gpus) > max_gpu_hours:
        raise ConfigError(
            f"resources.max_gpu_hours: scoring {cost.rows:,} rows takes about {hours:.3g} GPU-h, wanted at most {max_gpu_hours:g} "
            f"(from {cost.basis}). Allow more, take a smaller score.model, or a smaller lake"
        )


def _batch(footer: Mapping[str, Any]) -> Batch:
    figures = footer["figures"]
    return Batch(footer["rows"], figures["num_tokens"], footer["seconds"] + footer["idle_s"], figures["cpu_s"])

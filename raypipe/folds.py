"""Folds: parts to a small state with `+`, merged in part order, by actors that may keep their parts between folds.

All actors of a fold are placed at once or wait: two drivers that each held half of what they need would wait for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raypipe.config import Pool
from raypipe.items import RETRIES, result_of
from raypipe.part import Table
from raypipe.sizing import ACTOR_CPUS, fit_actors


class Mergeable(Protocol):
    def __add__(self, other: Any) -> Any: ...


class Shards:
    """Actors that each own a contiguous run of parts, and keep it in memory between folds where `keep` says so."""

    def __init__(self, actors: Sequence[Any], owned: Sequence[Sequence[str]]) -> None:
        self._actors, self._owned = actors, owned

    def fold(self, function: Callable[[list[pa.Table]], Mergeable]) -> Any:
        """Sum, in part order, of `function` of every part. States must add up the same under any sharding."""
        states = [actor.fold.remote(function) for actor in self._actors]
        named = zip(states, self._owned, strict=True)
        return reduce(add, [result_of(state, f"parts {owned[0]} to {owned[-1]}") for state, owned in named])


@contextmanager
def shards(inputs: Sequence[Table], *, pool: Pool, keep: bool) -> Iterator[Shards]:
    parts = inputs[0].parts
    _, count = fit_actors(pool, len(parts))
    cuts = [len(parts) * n // count for n in range(count + 1)]
    owned = [parts[a:b] for a, b in itertools.pairwise(cuts)]
    options = {"num_cpus": ACTOR_CPUS, "num_gpus": pool.gpus, "max_restarts": RETRIES, "max_task_retries": RETRIES}
    together = placement_group([{"CPU": ACTOR_CPUS, **({"GPU": pool.gpus} if pool.gpus else {})}] * count)
    try:
        result_of(together.ready(), "room for the actors of a fold")
        remote = ray.remote(_Shard).options(**options, scheduling_strategy=PlacementGroupSchedulingStrategy(together))
        yield Shards([remote.remote([table.bare() for table in inputs], mine, keep) for mine in owned], owned)
    finally:
        remove_placement_group(together)  # and with it the actors


def fold_parts(function: Callable[[list[pa.Table]], Mergeable], inputs: Sequence[Table], *, pool: Pool) -> Any:
    with shards(inputs, pool=pool, keep=False) as once:
        return once.fold(function)


class _Shard:
    def __init__(self, inputs: list[Table], parts: Sequence[str], keep: bool) -> None:
        self.inputs, self.parts, self.keep = inputs, parts, keep
        self.held: dict[str, list[pa.Table]] = {}

    def fold(self, function: Callable[[list[pa.Table]], Mergeable]) -> Any:
        return reduce(add, (function(self._tables(part)) for part in self.parts))

    def _tables(self, part: str) -> list[pa.Table]:
        tables = self.held.get(part) or [table.read(part) for table in self.inputs]
        if self.keep:
            self.held[part] = tables
        return tables

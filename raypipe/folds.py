"""Folds: parts to a small state with `+`, merged in part order, by actors that may keep what they read between folds.

All actors of a fold are placed at once or wait: two drivers that each held half of what they need would wait for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raypipe.items import RETRIES, result_of
from raypipe.part import Table
from raypipe.read_ahead import read_ahead
from raypipe.resources import Pool
from raypipe.sizing import ACTOR_CPUS, fit_actors, host_bytes, kind_of

GROUPS, GROUP_PARTS = 64, 512  # groups at least, where there are as many parts; parts of a group at most
HELD_SHARE = 0.5  # of the memory that an actor may take


class Mergeable(Protocol):
    def __add__(self, other: Any) -> Any: ...


class Held(Protocol):
    """What is made of a group's parts, to be kept."""

    @property
    def nbytes(self) -> int: ...


class Shards:
    """Actors that each own some groups. A group is a contiguous run of parts that follows from their number alone, so what is
    computed a group at a time has the same bits under any number of actors."""

    def __init__(self, actors: Sequence[Any], owned: Sequence[Sequence[Sequence[str]]]) -> None:
        self._actors, self._owned = actors, owned

    def fold(
        self, function: Callable[[Any], Mergeable], of: Callable[[Iterable[list[pa.Table]]], Held] | None = None
    ) -> Any:
        """Sum, in order, of `function` of every part's tables, or of what `of` makes of every group's.

        The latter is kept, while `of` equals that of the fold before and memory lasts; what does not fit is read again.
        """
        states = [actor.fold.remote(function, of) for actor in self._actors]
        named = zip(states, self._owned, strict=True)
        return reduce(add, [result_of(state, f"parts {owned[0][0]} to {owned[-1][-1]}") for state, owned in named])


@contextmanager
def shards(inputs: Sequence[Table], *, pool: Pool) -> Iterator[Shards]:
    parts = groups_of(inputs[0].parts)
    _, count = fit_actors(pool, len(parts), light=True)
    owned = cut(parts, count)
    kind = {kind_of(pool.accelerator): 0.001} if pool.accelerator else {}
    gpu = {"GPU": pool.gpus, **kind} if pool.gpus else {}
    options = {"num_cpus": ACTOR_CPUS, "num_gpus": pool.gpus, "max_restarts": RETRIES, "max_task_retries": RETRIES}
    together = placement_group([{"CPU": ACTOR_CPUS, **gpu}] * count)
    try:
        result_of(together.ready(), "room for the actors of a fold")
        remote = ray.remote(_Shard).options(**options, scheduling_strategy=PlacementGroupSchedulingStrategy(together))
        bare = [table.bare() for table in inputs]
        yield Shards([remote.remote(bare, mine, pool) for mine in owned], owned)
    finally:
        remove_placement_group(together)  # and with it the actors


def fold_parts(function: Callable[[list[pa.Table]], Mergeable], inputs: Sequence[Table], *, pool: Pool) -> Any:
    with shards(inputs, pool=pool) as once:
        return once.fold(function)


def groups_of(parts: Sequence[str]) -> list[Sequence[str]]:
    return cut(parts, min(len(parts), max(GROUPS, -(-len(parts) // GROUP_PARTS))))


def cut(items: Sequence[Any], count: int) -> list[Any]:
    """Contiguous runs of nearly equal length."""
    edges = [len(items) * n // count for n in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(edges)]


class _Shard:
    def __init__(self, inputs: list[Table], groups: Sequence[Sequence[str]], pool: Pool) -> None:
        self.inputs, self.groups = inputs, groups
        self.pool, self.of, self.held = pool, None, dict[int, Any]()

    def fold(self, function: Callable[[Any], Mergeable], of: Any) -> Any:
        if of is None:
            return reduce(add, map(function, itertools.chain.from_iterable(map(self._tables, self.groups))))
        if of != self.of:
            self.of, self.held = of, {}
            self.left = HELD_SHARE * host_bytes(self.pool)
        return reduce(add, (function(self._group(number)) for number in range(len(self.groups))))

    def _group(self, number: int) -> Any:
        if number in self.held:
            return self.held[number]
        assert self.of is not None
        made = self.of(self._tables(self.groups[number]))
        if made.nbytes <= self.left:
            self.held[number] = made
            self.left -= made.nbytes
        return made

    def _tables(self, parts: Sequence[str]) -> Iterator[list[pa.Table]]:
        with read_ahead(self.inputs, parts) as inputs:
            for part in parts:
                yield [table.read(part) for table in inputs]

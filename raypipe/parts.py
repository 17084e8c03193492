"""The two verbs on parts, and the only module that schedules work on Ray.

`map_parts`: part N of the output from part N of the inputs, streamed by Ray Data: read tasks, an actor pool, write tasks,
overlapping; the driver sees one small receipt a part. `fold_parts` (and `Shards`, for several folds over rows kept in
memory): parts to a small state with `+`, merged in part order. `map_items` is for work that is not one part to one part.

A part travels as one row, an Envelope, because Ray Data cuts, joins and drops blocks by their rows.

Actors hold their CPUs to the end, so an actor reserves 0.9 CPU and each read and write task 0.1: there is always a CPU to
read with, and no step equals another (equal ones would be fused, and the model would wait for every read).
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.util.annotations import RayDeprecationWarning
from tqdm import tqdm

from raypipe.config import Pool
from raypipe.envelope import Envelope
from raypipe.errors import ConfigError, DataError, RaypipeError
from raypipe.stage import Table, check_aligned, columns_digest_of, count_rows, encode_part
from raypipe.store import Folder

log = logging.getLogger("raypipe")
ACTOR_CPUS, IO_CPUS = 0.9, 0.1
RETRIES = 3  # of a part whose process died; Ray's default is for ever

PartFunction = Callable[[list[pa.Table]], pa.Table]


class Mergeable(Protocol):
    def __add__(self, other: Any) -> Any: ...


def map_parts(
    make: Callable[[], PartFunction],
    inputs: Sequence[Table],
    out: Folder,
    *,
    pool: Pool,
    accelerator: str | None = None,
) -> list[str]:
    """Make every missing part of `out` from the parts of the same name; returns all part names, in order.

    `make` runs once in each actor (load the model there); what it returns takes one table per input and gives one table.
    """
    parts = list(inputs[0].parts)
    present = set(out.list())
    todo = [part for part in parts if part not in present]
    if not todo:
        return parts
    low, high = fit_actors(pool, len(todo))
    log.info("%s: %d of %d parts to make, %d actors", out.name, len(todo), len(parts), high)
    _prepare_ray_data()
    receipts = (
        ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo))
        .map_batches(
            _read,
            batch_size=1,
            fn_kwargs={"inputs": [table.bare() for table in inputs]},
            num_cpus=IO_CPUS,
            max_retries=RETRIES,
        )
        .map_batches(
            _Call,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_kwargs={"make": make},
            compute=ray.data.ActorPoolStrategy(min_size=low, max_size=high, initial_size=high),
            num_cpus=ACTOR_CPUS,
            num_gpus=pool.gpus or None,
            accelerator_type=accelerator if pool.gpus else None,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
        .map_batches(
            _write, batch_size=1, batch_format="pyarrow", fn_kwargs={"out": out}, num_cpus=IO_CPUS, max_retries=RETRIES
        )
        .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    opened = (Envelope.open(batch.slice(row, 1)).check() for batch in receipts for row in range(len(batch)))
    done = [receipt.part for receipt in track(opened, out.name, len(todo), "parts")]
    if sorted(done) != sorted(todo):
        raise DataError(
            f"{out.path}: got {len(done)} receipts, wanted {len(todo)}. Run again: committed parts are kept"
        )
    return parts


def map_items(function: Callable[[Any], Any], items: Sequence[Any], *, label: str) -> list[Any]:
    """One Ray task an item; results in the order of `items`. The function commits what it makes."""
    task = ray.remote(num_cpus=ACTOR_CPUS, max_retries=RETRIES)(_apply)
    shared = ray.put(function)
    places = {task.remote(shared, item): place for place, item in enumerate(items)}
    results: list[Any] = [None] * len(items)

    def as_they_land() -> Iterator[int]:
        waiting = list(places)
        while waiting:
            done, waiting = ray.wait(waiting)
            results[places[done[0]]] = _get(done[0])
            yield places[done[0]]

    for _ in track(as_they_land(), label, len(items), "items"):
        pass
    return results


class Shards:
    """Actors that each own a contiguous run of parts, and keep it in memory between folds where `keep` says so."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def fold(self, function: Callable[[list[pa.Table]], Mergeable]) -> Any:
        """Sum, in part order, of `function` of every part. States must add up the same under any sharding."""
        states = [_get(state) for state in [actor.fold.remote(function) for actor in self._actors]]
        return reduce(add, states)


@contextmanager
def shards(inputs: Sequence[Table], *, pool: Pool, keep: bool) -> Iterator[Shards]:
    parts = inputs[0].parts
    _, count = fit_actors(pool, len(parts))
    cuts = [len(parts) * n // count for n in range(count + 1)]
    options = {"num_cpus": ACTOR_CPUS, "num_gpus": pool.gpus, "max_restarts": RETRIES, "max_task_retries": RETRIES}
    remote = ray.remote(_Shard).options(**options)
    actors = [remote.remote([table.bare() for table in inputs], parts[a:b], keep) for a, b in itertools.pairwise(cuts)]
    try:
        yield Shards(actors)
    finally:
        for actor in actors:
            ray.kill(actor)


def fold_parts(function: Callable[[list[pa.Table]], Mergeable], inputs: Sequence[Table], *, pool: Pool) -> Any:
    with shards(inputs, pool=pool, keep=False) as once:
        return once.fold(function)


def device_of(pool: Pool) -> str:
    """Where an actor of this pool computes. Ray shows an actor that reserved no GPU all of them."""
    return "cuda" if pool.gpus else "cpu"


def fit_actors(pool: Pool, num_parts: int) -> tuple[int, int]:
    """(min, max) actors for this cluster and so many parts; ConfigError where the minimum cannot fit."""
    low, high = pool.actors or (1, sys.maxsize)
    high = fit(low, high, pool.gpus, "actors")
    return min(low, num_parts), min(high, num_parts)


def fit(low: int, high: int, gpus: float, what: str) -> int:
    """How many actors or workers, at most `high`, the nodes can hold; ConfigError for fewer than `low`: Ray would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus_gpus = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    if (found := room(cpus_gpus, gpus)) < low:
        raise ConfigError(
            f"resources: {low} {what} of {ACTOR_CPUS} CPUs and {gpus:g} GPUs are asked for, and the cluster has "
            f"{sum(cpus for cpus, _ in cpus_gpus):g} CPUs and {sum(g for _, g in cpus_gpus):g} GPUs on {len(nodes)} nodes: "
            f"room for {found}. Ask for fewer, or add nodes"
        )
    if found < high < sys.maxsize:
        log.info("at most %d %s fit this cluster, %d were allowed", found, what, high)
    return min(found, high)


def room(cpus_gpus: Sequence[tuple[float, float]], gpus: float) -> int:
    """Actors that fit nodes of so many CPUs and GPUs, none across two nodes or GPUs, with a tenth of a CPU left to read with."""
    fitting, spare = 0, 0
    for node_cpus, node_gpus in cpus_gpus:
        tenths = round(node_cpus * 10)
        here = tenths // round(ACTOR_CPUS * 10)
        if gpus:
            here = min(here, int(node_gpus) * int(1 / gpus) if gpus <= 1 else int(node_gpus / gpus))
        fitting, spare = fitting + here, spare + tenths - here * round(ACTOR_CPUS * 10)
    return fitting if spare or not fitting else fitting - 1


def track(done: Iterable[Any], label: str, total: int, unit: str) -> Iterator[Any]:
    """Pass through, showing a live line on a terminal and a log line every 30 s elsewhere."""
    last = started = time.monotonic()
    for count, item in enumerate(
        tqdm(done, label, total, unit=f" {unit}", leave=False, disable=not sys.stderr.isatty()), 1
    ):
        yield item
        if not sys.stderr.isatty() and (now := time.monotonic()) - last > 30:
            last, left = now, (now - started) * (total - count) / count
            log.info("%s %d/%d %s, about %.0f s left", label, count, total, unit, left)


def _apply(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _read(batch: dict[str, Any], inputs: list[Table]) -> pa.Table:
    part = str(batch["part"][0])
    try:
        tables = tuple(table.read(part) for table in inputs)
    except RaypipeError as error:
        return Envelope.failed(part, error).seal()
    return Envelope(part, tables, {str(n): columns_digest_of(table) for n, table in enumerate(tables)}).seal()


class _Call:
    """An actor: makes the part function once, then calls it once a part. An error of ours in making it is each part's error."""

    def __init__(self, make: Callable[[], PartFunction]) -> None:
        self.refusal: RaypipeError | None = None
        try:
            self.function = make()
        except RaypipeError as error:
            self.refusal = error

    def __call__(self, sealed: pa.Table) -> pa.Table:
        given = Envelope.open(sealed)
        if given.error:
            return sealed
        if self.refusal:
            return Envelope.failed(given.part, self.refusal).seal()
        started = time.perf_counter()
        try:
            table = self.function(list(given.tables))
            check_aligned(table, given.tables[0], given.part)
        except RaypipeError as error:
            return Envelope.failed(given.part, error).seal()
        return Envelope(given.part, (table,), given.inputs, time.perf_counter() - started).seal()


def _write(sealed: pa.Table, out: Folder) -> pa.Table:
    """Commit, then return an empty envelope as receipt. A part with an error is not written: the next run makes it again."""
    made = Envelope.open(sealed)
    if made.error:
        return sealed
    try:
        (table,) = made.tables
        out.put(made.part, encode_part(table, counts=count_rows(table), seconds=made.seconds, inputs=made.inputs))
    except RaypipeError as error:
        return Envelope.failed(made.part, error).seal()
    return Envelope(made.part).seal()


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaypipeError):
            raise error.cause from error
        raise


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


def _prepare_ray_data() -> None:
    """Before a dataset is made, as it copies its settings then.

    Without max_errored_blocks=0 a part that raises could be skipped. The guard against no progress counts only finished
    parts, so it would end a run whose parts take half an hour; what can never fit is refused before. Retries have no named
    parameter yet (Ray 2.60), and Ray warns of the only way to bound them.
    """
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)

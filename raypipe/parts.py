"""The two verbs on parts, and the only module that schedules work on Ray.

`map_parts`: part N of the output from part N of the inputs, streamed by Ray Data: read tasks, an actor pool, write tasks,
overlapping; the driver sees one small receipt a part. `fold_parts` (and `Shards`, for several folds over rows kept in
memory): parts to a small state with `+`, merged in part order. `map_items` is for work that is not one part to one part.

A part travels as ONE row. Whatever in Ray Data splits, merges or drops works on rows of a block, so a one-row envelope
passes all of it, also when the part has no rows, and batch_size=1 means "one part". Wrapping is zero-copy.

Actors hold their CPUs to the end, so an actor reserves 0.9 CPU and each read and write task 0.1: there is always a CPU to
read with, and no step equals another (equal ones would be fused, and the model would wait for every read).
"""

from __future__ import annotations

import itertools
import json
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
import pyarrow.compute as pc
import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.util.annotations import RayDeprecationWarning
from tqdm import tqdm

from raypipe.config import Pool
from raypipe.errors import ConfigError, DataError, RaypipeError
from raypipe.stage import Table, check_aligned, encode_part
from raypipe.store import Folder

log = logging.getLogger("raypipe")
ACTOR_CPUS, IO_CPUS, IO_TASKS = 0.9, 0.1, 2
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
    _quiet_ray_data()
    receipts = (
        ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo))
        .map_batches(_read, batch_size=1, fn_kwargs={"inputs": list(inputs)}, num_cpus=IO_CPUS, max_retries=RETRIES)
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
    rows = (receipt for batch in receipts for receipt in batch.to_pylist())
    done = [receipt["part"] for receipt in track(map(_checked, rows), out.path, len(todo), "parts")]
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

    def __init__(self, inputs: Sequence[Table], actors: Sequence[Any]) -> None:
        self.inputs = inputs
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
    actors = [remote.remote(list(inputs), parts[a:b], keep) for a, b in itertools.pairwise(cuts)]
    try:
        yield Shards(inputs, actors)
    finally:
        for actor in actors:
            ray.kill(actor)


def fold_parts(function: Callable[[list[pa.Table]], Mergeable], inputs: Sequence[Table], *, pool: Pool) -> Any:
    with shards(inputs, pool=pool, keep=False) as once:
        return once.fold(function)


def fit_actors(pool: Pool, num_parts: int) -> tuple[int, int]:
    """(min, max) actors that this cluster can hold beside the read and write tasks; ConfigError where the minimum cannot."""
    resources = ray.cluster_resources()
    tenths = round(resources.get("CPU", 0) * 10) - round(IO_TASKS * IO_CPUS * 10)
    room = tenths // round(ACTOR_CPUS * 10)
    if pool.gpus:
        room = min(room, int(resources.get("GPU", 0) / pool.gpus))
    low, high = pool.actors or (1, max(room, 1))
    if low > room:
        raise ConfigError(
            f"resources: {low} actors of {ACTOR_CPUS} CPUs and {pool.gpus} GPUs are asked for, but the cluster has "
            f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs, room for {room}. Lower actors, or add nodes"
        )
    if pool.actors and high > room:
        log.info("at most %d actors fit this cluster, %d were allowed", room, high)
    high = max(1, min(high, room, num_parts))
    return min(low, high), high


def track(done: Iterable[Any], label: str, total: int, unit: str) -> Iterator[Any]:
    """Pass through, showing a live line on a terminal and a log line every 30 s elsewhere."""
    label, started = label.rpartition("/")[2], time.monotonic()
    last = started
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
        return _envelope(part, [table.read(part) for table in inputs])
    except RaypipeError as error:
        return _envelope(part, [pa.table({}) for _ in inputs], error=error)


class _Call:
    """An actor: makes the part function once, then calls it once a part."""

    def __init__(self, make: Callable[[], PartFunction]) -> None:
        self.function = make()

    def __call__(self, envelope: pa.Table) -> pa.Table:
        part, tables, account = _open(envelope)
        if account["error"]:
            return _envelope(part, [pa.table({})], **account)
        started = time.perf_counter()
        try:
            table = self.function(tables)
            if "sample_id" in table.column_names and "sample_id" in tables[0].column_names:
                check_aligned(table, tables[0].column("sample_id"), part)
        except RaypipeError as error:
            return _envelope(part, [pa.table({})], error=error)
        return _envelope(part, [table], seconds=time.perf_counter() - started, inputs=account["inputs"])


def _write(envelope: pa.Table, out: Folder) -> pa.Table:
    """Commit, then return a receipt. A part with an error is not written, so the next run makes it again."""
    part, (table,), account = _open(envelope)
    if not account["error"]:
        try:
            out.put(
                part, encode_part(table, counts=count_rows(table), seconds=account["seconds"], inputs=account["inputs"])
            )
        except RaypipeError as error:
            account["error"] = [type(error).__name__, str(error)]
    return pa.table({"part": [part], "error": [json.dumps(account["error"])]})


def count_rows(table: pa.Table) -> dict[str, int]:
    """Rows by status or reason; where a table has neither, by whether the column after sample_id is there."""
    for name in ("status", "reason"):
        if name in table.column_names:
            return {str(item["values"]): item["counts"] for item in pc.value_counts(table[name]).to_pylist()}
    nulls = table.column(min(1, table.num_columns - 1)).null_count
    return {name: count for name, count in (("ok", len(table) - nulls), ("null", nulls)) if count}


def _envelope(
    part: str, tables: Sequence[pa.Table], *, error: Any = None, seconds: float = 0.0, inputs: Any = None
) -> pa.Table:
    if isinstance(error, RaypipeError):
        error = [type(error).__name__, str(error)]
    if inputs is None:
        metadata = [(table.schema.metadata or {}).get(b"raypipe") for table in tables]
        inputs = {str(place): json.loads(text)["columns"] for place, text in enumerate(metadata) if text}
    account = json.dumps({"error": error, "seconds": seconds, "inputs": inputs})
    columns = {f"rows_{place}": _as_one_row(table) for place, table in enumerate(tables)}
    return pa.table({"part": [part], "account": [account], **columns})


def _as_one_row(table: pa.Table) -> pa.Array:
    table = table.combine_chunks()
    columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
    fields = [pa.field(name, column.type) for name, column in zip(table.column_names, columns, strict=True)]
    if not columns:
        columns, fields = [pa.nulls(0)], [pa.field("none", pa.null())]
    return pa.LargeListArray.from_arrays(
        pa.array([0, len(columns[0])], pa.int64()), pa.StructArray.from_arrays(columns, fields=fields)
    )


def _open(envelope: pa.Table) -> tuple[str, list[pa.Table], dict[str, Any]]:
    """`flatten`, not `values`: Ray hands out slices, and `values` ignores the slice."""
    rows = [envelope[name].chunk(0).flatten() for name in envelope.column_names if name.startswith("rows_")]
    return (
        envelope["part"][0].as_py(),
        [pa.Table.from_struct_array(row) for row in rows],
        json.loads(envelope["account"][0].as_py()),
    )


def _checked(receipt: dict[str, Any]) -> dict[str, Any]:
    if error := json.loads(receipt["error"]):
        kind, text = error
        raise next(known for known in _errors(RaypipeError) if known.__name__ == kind)(text)
    return receipt


def _errors(kind: type[RaypipeError]) -> list[type[RaypipeError]]:
    return [kind, *(known for child in kind.__subclasses__() for known in _errors(child))]


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


def _quiet_ray_data() -> None:
    """A dataset copies its settings when it is made. Without max_errored_blocks=0 a part that raises could be skipped.

    Retries have no named parameter yet (Ray 2.60), and Ray warns of the only way to bound them.
    """
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = 0
    logging.getLogger("ray.data").setLevel(logging.ERROR)

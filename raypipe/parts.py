"""Map: part N of the output from part N of the inputs, streamed by Ray Data: read tasks, an actor pool, write tasks, overlapping.

The driver sees one small receipt a part. A part travels as one row, an Envelope, because Ray Data cuts, joins and drops
blocks by their rows.

Actors hold their CPUs to the end, so an actor reserves 0.9 CPU and each read and write task 0.1: there is always a CPU to
read with, and no step equals another (equal ones would be fused, and the model would wait for every read).

Whatever dies is begun again, bounded for each part by the gate, not for each actor: an actor on reclaimed machines may die
often. Parts are begun in an order of chance, so that two drivers on one folder seldom take the same one.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import closing
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import OutOfMemoryError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

from raypipe import envelope, stopping
from raypipe.config import Pool
from raypipe.envelope import ATTEMPTS, Envelope, PartFunction
from raypipe.errors import DataError
from raypipe.gate import gate
from raypipe.items import POLL_S, track
from raypipe.part import Footer, Table
from raypipe.sizing import ACTOR_CPUS, IO_CPUS, fit_actors
from raypipe.store import Folder

log = logging.getLogger("raypipe")
IO_RETRIES = 10  # of a read or write task
LEAVE_S = 3.0  # for Ray Data to end its actors where a map is left, as that must not meet the end of Ray
LIGHT_PARTS = 10  # sent to an actor at once where each takes milliseconds: 5 ms a part instead of 31
BLOCKS_AN_ACTOR = 500  # of one dataset, then a new one: Ray Data keeps 10 kB of statistics a block in the driver


def map_parts(
    make: Callable[[], PartFunction],
    inputs: Sequence[Table],
    out: Folder,
    *,
    pool: Pool,
    accelerator: str | None = None,
    light: bool = False,
    calls: int = 1,
) -> dict[str, Footer | None]:
    """Make every missing part of `out` from the parts of the same name; returns all, in order, with the footers of those made.

    `make` runs once in each actor (load the model there); what it returns takes one table per input and gives one table.
    `light` says that a part takes milliseconds: several then travel together. With two `calls` at once an actor prepares a part
    while it computes another (see envelope).
    """
    made: dict[str, Footer | None] = dict.fromkeys(inputs[0].parts)
    before = set(out.list()) if made else set()
    if not (todo := [part for part in made if part not in before]):
        return made
    low, high = fit_actors(pool, len(todo))
    log.info("%s: %d of %d parts to make, %d actors", out.name, len(todo), len(made), high)
    random.shuffle(todo)
    work = f"{out.path} {uuid.uuid4().hex}"
    actors = {
        "fn_constructor_kwargs": {"make": make, "out": out, "gate": gate(), "work": work},
        "compute": ray.data.ActorPoolStrategy(
            min_size=low,
            max_size=high,
            initial_size=high,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=True,  # envelope.Call brings its own order
        ),
        "num_cpus": ACTOR_CPUS,
        "num_gpus": pool.gpus or None,
        "accelerator_type": accelerator if pool.gpus else None,
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    _prepare_ray_data()
    window = BLOCKS_AN_ACTOR * high * (LIGHT_PARTS if light else 1)
    receipts = (
        receipt
        for first in range(0, len(todo), window)
        for receipt in _stream(todo[first : first + window], inputs, out, actors, high, light)
    )
    missing, there, twice = set(todo), 0, 0  # by another driver, or by an actor that died since
    for receipt in track(_landing(receipts, work, out, len(todo)), out.name, len(todo), "parts", Tally()):
        missing.discard(receipt.part)
        made[receipt.part] = receipt.footer
        there, twice = there + (receipt.footer is None or receipt.in_vain), twice + receipt.in_vain
    if missing:
        raise DataError(
            f"{out.path}: {len(missing)} of {len(todo)} parts are missing. Run again: committed parts are kept"
        )
    if there:
        log.info("%s: %d parts were there meanwhile, %d of them made twice", out.name, there, twice)
    return made


class Tally:
    """What a map has made so far, in words: tokens a second where its parts count them, and rows that are not ok."""

    def __init__(self) -> None:
        self.tokens, self.counts = 0.0, Counter[str]()
        self.since: float | None = None  # the first part landed, as loading a model is no rate

    def __call__(self, receipt: Envelope) -> str:
        if receipt.footer is None:
            return ""
        self.counts.update(receipt.footer["counts"])
        tokens = receipt.footer["figures"].get("num_tokens", 0)
        if self.since is None:
            self.since, tokens = time.monotonic(), 0
        self.tokens += tokens
        rate = self.tokens / max(time.monotonic() - self.since, 1e-3)
        others = [f"{count:,} {status}" for status, count in sorted(self.counts.items()) if status != "ok"]
        return ", ".join([f"{rate:,.0f} tokens/s"] * bool(self.tokens) + others)


def _stream(
    todo: Sequence[str], inputs: Sequence[Table], out: Folder, actors: Mapping[str, Any], high: int, light: bool
) -> Iterator[Envelope]:
    """One dataset, and its receipts as they come."""
    blocks = _num_blocks(len(todo), high, light)
    tasks = {
        "num_cpus": IO_CPUS,
        "concurrency": min(2 * high, blocks),  # each is a process that imports much
        "max_retries": IO_RETRIES,
    }
    batches = (
        ray.data.from_items([{"part": part} for part in todo], override_num_blocks=blocks)
        .map_batches(_read, batch_size=1, fn_kwargs={"inputs": [table.bare() for table in inputs]}, **tasks)
        .map_batches(_Call, batch_size=1, batch_format="pyarrow", **actors)
        .map_batches(_write, batch_size=1, batch_format="pyarrow", fn_kwargs={"out": out}, **tasks)
        .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    for batch in batches:
        for row in range(len(batch)):
            yield Envelope.open(batch.slice(row, 1))


def _num_blocks(num_parts: int, actors: int, light: bool) -> int:
    """One part a block, so that a kill costs one; light ones together, while every actor still gets several blocks."""
    return max(-(-num_parts // LIGHT_PARTS), min(num_parts, 4 * actors)) if light else num_parts


def _landing(receipts: Generator[Envelope, None, None], work: str, out: Folder, total: int) -> Iterator[Envelope]:
    """Receipts as they come. At an error, or when a stop is asked for, nothing more is begun, and what was gets a grace."""
    seen: set[str] = set()
    begun: set[str] | None = None  # parts to wait for, once the gate is shut
    error, deadline = None, float("inf")
    try:
        with closing(_polled(receipts)) as polled:
            for receipt in polled:
                if receipt is not None and not receipt.stopped:
                    seen.add(receipt.part)
                    error = error or (receipt if receipt.error else None)
                    if not receipt.error:
                        yield receipt
                if begun is None and (error or stopping.asked()):
                    begun, deadline = ray.get(gate().shut.remote(work)), time.monotonic() + stopping.GRACE_S
                if begun is not None and (begun <= seen or time.monotonic() > deadline):
                    break
    except (WorkerCrashedError, OutOfMemoryError) as crash:
        raise DataError(
            f"{out.path}: reading or writing a part killed its process {IO_RETRIES} times (out of memory, or a crash in a "
            f"library); {total - len(seen)} parts are missing. Give the machines more memory"
        ) from crash
    finally:
        gate().forget.remote(work)
        gate().forget.remote(_prepares(work))
    if error:
        error.check()
    stopping.check(out.path)


def _polled(receipts: Generator[Envelope, None, None]) -> Generator[Envelope | None, None, None]:
    """Receipts, and None while none lands: Ray Data's own waiting cannot be interrupted without harm."""
    landed, left = queue.SimpleQueue[Envelope | None](), threading.Event()

    def pump() -> None:
        with closing(receipts):
            for receipt in receipts:
                landed.put(receipt)
                if left.is_set():
                    break

    pumped = stopping.in_background(pump)
    pumped.add_done_callback(lambda _: landed.put(None))
    try:
        while not (pumped.done() and landed.empty()):
            try:
                yield landed.get(timeout=POLL_S)
            except queue.Empty:
                yield None
        pumped.result()
    finally:
        left.set()
        wait([pumped], timeout=LEAVE_S)


def _read(batch: dict[str, Any], inputs: list[Table]) -> pa.Table:
    return envelope.read(str(batch["part"][0]), inputs).seal()


class _Call:
    """The actor. Loading is counted too: a model that does not fit kills its process before any part is begun."""

    def __init__(self, make: Callable[[], PartFunction], out: Folder, gate: Any, work: str) -> None:
        loads, actor = f"{work} loads", ray.get_runtime_context().get_actor_id()
        dies = ray.get(gate.enter.remote(loads, actor)) > ATTEMPTS
        steps = {"prepare": _prepares(work), "compute": work}
        self.call = envelope.Call(
            _dies if dies else make, out, lambda part, step: ray.get(gate.enter.remote(steps[step], part))
        )
        gate.forget.remote(loads, actor)

    def __call__(self, sealed: pa.Table) -> pa.Table:
        return self.call(Envelope.open(sealed)).seal()


def _prepares(work: str) -> str:
    return f"{work} prepares"


def _dies() -> PartFunction:
    raise DataError(
        f"resources: an actor died each of the {ATTEMPTS} times it loaded its model (out of memory, or a crash in a library). "
        "Ask for fewer actors, or give them larger machines"
    )


def _write(sealed: pa.Table, out: Folder) -> pa.Table:
    return envelope.write(Envelope.open(sealed), out).seal()


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

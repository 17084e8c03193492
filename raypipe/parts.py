"""Map: part N of the output from part N of the inputs, by a pool of actors.

The driver sees one small receipt a part (see streams). Whatever dies is begun again, bounded for each part by the gate, not for
each actor: an actor on reclaimed machines may die often. Parts are begun in an order of chance, so that two drivers on one
folder seldom take the same one.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import wait
from contextlib import closing

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from raypipe import stopping
from raypipe.envelope import Envelope, PartFunction
from raypipe.errors import DataError
from raypipe.gate import gate
from raypipe.gauges import show_rows
from raypipe.items import POLL_S, track
from raypipe.part import Footer, Table
from raypipe.resources import Pool
from raypipe.sizing import fit_actors
from raypipe.store import Folder
from raypipe.streams import IO_RETRIES, Work, by_actors, by_ray_data

log = logging.getLogger("raypipe")
LEAVE_S = 3.0  # for Ray Data to end its actors where a map is left, as that must not meet the end of Ray


def map_parts(
    make: Callable[[], PartFunction],
    inputs: Sequence[Table],
    out: Folder,
    *,
    pool: Pool,
    light: bool = False,
    calls: int = 1,
) -> dict[str, Footer | None]:
    """Make every missing part of `out` from the parts of the same name; returns all, in order, with the footers of those made.

    `make` runs once in each actor (load the model there); what it returns takes one table per input and gives one table.
    `light` says that a part takes milliseconds. With two `calls` at once an actor prepares a part while it computes another (see
    envelope).
    """
    made: dict[str, Footer | None] = dict.fromkeys(inputs[0].parts)
    before = set(out.list()) if made else set()
    if not (todo := [part for part in made if part not in before]):
        return made
    low, high = fit_actors(pool, len(todo), light=light)
    log.info("%s: %d of %d parts to make, %d actors", out.name, len(todo), len(made), high)
    random.shuffle(todo)
    bare = [table.bare() for table in inputs]
    work = Work(f"{out.path} {uuid.uuid4().hex}", make, bare, out, pool, (low, high), calls)
    receipts = by_actors(work, todo) if light else by_ray_data(work, todo)
    missing, there, twice = set(todo), 0, 0  # by another driver, or by an actor that died since
    for receipt in track(_landing(receipts, work, len(todo)), out.name, len(todo), "parts", Tally()):
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
        show_rows(self.counts)
        tokens = receipt.footer["figures"].get("num_tokens", 0)
        if self.since is None:
            self.since, tokens = time.monotonic(), 0
        self.tokens += tokens
        rate = self.tokens / max(time.monotonic() - self.since, 1e-3)
        others = [f"{count:,} {status}" for status, count in sorted(self.counts.items()) if status != "ok"]
        return ", ".join([f"{rate:,.0f} tokens/s"] * bool(self.tokens) + others)


def _landing(receipts: Generator[Envelope, None, None], work: Work, total: int) -> Iterator[Envelope]:
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
                    begun, deadline = ray.get(gate().shut.remote(work.name)), time.monotonic() + stopping.GRACE_S
                if begun is not None and (begun <= seen or time.monotonic() > deadline):
                    break
    except (WorkerCrashedError, OutOfMemoryError, RayActorError) as crash:
        raise DataError(
            f"{work.out.path}: reading or writing a part killed its process {IO_RETRIES} times (out of memory, or a crash in a "
            f"library); {total - len(seen)} parts are missing. Give the machines more memory"
        ) from crash
    finally:
        gate().forget.remote(work.name)
        gate().forget.remote(work.prepares)
    if error:
        error.check()
    stopping.check(work.out.path)


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

"""Work that is not one part to one part: one Ray task an item. And what every wait for Ray's results has in common."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from tqdm import tqdm

from raypipe import stopping
from raypipe.envelope import ATTEMPTS
from raypipe.errors import DataError, RaypipeError, Stopped
from raypipe.gauges import show_parts
from raypipe.resources import Pool
from raypipe.sizing import ACTOR_CPUS, fit_actors

log = logging.getLogger("raypipe")
RETRIES = ATTEMPTS - 1  # of an item, or a shard's fold, whose process died; Ray's default is for ever
POLL_S = 0.2  # between looks at whether to stop


def map_items(
    function: Callable[[Any], Any], items: Sequence[Any], *, label: str, name: Callable[[Any], str] = str
) -> list[Any]:
    """One Ray task an item; results in the order of `items`. The function commits what it makes. `name` is for messages."""
    task = ray.remote(num_cpus=ACTOR_CPUS, max_retries=RETRIES)(_apply)
    shared = ray.put(function)
    results: list[Any] = [None] * len(items)
    _, actors = fit_actors(Pool(), len(items))
    ahead = 2 * actors + 2  # of the tasks that run: few, whatever the number of items

    def as_they_land() -> Iterator[int]:
        rest, running = iter(enumerate(items)), dict[Any, int]()
        while True:
            if not stopping.asked():
                for place, item in itertools.islice(rest, ahead - len(running)):
                    running[task.remote(shared, item)] = place
            if not running:
                return stopping.check(label)
            done, _ = ray.wait(list(running), timeout=POLL_S)
            for reference in done:
                place = running.pop(reference)
                results[place] = result_of(reference, name(items[place]))
                yield place
            if stopping.asked():
                _leave(list(running), label)
                running = {}

    for _ in track(as_they_land(), label, len(items), "items"):
        pass
    return results


def track(
    done: Iterable[Any],
    label: str,
    total: int,
    unit: str,
    words: Callable[[Any], str] = lambda _: "",
    first: int = 0,
) -> Iterator[Any]:
    """Pass through, showing a live line on a terminal and a log line every 30 s elsewhere, with the last item's words.

    `first` of `total` were done before.
    """
    last = started = time.monotonic()
    show_parts(first, total)
    bar = tqdm(done, label, total, unit=f" {unit}", leave=False, initial=first, disable=not sys.stderr.isatty())
    for count, item in enumerate(bar, first + 1):
        yield item
        show_parts(count, total)
        bar.set_postfix_str(said := words(item))
        if not sys.stderr.isatty() and (now := time.monotonic()) - last > 30:
            last, left = now, (now - started) * (total - count) / (count - first)
            log.info(
                "%s", ", ".join(filter(None, [f"{label} {count}/{total} {unit}", said, f"about {left:.0f} s left"]))
            )


def _apply(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def result_of(reference: Any, name: str) -> Any:
    """The result; looks meanwhile whether to stop. Errors of ours in their own class; `name` says whose process died."""
    while not ray.wait([reference], timeout=POLL_S)[0]:
        stopping.check(name)
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaypipeError):
            raise error.cause from error
        raise
    except (WorkerCrashedError, OutOfMemoryError, RayActorError) as error:
        raise DataError(
            f"{name}: its process died each time it was begun (out of memory, a crash in a library, or "
            "machines taken away). Make the machines larger, or leave it out of the lake"
        ) from error


def _leave(running: list[Any], label: str) -> None:
    """Give what runs its grace, then stop."""
    _, left = ray.wait(running, num_returns=len(running), timeout=stopping.GRACE_S) if running else ([], [])
    raise Stopped(
        f"{label}: stopped as asked, {len(left)} of {len(running)} tasks in work were not finished. "
        "A rerun goes on from the parts that are committed"
    )

"""Gauges of a run that Ray exports beside its own metrics, on the port of the driver's node.

`raypipe_parts_done` and `raypipe_parts_total`: of the map at work, files of ingest and steps of train among them. `raypipe_rows`: by
status, of those that this driver saw made. Each by run and stage; Prometheus sees them as `ray_raypipe_...`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

_at_work: ContextVar[Mapping[str, str] | None] = ContextVar("at_work", default=None)


@contextmanager
def at_work(run: str, stage: str) -> Iterator[None]:
    """What is set meanwhile is of this run and stage; what is set outside is of none, and left out."""
    token = _at_work.set({"run": run, "stage": stage})
    try:
        yield
    finally:
        _at_work.reset(token)


def current() -> Mapping[str, str]:
    """Run and stage, while there is one at work."""
    return _at_work.get() or {}


def show_parts(done: int, total: int) -> None:
    _set("raypipe_parts_done", done)
    _set("raypipe_parts_total", total)


def show_rows(counts: Mapping[str, int]) -> None:
    for status, count in counts.items():
        _set("raypipe_rows", count, status=status)


def _set(name: str, value: float, **more: str) -> None:
    if tags := current():
        _gauge(name, (*tags, *more)).set(value, tags={**tags, **more})


@cache
def _gauge(name: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, tag_keys=tags)

"""Ray for as long as the work takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from raypipe import stopping

log = logging.getLogger("raypipe")
EXIT_S = 2.0  # for Ray's workers: one in twenty that is interrupted locks itself up as it exits (2.60), for ever


@contextmanager
def ray_session() -> Iterator[None]:
    """The cluster that this process is connected to or RAY_ADDRESS names, else Ray on this machine while the work takes."""
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a thread that is left behind starts Ray anew
    os.environ.setdefault("RAY_task_oom_retries", "10")  # of a task that is ended as memory is short; else for ever
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its daemons write to this terminal
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "10000")  # the next stage's tasks take them over
    local: dict[str, Any] = {} if address else {"include_dashboard": False}
    listened = stopping.is_listening()
    ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    stopping.listen_again(listened)  # ray.init takes SIGTERM for itself
    have = ray.cluster_resources()
    where = f"the cluster at {address}" if address else "this machine"
    log.info("ray on %s: %g CPUs, %g GPUs", where, have.get("CPU", 0), have.get("GPU", 0))
    try:
        yield
    finally:
        workers = list(_workers())
        try:
            ray.shutdown()
            psutil.wait_procs(workers, timeout=EXIT_S)
        finally:  # also where a second Ctrl-C ends the waiting
            for blocked in workers:
                with suppress(psutil.NoSuchProcess):
                    blocked.kill()


def _workers() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::"):
                yield process

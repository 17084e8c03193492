"""Ray for as long as the work takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from raypipe import stopping
from raypipe.errors import ConfigError, RaypipeError, Stopped

log = logging.getLogger("raypipe")
EXIT_S = 2.0  # for Ray's workers: one in twenty that is interrupted locks itself up as it exits (2.60), for ever


@contextmanager
def ray_session() -> Iterator[None]:
    """The cluster that this process is connected to or RAY_ADDRESS names, else Ray on this machine while the work takes."""
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a thread that is left behind starts Ray anew
    os.environ.setdefault("RAY_task_oom_retries", "10")  # of a task that is ended as memory is short; else for ever
    # Ray Data asks for no nodes: all actors are asked for as they are, and what it would ask names no accelerator and gets any
    for resource in ("CPU", "GPU", "MEMORY", "OBJECT_STORE_MEMORY"):
        os.environ.setdefault(f"RAY_DATA_DEFAULT_CLUSTER_SCALING_UP_{resource}_UTIL_THRESHOLD", "2")  # 1 is all of it
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
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except ConnectionError as error:
        raise _refused(address, error) from error
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


def _refused(address: str | None, error: ConnectionError) -> RaypipeError:
    if "AuthenticationError" in str(error.__cause__):
        return ConfigError(
            f"RAY_ADDRESS: the cluster at {address} wants its token, got none or another. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH; `ray job submit` gives a job the cluster's own"
        )
    return Stopped(
        f"RAY_ADDRESS: no Ray answers at {address} ({error}). Start the cluster, or set the address of another; then run again"
    )


def _workers() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::"):
                yield process

"""How many actors or workers a cluster can hold. Ray itself would wait for ever for one too many."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import psutil
import ray

from raypipe.config import Pool
from raypipe.container import STORE_SHARE, cpus, memory_bytes
from raypipe.errors import ConfigError

log = logging.getLogger("raypipe")
ACTOR_CPUS, IO_CPUS = 0.9, 0.1


def device_of(pool: Pool) -> str:
    """Where an actor of this pool computes. Ray shows an actor that reserved no GPU all of them."""
    return "cuda" if pool.gpus else "cpu"


def free_bytes(pool: Pool) -> float:
    """Of memory that an actor of this pool may take where it is. Others may come beside it, so at most an equal share."""
    if pool.gpus:
        import torch

        free, whole = torch.cuda.mem_get_info()
        return float(min(free, whole * min(pool.gpus, 1.0)))
    return host_bytes(pool)


def host_bytes(pool: Pool) -> float:
    """Of the machine's own memory, whatever computes there: an actor's equal share."""
    actors = min(max(cpus(), 1.0), pool.actors[1] if pool.actors else sys.maxsize)
    return float(min(psutil.virtual_memory().available, (1 - STORE_SHARE) * memory_bytes() / actors))


def fit_actors(pool: Pool, num_parts: int) -> tuple[int, int]:
    """(min, max) actors for this cluster and so many parts; ConfigError where the minimum cannot fit."""
    low, high = pool.actors or (1, sys.maxsize)
    high = fit(low, high, pool.gpus, "actors")
    return min(low, num_parts), min(high, num_parts)


def fit(low: int, high: int, gpus: float, what: str) -> int:
    """How many actors or workers, at most `high`, the nodes can hold; ConfigError for fewer than `low`: Ray would wait for ever."""
    cpus_gpus = _nodes()
    if (found := room(cpus_gpus, gpus)) < low:
        raise ConfigError(
            f"resources: {low} {what} of {ACTOR_CPUS} CPUs and {gpus:g} GPUs are asked for, and the cluster has "
            f"{sum(cpus for cpus, _ in cpus_gpus):g} CPUs and {sum(g for _, g in cpus_gpus):g} GPUs on {len(cpus_gpus)} nodes: "
            f"room for {found}. Ask for fewer, or add nodes"
        )
    if found < high < sys.maxsize:
        log.info("at most %d %s fit this cluster, %d were allowed", found, what, high)
    return min(found, high)


def fits(gpus: float) -> int:
    """How many actors or workers the nodes can hold now."""
    return room(_nodes(), gpus)


def _nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs of each node that is alive."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]


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

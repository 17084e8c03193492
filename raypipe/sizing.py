"""How many actors or workers a cluster can hold. Ray itself would wait for ever for one too many."""

from __future__ import annotations

import logging
import sys

import psutil

from raypipe.container import STORE_SHARE, cpus, memory_bytes
from raypipe.errors import ConfigError
from raypipe.nodes import Nodes, alive, at_most
from raypipe.resources import Pool, Shape, TrainWorkers

log = logging.getLogger("raypipe")
ACTOR_CPUS, IO_CPUS = 0.9, 0.1
KIND = "accelerator_type:"  # of a node's resource, before the accelerator's name


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


def fit_actors(pool: Pool, num_parts: int, *, light: bool = False) -> tuple[int, int]:
    """(min, max) actors for so many parts; ConfigError where the minimum can never fit.

    A cluster that grows, grows for them; not for `light` work, which is over before a node has come: it takes what is there.
    """
    (low, high), nodes = limits(pool), at_most()
    high = fit(low, high, pool, "actors", nodes)
    if light:
        high = min(high, max(low, fit_now(pool) or _fit_one_node(pool, nodes)))
    return min(low, num_parts), min(high, num_parts)


def limits(pool: Shape) -> tuple[int, int]:
    """(min, max) actors or workers that are asked for."""
    return pool.workers if isinstance(pool, TrainWorkers) else pool.actors or (1, sys.maxsize)


def fit(low: int, high: int, pool: Shape, what: str, nodes: Nodes | None = None) -> int:
    """How many actors or workers, at most `high`, the cluster can ever hold; ConfigError for fewer than `low`: Ray would wait for ever."""
    nodes = at_most() if nodes is None else nodes
    if (found := room(nodes, pool)) < low:
        cpus, gpus = (sum(kind.get(name, 0) * count for kind, count in nodes) for name in ("CPU", "GPU"))
        kinds = sorted({name.removeprefix(KIND) for kind, _ in nodes for name in kind if name.startswith(KIND)})
        of_kinds = f" ({', '.join(kinds)})" if kinds else ""
        raise ConfigError(
            f"resources: {low} {what} of {demand(pool)} are asked for, and the cluster has at most {cpus:g} CPUs and {gpus:g} "
            f"GPUs{of_kinds} on {sum(count for _, count in nodes)} nodes: room for {found}. Ask for fewer, or add nodes"
        )
    if found < high < sys.maxsize:
        log.info("at most %d %s fit this cluster, %d were allowed", found, what, high)
    return min(found, high)


def demand(pool: Shape) -> str:
    """What one actor or worker reserves."""
    kind = f" ({pool.accelerator})" if pool.accelerator and pool.gpus else ""
    return f"{ACTOR_CPUS} CPUs and {pool.gpus:g} GPUs{kind}"


def fit_now(pool: Shape) -> int:
    """How many actors or workers the nodes that are alive can hold."""
    return room(alive(), pool)


def _fit_one_node(pool: Shape, nodes: Nodes) -> int:
    """The most that any one node can hold: a cluster without nodes gets one."""
    return max((room([(kind, 1)], pool) for kind, count in nodes if count), default=0)


def kind_of(accelerator: str) -> str:
    """The resource by which Ray knows a node with it."""
    return f"{KIND}{accelerator}"


def room(nodes: Nodes, pool: Shape) -> int:
    """Actors that fit nodes with their accelerator, none across two nodes or GPUs, with a tenth of a CPU left there to read with."""
    fitting, spare = 0, 0
    for resources, count in nodes:
        if pool.gpus and pool.accelerator and kind_of(pool.accelerator) not in resources:
            continue
        tenths = round(resources.get("CPU", 0) * 10)
        here = tenths // round(ACTOR_CPUS * 10)
        if pool.gpus:
            gpus = int(resources.get("GPU", 0))
            here = min(here, gpus * int(1 / pool.gpus) if pool.gpus <= 1 else int(gpus / pool.gpus))
        fitting, spare = fitting + count * here, spare + count * (tenths - here * round(ACTOR_CPUS * 10))
    return fitting if spare or not fitting else fitting - 1

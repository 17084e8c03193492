"""How parts get through actors: a stream of receipts, as they come.

`by_ray_data` for a model's work: read tasks, an actor pool that scales between two sizes, write tasks, all overlapping. A part
travels as one row, an Envelope, because Ray Data cuts, joins and drops blocks by their rows. Actors hold their CPUs to the end,
so an actor reserves 0.9 CPU and each read and write task 0.1: there is always a CPU to read with, and no step equals another
(equal ones would be fused, and the model would wait for every read). Where actors name an accelerator, all three stay on its nodes: a
part seldom leaves its machine, and no read keeps the nodes of another stage from going.

`by_actors` where a part takes milliseconds, less than its way through three processes: actors that read, compute and put by
themselves, reading ahead and putting behind in threads.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from raypipe import envelope
from raypipe.envelope import ATTEMPTS, Envelope, PartFunction
from raypipe.errors import DataError
from raypipe.gate import gate
from raypipe.part import Table
from raypipe.read_ahead import read_ahead
from raypipe.resources import Pool
from raypipe.sizing import ACTOR_CPUS, IO_CPUS
from raypipe.store import Folder

IO_RETRIES = 10  # of what reads or writes parts
BLOCKS_AN_ACTOR = 500  # of one dataset, then a new one: Ray Data keeps 10 kB of statistics a block in the driver
LIGHT_PARTS = 10  # that an actor is sent at once where each takes milliseconds
IN_FLIGHT = 2  # calls an actor, so that it never waits for the driver
THREADS = 4  # that put what an actor made of light parts


@dataclass(frozen=True)
class Work:
    """One map: `make` gives the part function, once in each of `actors` actors; `name` is its own in the gate."""

    name: str
    make: Callable[[], PartFunction]
    inputs: Sequence[Table]
    out: Folder
    pool: Pool
    actors: tuple[int, int]
    calls: int = 1  # at once, of one actor

    @property
    def prepares(self) -> str:
        return f"{self.name} prepares"

    def options(self) -> dict[str, Any]:
        """Of an actor. It may die as often as it must: the gate bounds how often a part is begun."""
        return {"num_cpus": ACTOR_CPUS, "max_restarts": -1, "num_gpus": self.pool.gpus, **self.kind()}

    def kind(self) -> dict[str, Any]:
        """Of the nodes that all of it happens on."""
        return {"accelerator_type": self.pool.accelerator} if self.pool.gpus and self.pool.accelerator else {}

    def call(self, gate: Any, entered: Mapping[str, int] | None = None) -> envelope.Call:
        """In an actor; `entered` are parts that are through the gate already, and how often.

        Loading is counted too: a model that does not fit kills its process before any part is begun.
        """
        loads, actor = f"{self.name} loads", ray.get_runtime_context().get_actor_id()
        dies = ray.get(gate.enter.remote(loads, actor)) > ATTEMPTS
        steps = {"prepare": self.prepares, "compute": self.name}

        def enter(part: str, step: str) -> int:
            return (entered or {}).get(part) or int(ray.get(gate.enter.remote(steps[step], part)))

        call = envelope.Call(_dies if dies else self.make, self.out, enter)
        gate.forget.remote(loads, actor)
        return call


def by_ray_data(work: Work, todo: Sequence[str]) -> Generator[Envelope, None, None]:
    """One dataset after the other, each of a bounded number of parts; a part a block, so that a kill costs one."""
    _prepare_ray_data()
    low, high = work.actors
    actors = {
        "fn_constructor_kwargs": {"work": work, "gate": gate()},
        "compute": ray.data.ActorPoolStrategy(
            min_size=low,
            max_size=high,
            initial_size=high,
            max_concurrent_calls_per_actor=work.calls,
            enable_true_multi_threading=True,  # envelope.Call brings its own order
        ),
        "max_task_retries": -1,
        **work.options(),
    }
    window = BLOCKS_AN_ACTOR * high
    for first in range(0, len(todo), window):
        yield from _dataset(work, todo[first : first + window], actors)


def _dataset(work: Work, todo: Sequence[str], actors: Mapping[str, Any]) -> Generator[Envelope, None, None]:
    tasks = {
        "num_cpus": IO_CPUS,
        "concurrency": min(2 * work.actors[1], len(todo)),  # each is a process that imports much
        "max_retries": IO_RETRIES,
        **work.kind(),
    }
    batches = (
        ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo))
        .map_batches(_read, batch_size=1, fn_kwargs={"inputs": work.inputs}, **tasks)
        .map_batches(_Call, batch_size=1, batch_format="pyarrow", **actors)
        .map_batches(_write, batch_size=1, batch_format="pyarrow", fn_kwargs={"out": work.out}, **tasks)
        .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    for batch in batches:
        for row in range(len(batch)):
            yield Envelope.open(batch.slice(row, 1))


def _read(batch: dict[str, Any], inputs: Sequence[Table]) -> pa.Table:
    return envelope.read(str(batch["part"][0]), inputs).seal()


class _Call:
    def __init__(self, work: Work, gate: Any) -> None:
        self.call = work.call(gate)

    def __call__(self, sealed: pa.Table) -> pa.Table:
        return self.call(Envelope.open(sealed)).seal()


def _write(sealed: pa.Table, out: Folder) -> pa.Table:
    return envelope.write(Envelope.open(sealed), out).seal()


def by_actors(work: Work, todo: Sequence[str]) -> Generator[Envelope, None, None]:
    """A few parts a call, still several calls for every actor."""
    count = work.actors[1]
    size = min(LIGHT_PARTS, -(-len(todo) // (4 * count)))
    blocks = (todo[first : first + size] for first in range(0, len(todo), size))
    options = {**work.options(), "max_task_retries": IO_RETRIES}
    actors = [ray.remote(_Light).options(**options).remote(work, gate()) for _ in range(count)]
    running: dict[Any, Any] = {}
    for actor in actors * IN_FLIGHT:
        running |= {actor.do.remote(block): actor for block in itertools.islice(blocks, 1)}
    while running:
        (done,), _ = ray.wait(list(running))
        actor = running.pop(done)
        running |= {actor.do.remote(block): actor for block in itertools.islice(blocks, 1)}
        yield from ray.get(done)


class _Light:
    """Parts pass the gate together. Where one of them was begun before they pass one by one, each committed before the next."""

    def __init__(self, work: Work, gate: Any) -> None:
        self.work, self.gate, self.entered = work, gate, dict[str, int]()
        self.call = work.call(gate, self.entered)

    def do(self, parts: Sequence[str]) -> list[Envelope]:
        entered, put = ray.get(self.gate.enter_together.remote(self.work.name, parts)), []
        self.entered |= entered
        with read_ahead(self.work.inputs, parts) as inputs, ThreadPoolExecutor(THREADS) as writing:
            for part in parts:
                made = self.call(envelope.read(part, inputs))
                put.append(writing.submit(envelope.write, made, self.work.out))
                if not entered:
                    wait(put)
            self.entered.clear()
        return [receipt.result() for receipt in put]


def _dies() -> PartFunction:
    raise DataError(
        f"resources: an actor died each of the {ATTEMPTS} times it loaded its model (out of memory, or a crash in a library). "
        "Ask for fewer actors, or give them larger machines"
    )


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

"""Clustering of 10^5 to 10^7 rows by the stage on Ray: CPU seconds, peak memory, and what Ray adds to plain processes.

    .venv/bin/python benchmarks/scale.py             # about 20 minutes; 8 GB of disk, 2 GB of memory

Parts as embed writes them (4,096 rows x 384, float16, real embeddings with noise), k = 100. Every run has a process of its own
and is watched from this one: CPU seconds of it and all that Ray starts beside it, the largest sum of their PSS. `ray.init` is not
counted. The plain processes do the same to the same parts without Ray: read, fit, assign, put parts, add up distances. They are as
many as Ray has actors, as two at once on the threads of one core take more CPU seconds than one after the other, and their centres
must be the same bits. A run of 1,000 rows says what Ray takes to start actors; a fit's rounds do not depend on rows either, once
there are 100,000. docs/scaling.md is made of these figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.embeddings import BUILD, noisy
from benchmarks.plotting import pyplot
from benchmarks.processes import Cpu, memory_bytes
from benchmarks.record import circumstances, record, result
from raypipe.config import Config
from raypipe.lake import Lake
from raypipe.part import Table, commit_part
from raypipe.stage import Inputs
from raypipe.store import Folder

LINEAR = 0.2  # off the CPU seconds at 10^7 that a line through those at 10^5 and 10^6 foretells
MEMORY_BYTES = 2 << 30  # of driver and Ray, at 10^7
OVERHEAD = 0.2  # of Ray over as many processes without it, at 10^7, in CPU seconds
BASE, SIZES, PART_ROWS, NUM_CLUSTERS = 1000, (10**5, 10**6, 10**7), 4096, 100
ROUNDS = {BASE: 3, 10**5: 5, 10**6: 3, 10**7: 2}
OBJECT_STORE = 100 << 20  # parts do not pass through it
EMBEDDINGS = BUILD / "scale"


def make_parts(num_rows: int) -> None:
    """8 CPU seconds a million. A part that is there is kept."""
    from raypipe.stages.embed import embedding_column

    folder = Folder.at(str(EMBEDDINGS))
    for number in range(len(folder.list("part-")), -(-num_rows // PART_ROWS)):
        rng = np.random.default_rng(number)
        digits, there_N = rng.bytes(16 * PART_ROWS).hex(), np.ones(PART_ROWS, bool)
        ids = [digits[first : first + 32] for first in range(0, len(digits), 32)]
        column = embedding_column(noisy(rng, PART_ROWS), there_N)
        commit_part(
            folder,
            part_name(number),
            pa.table({"sample_id": ids, "embedding": column}),
            counts={"ok": PART_ROWS},
            row_group_size=PART_ROWS,
        )


def part_name(number: int) -> str:
    return f"part-{number:07d}.parquet"


def table_of(num_rows: int, folder: str) -> tuple[Table, int]:
    """The first parts, and how many rows they hold; for 1,000 rows a part of its own."""
    if num_rows >= PART_ROWS:
        count = round(num_rows / PART_ROWS)
        whole = Folder.at(str(EMBEDDINGS))
        manifest = {"counts": {"ok": count * PART_ROWS}, "rows": count * PART_ROWS}
        return Table(whole, tuple(map(part_name, range(count))), manifest=manifest), count * PART_ROWS
    small = Folder.at(folder) / "embed"
    rows = Table(Folder.at(str(EMBEDDINGS)), ()).read(part_name(0)).slice(0, num_rows).replace_schema_metadata(None)
    commit_part(small, part_name(0), rows, counts={"ok": num_rows})
    return Table(small, (part_name(0),), manifest={"counts": {"ok": num_rows}, "rows": num_rows}), num_rows


def config_of(root: str) -> Config:
    tree = {
        "name": "benchmark", "model": "-", "ingest": {"paths": ["-"]}, "embed": {"model": "-"},
        "cluster": {"num_clusters": NUM_CLUSTERS}, "storage": {"root": root},
    }  # fmt: skip
    return Config.model_validate_json(json.dumps(tree))


def by_ray(num_rows: int, folder: str) -> None:
    import ray

    from raypipe.session import ray_session
    from raypipe.stages import cluster

    table, _ = table_of(num_rows, folder)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=OBJECT_STORE,
    )
    with ray_session():
        mark("begin")
        cluster.run(config_of(folder), Inputs(Lake((), ()), {"embed": table}), Folder.at(folder) / "cluster")
        mark("end")
    ray.shutdown()


def plain(num_rows: int, folder: str) -> None:
    """The same steps by the same functions in as many processes, without Ray: forked, so that starting them costs nothing."""
    from raypipe.folds import cut, groups_of
    from raypipe.ops import kmeans
    from raypipe.sizing import room
    from raypipe.stages.cluster import npy

    table, num_ok = table_of(num_rows, folder)
    config, out = config_of(folder), Folder.at(folder) / "cluster"
    mark("begin")
    fit = kmeans.Fit(num_ok, NUM_CLUSTERS, config.cluster.metric, config.seed)
    groups = groups_of(table.parts)
    owned = cut(groups, min(room([(os.cpu_count() or 1, 0)], 0), len(groups)))
    with closing(Forked(partial(Own, fit, config, table, out), owned)) as processes:

        def fold(function: Any) -> Any:
            return reduce(add, processes.each(partial(Own.fold, function=function)))

        state = fit.start(fold)
        while not state.done:
            state = fit.advance(fold, state)
        out.put("centers.npy", npy(state.centers_KD))
        processes.each(Own.assign)
        reduce(add, processes.each(Own.distances))
        mark("end")


class Own:
    """What one process does with its groups of parts."""

    def __init__(self, fit: Any, config: Config, table: Table, out: Folder, groups: Sequence[Sequence[str]]) -> None:
        self.config, self.table, self.out = config, table, out
        self.parts = [part for group in groups for part in group]
        wanted = table.only("sample_id", "embedding")
        self.held = [fit.drawn([wanted.read(part)] for part in group) for group in groups]

    def fold(self, function: Any) -> Any:
        return reduce(add, map(function, self.held))

    def assign(self) -> None:
        from raypipe.part import count_rows, figures_of
        from raypipe.stages.cluster import Assign

        assign = Assign(self.out, self.config.cluster.metric, "cpu")
        for part in self.parts:
            made = assign([self.table.read(part)])
            commit_part(self.out, part, made, counts=count_rows(made), figures=figures_of(made))

    def distances(self) -> Any:
        from raypipe.ops.distances import MeasureDistances

        measure, columns = MeasureDistances(NUM_CLUSTERS), Table(self.out, ()).only("cluster_id", "sq_distance")
        return reduce(add, (measure([columns.read(part)]) for part in self.parts))


class Forked:
    """Processes that each make their own state, then apply to it what they are sent."""

    def __init__(self, make: Callable[[Any], Any], owned: Sequence[Any]) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipes = []
        for mine in owned:
            here, there = fork.Pipe()
            fork.Process(target=_serve, args=(there, make, mine), daemon=True).start()
            self.pipes.append(here)

    def each(self, function: Callable[[Any], Any]) -> list[Any]:
        for pipe in self.pipes:
            pipe.send(function)
        return [pipe.recv() for pipe in self.pipes]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()


def _serve(pipe: Any, make: Callable[[Any], Any], mine: Any) -> None:
    state = make(mine)
    with suppress(EOFError):
        while True:
            pipe.send(pipe.recv()(state))


WAYS = {"ray": by_ray, "plain": plain}


def mark(what: str) -> None:
    """Says it to whoever watches, and waits until it has looked."""
    print(what, flush=True)
    input()


def watched(way: str, num_rows: int, folder: Path) -> dict[str, Any]:
    """A run in a process of its own: CPU and wall seconds, of them until the centres were put, and the peak of memory."""
    command = [sys.executable, __file__, "--way", way, "--rows", str(num_rows), "--folder", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        watch = Watch(process.pid, folder / "cluster" / "centers.npy")
        marks = {}
        for what in ("begin", "end"):
            assert process.stdout and process.stdin
            if process.stdout.readline().strip() != what:
                sys.exit(f"{way}, {num_rows} rows: it ended. It says above why")
            marks[what] = (watch.cpu.total(), time.perf_counter())
            print(file=process.stdin, flush=True)
        process.communicate()
    begin, end, fitted = marks["begin"], marks["end"], watch.fitted or marks["end"]
    return {
        "cpu_s": end[0] - begin[0],
        "wall_s": end[1] - begin[1],
        "fit_cpu_s": fitted[0] - begin[0],
        "fit_wall_s": fitted[1] - begin[1],
        "peak_bytes": watch.peak,
        "at_peak_mb": watch.at_peak,
    }


class Watch(threading.Thread):
    """Memory of a process and all below it, twice a second, and when a file appeared."""

    def __init__(self, pid: int, awaited: Path) -> None:
        super().__init__(daemon=True)
        self.cpu, self.root, self.awaited = Cpu(pid), psutil.Process(pid), awaited
        self.fitted: tuple[float, float] | None = None
        self.peak, self.at_peak = 0, dict[str, int]()
        self.start()

    def run(self) -> None:
        while self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE:
            if self.fitted is None and self.awaited.is_file():
                self.fitted = self.cpu.total(), time.perf_counter()
            used = memory_bytes(self.root)
            if (total := sum(used.values())) > self.peak:
                self.peak, self.at_peak = total, {names(pid): size >> 20 for pid, size in used.items()}
            time.sleep(0.5)


def names(pid: int) -> str:
    try:
        return f"{pid} {' '.join(psutil.Process(pid).cmdline())[:60].rpartition('/')[2]}"
    except psutil.NoSuchProcess:
        return str(pid)


def measure(sizes: Sequence[int]) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Interleaved rounds by way and size. Centres of the two ways are compared."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {way: {size: [] for size in sizes} for way in WAYS}
    for number in range(max(ROUNDS.values())):
        for size in sizes:
            if number >= ROUNDS[size]:
                continue
            centers = set()
            for way in WAYS:
                with tempfile.TemporaryDirectory(dir=BUILD) as folder:
                    found[way][size].append(run := watched(way, size, Path(folder)))
                    centers.add(Path(folder, "cluster", "centers.npy").read_bytes())
                print(
                    f"round {number + 1}  {way:5} {size:10,} rows  {run['cpu_s']:7.1f} s CPU ({run['fit_cpu_s']:.1f} of them the fit)  "
                    f"{run['wall_s']:6.1f} s wall  {run['peak_bytes'] / 2**20:6.0f} MB",
                    flush=True,
                )
            assert len(centers) == 1, "the plain processes have other centres"
    return found


def check(found: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> dict[str, tuple[float, float]]:
    """What is promised: (got, goal), got at most the goal."""
    cpu = {way: {size: middle(runs, "cpu_s") for size, runs in by_size.items()} for way, by_size in found.items()}
    few, more, most = SIZES
    a_row = (cpu["ray"][more] - cpu["ray"][few]) / (more - few)
    foretold = cpu["ray"][more] + a_row * (most - more)
    return {
        f"CPU seconds at {most:.0e} rows off a straight line": (abs(cpu["ray"][most] / foretold - 1), LINEAR),
        f"peak GB at {most:.0e} rows": (middle(found["ray"][most], "peak_bytes") / 2**30, MEMORY_BYTES / 2**30),
        f"CPU seconds at {most:.0e} rows over plain processes": (cpu["ray"][most] / cpu["plain"][most] - 1, OVERHEAD),
    }


def middle(runs: Sequence[Mapping[str, Any]], figure: str) -> float:
    return float(statistics.median(run[figure] for run in runs))


def plot(found: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for way, label in (("ray", "stage on Ray"), ("plain", "plain processes")):
        sizes = list(found[way])
        left.loglog(sizes, [middle(found[way][size], "cpu_s") for size in sizes], "o-", label=label)
        right.semilogx(sizes, [middle(found[way][size], "peak_bytes") / 2**30 for size in sizes], "o-", label=label)
    left.set(xlabel="rows", ylabel="CPU seconds, k = 100")
    right.axhline(MEMORY_BYTES / 2**30, color="grey", linestyle=":", label="goal")
    right.set(xlabel="rows", ylabel="peak memory, GB", ylim=(0, None))
    left.legend()
    right.legend()
    figure.savefig(result("scale").with_suffix(".png"), dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="the 7.7 GB of parts, for the next time")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="rows; with fewer nothing is recorded")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.way:
        WAYS[words.way](words.rows, words.folder)
        return 0
    where, started = circumstances(), time.process_time()
    sizes = [size for size in (BASE, *SIZES) if size <= words.most]
    make_parts(max(sizes))
    print(f"parts made in {time.process_time() - started:.0f} CPU s", flush=True)
    found = measure(sizes)
    if words.most < SIZES[-1]:
        return 0
    if not words.keep:
        shutil.rmtree(EMBEDDINGS)
    return conclude(where, found)


def conclude(where: Mapping[str, Any], found: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> int:
    promises = check(found)
    reached = {name: {"got": round(got, 3), "goal": goal} for name, (got, goal) in promises.items()}
    record("scale", {**where, "clusters": NUM_CLUSTERS, "goals": reached, "runs": found})
    plot(found)
    for name, (got, goal) in promises.items():
        print(f"{name:48} {got:.3f} (goal: at most {goal}){'' if got <= goal else '  MISSED'}")
    return int(any(got > goal for got, goal in promises.values()))


if __name__ == "__main__":
    sys.exit(main())

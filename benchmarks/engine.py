"""What the stage engine adds per part, beside a plain loop over Ray actors; and the driver's memory at many parts.

    .venv/bin/python benchmarks/engine.py            # about 25 minutes; local disk and a Ceph RGW that it starts itself

Both sides do the same work to the same parts (1 MB, two actors): read and check, identity, encode, put. They run in
interleaved rounds over 200 and over 2,000 parts. Two figures: what a map takes to start (per map, whatever its parts), and the
slope between the two sizes, per part: seconds of wall, as one loop waits for the other's latency, and CPU seconds of every
process of the session beside it. Exits with 1 if a goal below is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import pyarrow as pa
import ray

from benchmarks.processes import Cpu
from benchmarks.record import circumstances, record
from raypipe.part import Table, commit_part
from raypipe.parts import map_parts
from raypipe.resources import Pool
from raypipe.session import ray_session
from raypipe.sizing import ACTOR_CPUS
from raypipe.store import Folder

GOAL_MS = {"one part a block": 35.0, "several": 6.0}  # wall ms a part over the loop
GOAL_WORKING = 0.01  # of the time, at 1 s of work a part
GOAL_MEMORY = 1.2  # driver at 10,000 parts over driver at 1,000
SIZES, ROUNDS, ACTORS = (200, 2000), 3, 2
PART_ROWS, ROW_BYTES = 500, 2000


class Identity:
    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        time.sleep(self.seconds)
        return tables[0]


class Plain:
    """The loop's actor: the same reading, checking, encoding and putting."""

    def do(self, part: str, table: Table, out: Folder, seconds: float) -> None:
        rows = table.read(part)
        time.sleep(seconds)
        commit_part(out, part, rows, counts={"ok": len(rows)})


def loop(table: Table, out: Folder, seconds: float = 0.0) -> None:
    """Two tasks in flight for each actor, `ray.wait` for whichever is done."""
    actors = [ray.remote(num_cpus=ACTOR_CPUS)(Plain).remote() for _ in range(ACTORS)]
    todo, running = list(table.parts), {}
    bare = table.bare()

    def send(actor: Any) -> None:
        if todo:
            running[actor.do.remote(todo.pop(), bare, out, seconds)] = actor

    for actor in actors * 2:
        send(actor)
    while running:
        (done,), _ = ray.wait(list(running))
        ray.get(done)
        send(running.pop(done))
    for actor in actors:
        ray.kill(actor)


def engine(table: Table, out: Folder, seconds: float = 0.0, *, light: bool) -> None:
    map_parts(partial(Identity, seconds), [table], out, pool=Pool(actors=(ACTORS, ACTORS)), light=light)


WAYS: dict[str, Callable[..., None]] = {
    "loop": loop,
    "one part a block": partial(engine, light=False),
    "several": partial(engine, light=True),
}


def make_parts(folder: Folder, count: int, rows: int = PART_ROWS) -> Table:
    rng, names = np.random.default_rng(0), []
    texts = [rng.bytes(ROW_BYTES) for _ in range(rows)]
    for number in range(count):
        ids = pa.array([f"{number:016x}{row:016x}" for row in range(rows)])
        names.append(f"part-{number:07d}.parquet")
        commit_part(folder, names[-1], pa.table({"sample_id": ids, "text": pa.array(texts)}), counts={"ok": rows})
    return Table(folder, tuple(names))


@contextmanager
def measured(cpu: Cpu, into: dict[str, list[float]]) -> Iterator[None]:
    used, began = cpu.total(), time.perf_counter()
    yield
    into["wall"].append(time.perf_counter() - began)
    into["cpu"].append(cpu.total() - used)


def per_part(root: Folder) -> dict[str, Any]:
    """Of every way: medians and spread by size, the slope between sizes, and the start."""
    cpu, tables = Cpu(), {size: make_parts(root / f"in-{size}", size) for size in SIZES}
    times: dict[str, dict[int, dict[str, list[float]]]] = {
        way: {size: {"wall": [], "cpu": []} for size in SIZES} for way in WAYS
    }
    for number in range(-1, ROUNDS):  # the first one warms up
        for size in SIZES if number >= 0 else SIZES[:1]:
            for way, run in WAYS.items():
                into = times[way][size] if number >= 0 else {"wall": [], "cpu": []}
                out = root / f"out-{number}-{size}-{way.replace(' ', '-')}"
                with measured(cpu, into):
                    run(tables[size], out)
                for part in out.list():  # the tests' S3 server keeps everything in memory
                    out.delete(part)
                print(
                    f"{root.path[:5]} {way:17} {size:5} parts  {into['wall'][-1]:7.2f} s wall  {into['cpu'][-1]:7.2f} s CPU",
                    flush=True,
                )
    return {way: _slope(by_size) for way, by_size in times.items()}


def _slope(by_size: dict[int, dict[str, list[float]]]) -> dict[str, Any]:
    few, many = SIZES
    figures: dict[str, Any] = {"seconds": by_size}
    for kind in ("wall", "cpu"):
        low, high = (statistics.median(by_size[size][kind]) for size in SIZES)
        slopes = [(b - a) / (many - few) for a, b in zip(by_size[few][kind], by_size[many][kind], strict=True)]
        figures[f"{kind}_ms_a_part"] = 1000 * (high - low) / (many - few)
        figures[f"{kind}_ms_spread"] = [1000 * min(slopes), 1000 * max(slopes)]
        figures[f"{kind}_s_start"] = low - few * (high - low) / (many - few)
    return figures


def working(root: Folder) -> dict[str, float]:
    """Share of time lost to the engine where a part takes 1 s, its start apart: 40 and 120 parts on two actors."""
    table, times = make_parts(root / "in-working", 120), {}
    for way in ("loop", "one part a block"):
        for size in (40, 120):
            cut = Table(table.folder, table.parts[:size])
            began = time.perf_counter()
            WAYS[way](cut, root / f"out-working-{size}-{way.replace(' ', '-')}", 1.0)
            times[way, size] = time.perf_counter() - began
    slopes = {way: (times[way, 120] - times[way, 40]) / 80 for way in ("loop", "one part a block")}
    return {
        **{f"{way} s_a_part": slope for way, slope in slopes.items()},
        "lost": slopes["one part a block"] / slopes["loop"] - 1,
    }


def driver_memory(count: int) -> None:
    """In a process of its own: peak resident MB of a driver that maps so many tiny parts."""
    with tempfile.TemporaryDirectory() as folder:
        table = make_parts(Folder.at(folder) / "in", count, rows=2)
        with ray_session():
            engine(table, Folder.at(folder) / "out", light=False)
            peak = psutil.Process().memory_info()
            high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"parts": count, "peak_mb": int(high.split()[1]) / 1024, "rss_mb": peak.rss / 2**20}))


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--memory", type=int)
    if count := options.parse_args().memory:
        driver_memory(count)
        return 0
    from tests.rgw import running

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder, "rgw")) as rgw:
        os.environ.update(rgw.environment)
        with ray_session():
            found["local"] = per_part(Folder.at(f"{folder}/local"))
            found["RGW"] = per_part(Folder.at(f"s3://{rgw.bucket()}/engine"))
            found["working"] = working(Folder.at(f"{folder}/working"))
    found["memory"] = {count: _in_own_process(count) for count in (1000, 10_000)}
    return report(found)


def _in_own_process(count: int) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--memory", str(count)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def report(found: dict[str, Any]) -> int:
    missed = []
    lines = []
    for place in ("local", "RGW"):
        base = found[place]["loop"]["wall_ms_a_part"]
        for way, goal in GOAL_MS.items():
            figures = found[place][way]
            added = figures["wall_ms_a_part"] - base
            figures["added_ms_a_part"] = added
            missed += [f"{place} {way}"] if added > goal else []
            lines.append(
                f"{place:5} {way:17} {figures['wall_ms_a_part']:6.1f} ms a part, loop {base:5.1f}: {added:+6.1f} ms (goal {goal:g}); "
                f"CPU {figures['cpu_ms_a_part'] - found[place]['loop']['cpu_ms_a_part']:+6.1f} ms; start {figures['wall_s_start']:.1f} s"
            )
    lost, ratio = found["working"]["lost"], found["memory"][10_000] / found["memory"][1000]
    missed += ["working"] if lost > GOAL_WORKING else []
    missed += ["memory"] if ratio > GOAL_MEMORY else []
    lines.append(f"at 1 s of work a part {lost:+.2%} (goal {GOAL_WORKING:.0%})")
    lines.append(
        f"driver memory at 10,000 parts {found['memory'][10_000]:.0f} MB, at 1,000 {found['memory'][1000]:.0f} MB: {ratio:.2f} (goal {GOAL_MEMORY})"
    )
    record("engine", {**circumstances(), "ray": ray.__version__, "missed": missed, **found})
    print("\n".join([f"missed: {', '.join(missed)}" if missed else "every goal reached", *lines]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

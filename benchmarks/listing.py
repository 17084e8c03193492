"""Listing a lake of 100,000 objects, beside plain boto3 paging: CPU seconds, wall, memory.

    .venv/bin/python benchmarks/listing.py           # about 10 minutes, a third for putting the objects; a Ceph RGW that it starts itself

The plain side collects key, size and etag of every object into a list. `list_lake` does so too, orders, filters and chains the
digests that name the parts. Both run in this process, in interleaved rounds; the figure is the ratio of CPU seconds (of this
process: the server's are its own, and equal), of the worst of the three ways to name a lake.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import boto3
import psutil
from botocore.config import Config

from benchmarks.record import circumstances, record
from raypipe.lake import list_lake

GOAL = 3.0  # times the CPU seconds of plain paging
OBJECTS, ROUNDS, THREADS = 100_000, 7, 16
LANGUAGES, DAYS = ("c", "go", "java", "python", "rust"), 100


def plain(bucket: str) -> list[tuple[str, int, str]]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="lake/")
    return [(found["Key"], found["Size"], found["ETag"]) for page in pages for found in page.get("Contents", ())]


def lake(bucket: str, pattern: str = "", **partitions: list[str]) -> list[str]:
    return list(list_lake([f"s3://{bucket}/lake{pattern}"], partitions=partitions).chain)


WAYS: dict[str, Callable[[str], list[Any]]] = {
    "plain": plain,
    "all below a prefix": lake,
    "a glob": partial(lake, pattern="/**/*.jsonl.gz"),
    "one partition": partial(lake, lang=["python"]),
}


def name(number: int) -> str:
    language, day = LANGUAGES[number % len(LANGUAGES)], number // len(LANGUAGES) % DAYS
    return f"lake/lang={language}/day={day:03d}/part-{number:06d}.jsonl.gz"


def fill(bucket: str, count: int) -> None:
    s3 = boto3.client("s3", config=Config(max_pool_connections=THREADS))
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(
            lambda number: s3.put_object(Bucket=bucket, Key=name(number), Body=b"%d" % number), range(count)
        ):
            pass


def rounds(bucket: str, count: int) -> dict[str, dict[str, list[float]]]:
    """CPU and wall seconds of every way by round; the first round warms up."""
    seconds: dict[str, dict[str, list[float]]] = {way: {"cpu": [], "wall": []} for way in WAYS}
    for number in range(-1, ROUNDS):
        for way, listing in WAYS.items():
            cpu, wall = time.process_time(), time.perf_counter()
            found = listing(bucket)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            wanted = count // len(LANGUAGES) if way == "one partition" else count
            assert len(found) == wanted, f"{way}: got {len(found)} objects, wanted {wanted}"
            if number >= 0:
                seconds[way]["cpu"].append(cpu)
                seconds[way]["wall"].append(wall)
            print(f"round {number:2}  {way:20} {cpu:6.2f} s CPU  {wall:6.2f} s wall", flush=True)
    return seconds


def added_memory(way: str, bucket: str) -> None:
    """In a process of its own: by how many MB its peak exceeds what it holds with everything imported and one answer read."""
    lake(bucket, name(0).removeprefix("lake"))
    before = psutil.Process().memory_info().rss / 2**20
    kept = WAYS[way](bucket)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"objects": len(kept), "mb": int(peak.split()[1]) / 1024 - before}))


def _in_own_process(way: str, bucket: str) -> float:
    words = [sys.executable, __file__, "--memory", way, bucket]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["mb"])


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--memory", nargs=2, metavar=("WAY", "BUCKET"))
    options.add_argument(
        "--objects", type=int, default=OBJECTS, help="a smaller lake is for trying; it leaves no result"
    )
    asked = options.parse_args()
    if asked.memory:
        added_memory(*asked.memory)
        return 0
    from tests.rgw import running

    with tempfile.TemporaryDirectory() as folder, running(Path(folder, "rgw")) as rgw:
        os.environ.update(rgw.environment)
        bucket, began = rgw.bucket(), time.perf_counter()
        fill(bucket, asked.objects)
        print(f"{asked.objects:,} objects put in {time.perf_counter() - began:.0f} s", flush=True)
        seconds = rounds(bucket, asked.objects)
        memory = {way: _in_own_process(way, bucket) for way in WAYS}
    return report(seconds, memory, asked.objects)


def report(seconds: dict[str, dict[str, list[float]]], memory: dict[str, float], count: int) -> int:
    figures: dict[str, Any] = {}
    for way, kinds in seconds.items():
        figures[way] = {"added_mb": round(memory[way], 1)}
        for kind, values in kinds.items():
            ratios = [mine / base for mine, base in zip(values, seconds["plain"][kind], strict=True)]
            figures[way][f"{kind}_s"] = {"median": statistics.median(values), "spread": [min(values), max(values)]}
            figures[way][f"{kind}_ratio"] = {"median": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}
        cpu, wall, ratio = (figures[way][kind] for kind in ("cpu_s", "wall_s", "cpu_ratio"))
        print(
            f"{way:20} {cpu['median']:6.2f} s CPU ({cpu['spread'][0]:.2f} to {cpu['spread'][1]:.2f}), {wall['median']:6.2f} s wall "
            f"({wall['spread'][0]:.2f} to {wall['spread'][1]:.2f}), {memory[way]:+6.1f} MB; CPU {ratio['median']:.2f} times plain"
        )
    worst = max(figure["cpu_ratio"]["median"] for figure in figures.values())
    about = {"objects": count, "rounds": ROUNDS, "goal": GOAL, "ratio": worst, "missed": worst > GOAL}
    if count == OBJECTS:
        versions = {"boto3": boto3.__version__}
        record("listing", {**circumstances(), **versions, **about, "figures": figures, "seconds": seconds})
    said = "missed" if worst > GOAL else "reached"
    print(f"{count:,} objects are listed within {worst:.2f} times of plain boto3 paging (goal {GOAL:g}: {said})")
    return 1 if worst > GOAL else 0


if __name__ == "__main__":
    sys.exit(main())

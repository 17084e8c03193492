"""A lake of 100,000 objects of 20 KB on S3: what ingest makes of it, and what a hundred more of them cost.

    .venv/bin/python benchmarks/small_objects.py     # about 20 minutes, a third for putting the objects; 10 GB of memory: a Ceph RGW that it starts itself

`raypipe run --until ingest`, lake and parts on that server; then 100 objects come after all others, and it runs again. Goals: no row is lost or
doubled; at most a part for each object that stands alone and each MiB of the others; no part that was there is made again, but for that of
the last group.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import boto3
import yaml
from botocore.config import Config

from benchmarks.incremental import raypipe
from benchmarks.record import circumstances, record
from raypipe.demo import make_models
from raypipe.lake import ALONE, GROUP_BYTES
from raypipe.ops.synthetic import chunk_lines
from raypipe.stage import read_manifest
from raypipe.store import Folder

OBJECTS, MORE, OBJECT_BYTES, THREADS = 100_000, 100, 20_000, 16
AGAIN = 1  # part at most that was there is made again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--objects", type=int, default=OBJECTS, help="a smaller lake is for trying; it leaves no result"
    )
    objects, where = parser.parse_args().objects, circumstances()
    from tests.rgw import running

    with tempfile.TemporaryDirectory() as folder, running(Path(folder, "rgw")) as rgw:
        os.environ.update(rgw.environment)
        make_models(models := Path(folder, "models"))
        found = measured(Path(folder), models, rgw.bucket(), objects)
    if objects == OBJECTS:
        record("small_objects", {**where, **found})
    for name, figures in found.items():
        print(f"{name}: {json.dumps(figures)}")
    first, then = found["first"], found["then"]
    lost = max(abs(figures["wanted"] - figures["read"]) for figures in (first, then))
    print(
        f"{first['parts']:,} parts (at most {first['parts_at_most']:,}), {lost} rows lost or doubled, {then['again']} parts made again (goal {AGAIN})"
    )
    return int(first["parts"] > first["parts_at_most"] or lost != 0 or then["again"] > AGAIN)


def measured(folder: Path, models: Path, bucket: str, objects: int) -> dict[str, Any]:
    tree = {
        "name": "small",
        "model": f"{models}/tiny",
        "ingest": {"paths": [f"s3://{bucket}/lake"], "max_rejected_fraction": 0.05},
        "embed": {"model": f"{models}/all-MiniLM-L6-v2"},
        "storage": {"root": f"s3://{bucket}/root"},
    }
    (config := folder / "config.yaml").write_text(yaml.safe_dump(tree))
    bodies = [body(number) for number in range(50)]
    found, before, rows, size = {}, set[str](), 0, 0
    for name, numbers in (("first", range(objects)), ("then", range(objects, objects + MORE))):
        put_s = put(bucket, bodies, numbers)
        rows += sum(bodies[number % len(bodies)].count(b"\n") for number in numbers)
        size += sum(len(bodies[number % len(bodies)]) for number in numbers)
        wall_s = raypipe("run", config, "--until", "ingest")
        manifest = newest(bucket)
        parts = {part["name"] for part in manifest["parts"]}
        found[name] = {
            "objects": len(numbers), "put_s": put_s, "command_s": wall_s, "ingest_s": manifest["wall_s"], "actor_s": manifest["actor_s"],
            "wanted": rows, "read": sum(manifest["counts"].values()),
            "parts": len(parts), "parts_at_most": ALONE + size // GROUP_BYTES + 1, "new_parts": len(parts - before), "again": len(before - parts),
        }  # fmt: skip
        before = parts
    return found


def body(number: int) -> bytes:
    """About 20 KB of rows."""
    lines, _ = chunk_lines(0, seed=number, num_samples=1000)
    some = b"".join(lines)[:OBJECT_BYTES]
    return some[: some.rfind(b"\n") + 1]


def put(bucket: str, bodies: list[bytes], numbers: range) -> float:
    started, s3 = time.monotonic(), boto3.client("s3", config=Config(max_pool_connections=THREADS))

    def one(number: int) -> None:
        key = f"lake/day-{number // 1000:03d}/{number:07d}.jsonl"
        s3.put_object(Bucket=bucket, Key=key, Body=bodies[number % len(bodies)])

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(one, numbers):
            pass
    return round(time.monotonic() - started, 1)


def newest(bucket: str) -> dict[str, Any]:
    """Manifest of ingest."""
    root = Folder.at(f"s3://{bucket}/root")
    run = json.loads(root.read("runs/small.json"))
    return read_manifest(root / run["folders"]["ingest"], run["lake"]) or {}


if __name__ == "__main__":
    sys.exit(main())

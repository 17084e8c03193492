"""What ten more files at the end of a lake cost: parts made and kept, seconds of actors and of the command, stage by stage.

    .venv/bin/python benchmarks/incremental.py       # about 15 minutes, 6 GB of disk

A million rows by `raypipe synth` through ingest and clean, near duplicates looked for; then ten files more of 1,000 rows each. And 3,000 rows, then ten files of 30,
through all stages that are row-wise, clusters by frozen centres, with the demo's models: on two CPUs a million rows would take these days.
Goal: no part that was there is made, or touched, again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from benchmarks.record import PROJECT, circumstances, record
from raypipe.ops.synthetic import chunk_lines
from raypipe.part import add_up

FOLDER = PROJECT / "build" / "incremental"
CASES = {
    "a million rows": (1_000_000, 1_000, "clean"),
    "all stages": (3_000, 30, "score"),
}  # rows, rows of each of ten files, until
FILES = 10


def main() -> int:
    where, models = circumstances(), FOLDER / "models"
    if not models.is_dir():
        subprocess.run([sys.executable, "-m", "raypipe.demo", models], check=True)
    found = {name: case(FOLDER / name.split()[0], models, *sizes) for name, sizes in CASES.items()}
    record("incremental", {**where, **found})
    touched = sum(stage["touched"] for one in found.values() for stage in one["stages"].values())
    print(f"{touched} old parts were made or touched again (goal 0)")
    return int(touched > 0)


def case(folder: Path, models: Path, rows: int, more: int, until: str) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    raypipe("synth", folder / "lake", "--num-samples", rows)
    config, root = folder / "config.yaml", folder / "root"
    tree = {
        "name": "incremental",
        "model": f"{models}/tiny",
        "ingest": {"paths": [f"{folder}/lake"], "max_rejected_fraction": 0.05},
        "clean": {"near_duplicate_similarity": 0.8},
        "embed": {"model": f"{models}/all-MiniLM-L6-v2"},
        "storage": {"root": str(root)},
    }
    config.write_text(yaml.safe_dump(tree))
    frozen = []
    if until == "score":
        raypipe("run", config, "--until", "cluster")
        (fitted,) = root.glob("cluster-*")
        shutil.copy(fitted / "centers.npy", folder / "centers.npy")
        shutil.rmtree(fitted)
        frozen = [f"cluster.centers={folder}/centers.npy"]
    first_s = raypipe("run", config, *frozen, "--until", until)
    before = {path: path.stat().st_mtime_ns for path in root.glob("*-*/**/part-*")}
    firsts = {
        stage: manifest(root, stage)
        for stage in ("ingest", "clean", "embed", "cluster", "score")
        if list(root.glob(f"{stage}-*"))
    }
    for number in range(FILES):
        lines, _ = chunk_lines(0, seed=number + 1, num_samples=more)
        (folder / "lake" / f"z-{number:02d}.jsonl").write_bytes(b"".join(lines))
    then_s = raypipe("run", config, *frozen, "--until", until)
    stages = {}
    for stage, first in firsts.items():
        then, old = manifest(root, stage), {part["name"] for part in first["parts"]}
        made = add_up(part for part in then["parts"] if part["name"] not in old)
        ours = (path for path in before if path.relative_to(root).parts[0].startswith(f"{stage}-"))
        touched = [path for path in ours if path.stat().st_mtime_ns != before[path]]
        stages[stage] = {
            "parts": len(first["parts"]), "rows": first["rows"], "actor_s": first["actor_s"], "wall_s": first["wall_s"],
            "new_parts": len(then["parts"]) - len(first["parts"]), "new_rows": made["rows"], "new_actor_s": made["actor_s"], "new_wall_s": then["wall_s"],
            "touched": len(touched),
        }  # fmt: skip
        print(f"{stage:8} {json.dumps(stages[stage])}", flush=True)
    return {"first_s": first_s, "then_s": then_s, "stages": stages}


def manifest(root: Path, stage: str) -> dict[str, Any]:
    """The newest one of a stage."""
    (folder,) = root.glob(f"{stage}-*")
    return dict(json.loads(max(folder.glob("manifest-*"), key=lambda path: path.stat().st_mtime_ns).read_text()))


def raypipe(*words: object) -> float:
    """Wall seconds of a command."""
    print("$ raypipe", *words, flush=True)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "raypipe.cli", *map(str, words)], cwd=PROJECT, check=True)
    return round(time.monotonic() - started, 1)


if __name__ == "__main__":
    sys.exit(main())

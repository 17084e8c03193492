"""Clean with near duplicates on Ray at 10^6 and 10^7 samples: CPU seconds a million rows, the largest process, and how many planted ones go.

    .venv/bin/python benchmarks/near_scale.py        # about 25 minutes; 6 GB of disk, 3 GB of memory

Lakes by `raypipe synth`, 3 % of whose samples are near duplicates of earlier ones. Watched while `raypipe run --until clean` runs after ingest: CPU seconds
of driver, actors and Ray; the PSS of the largest process, looked at twice a second.
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

import psutil
import yaml

from benchmarks.processes import RAYPIPE, Cpu, memory_bytes, raypipe
from benchmarks.record import PROJECT, circumstances, record

MEMORY_BYTES = 1 << 30  # at most, of any process at 10^7
SIMILARITY, COUNTS = 0.8, (1_000_000, 10_000_000)
FOLDER = PROJECT / "build" / "near-scale"


def main() -> int:
    where = circumstances()
    subprocess.run([sys.executable, "-m", "raypipe.demo", f"{FOLDER}/models"], check=True)
    found = {count: cleaned(count) for count in COUNTS}
    record("near_scale", {**where, "lakes": {str(count): one for count, one in found.items()}})
    largest = found[COUNTS[-1]]["peak_bytes"]
    print(f"at most {largest / 2**20:,.0f} MiB a process at {COUNTS[-1]:,} samples (goal {MEMORY_BYTES / 2**20:,.0f})")
    return int(largest > MEMORY_BYTES)


def cleaned(count: int) -> dict[str, Any]:
    lake, root = folders = FOLDER / "lake", FOLDER / "root"
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    raypipe("synth", lake, "--num-samples", count)
    tree = {
        "name": "x", "model": f"{FOLDER}/models/tiny", "embed": {"model": f"{FOLDER}/models/all-MiniLM-L6-v2"},
        "ingest": {"paths": [f"{lake}"], "max_rejected_fraction": 0.05}, "clean": {"near_duplicate_similarity": SIMILARITY},
        "storage": {"root": f"{root}"},
    }  # fmt: skip
    (config := FOLDER / "config.yaml").write_text(yaml.safe_dump(tree))
    raypipe("run", config, "--until", "ingest")
    run = subprocess.Popen([*RAYPIPE, "run", config, "--until", "clean"], cwd=PROJECT)
    cpu, peak, started = Cpu(run.pid), 0, time.monotonic()
    while run.poll() is None:
        peak = max([peak, *memory_bytes(psutil.Process(run.pid)).values()])
        time.sleep(0.5)
    if run.returncode:
        sys.exit(f"raypipe ended with {run.returncode}")
    (manifest,) = root.glob("clean-*/manifest-*")
    counts = json.loads(manifest.read_text())["counts"]
    made = {"cpu_s": sum(cpu.used.values()), "wall_s": time.monotonic() - started, "peak_bytes": peak, "counts": counts}
    print(f"{count:,} samples: {json.dumps(made)}", flush=True)
    for folder in folders:
        shutil.rmtree(folder)
    return made


if __name__ == "__main__":
    sys.exit(main())

"""Ingest beside plain pyarrow, datatrove and Data-Juicer: rows and MB of JSON lines to zstd Parquet a CPU second. And its memory, to 10^7 rows.

    .venv/bin/python benchmarks/ingest.py            # about 25 minutes and 8 GB of disk; CodeAlpaca of ../shared/data, or --rows FOLDER (gzipped JSON lines)
    .venv/bin/python benchmarks/ingest.py --speed    # or --memory: one half of it

Speed: CodeAlpaca 20 times over, in 20 files of plain JSON lines, by one process each, one thread; imports and starts are not counted. What they do differs: pyarrow reads
and writes, all fields, nothing else; datatrove reads and writes documents; Data-Juicer also drops empty texts; ours joins fields, normalises, identifies
(blake2b), rejects with reasons, and digests every column. Rivals have environments of their own in build/rivals.

Memory: `raypipe run --until ingest` on Ray, of a lake of 10^5, 10^6 and 10^7 rows in files of 64 MB and more; PSS of the largest process that read and of
the driver, looked at four times a second.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import yaml

from benchmarks.plotting import pyplot
from benchmarks.processes import RAYPIPE, memory_bytes
from benchmarks.record import PROJECT, circumstances, record, result
from benchmarks.rivals import environment

OF_PYARROW, OF_RIVALS = 0.4, 3.0  # at least, of its rows a CPU second, and of the better peer's
GROWTH = 1.2  # at most, of peak memory from 10^5 rows to 10^7
TIMES, ROUNDS, COUNTS = 20, 3, (100_000, 1_000_000, 10_000_000)
AGAIN = {"raypipe": 3, "pyarrow": 3}  # times a round, as they take seconds and machines are noisy
FOLDER = PROJECT / "build" / "ingest"
ROWS = PROJECT.parent / "shared" / "data" / "code_alpaca_20k"
INSTALL = {  # each step by pip, in the rival's own environment. Data-Juicer would load gigabytes of CUDA by itself, were torch not there
    "datatrove": ["datatrove[io,processing]==0.10.1 regex orjson"],
    "data-juicer": ["torch==2.13.0 transformers ray[data]==2.60.0 aiohttp", "py-data-juicer==1.6.1"],
}
TIMED = "import time, resource, sys, os, glob\nlake, out = sys.argv[1:]\nused = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
WAYS = {
    "raypipe": """
from raypipe.sources import Ingest
from raypipe.lake import list_lake
from raypipe.stages.ingest import Work, ingest_slices
from raypipe.store import Folder
import pandas  # which pyarrow loads the first time that it sees an array of numpy's
rule = Ingest(paths=(lake,), columns={"instruction": ("instruction", "input"), "response": "output"})
start = used()
found, rows = list_lake(rule.paths), 0
for group in found.groups():
    work = Work(group[-1], found.slices[group.start : group.stop], found.chain[group[-1]])
    rows += sum(sum(footer["counts"].values()) for footer in ingest_slices(work, out=Folder(out), rule=rule))
""",
    "pyarrow": """
import pyarrow as pa, pyarrow.json, pyarrow.parquet
pa.set_cpu_count(1)
start, rows = used(), 0
for path in sorted(glob.glob(f"{lake}/*")):
    table = pa.json.read_json(path, read_options=pa.json.ReadOptions(use_threads=False))
    pa.parquet.write_table(table, f"{out}/{os.path.basename(path)}.parquet", compression="zstd")
    rows += len(table)
""",
    "datatrove": """
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import ParquetWriter
def adapter(self, data, path, id_in_file):
    text = data["instruction"] + "\\n" + data["input"] if data["input"] else data["instruction"]
    return {"text": text, "id": f"{path}/{id_in_file}", "media": [], "metadata": {"response": data["output"]}}
start = used()
steps = [JsonlReader(lake, adapter=adapter, compression=None), ParquetWriter(out, compression="zstd")]
LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=f"{out}/logs").run()
import pyarrow.parquet
rows = sum(pyarrow.parquet.read_metadata(path).num_rows for path in glob.glob(f"{out}/*.parquet"))
""",
    "data-juicer": """
from data_juicer.config import init_configs
from data_juicer.core import DefaultExecutor
import json
settings = {"project_name": "x", "dataset_path": lake, "export_path": f"{out}/all.parquet", "np": 1, "text_keys": "output", "open_tracer": False,
            "use_cache": False, "process": [{"text_length_filter": {"min_len": 1, "max_len": 1000000}}]}
path = f"{out}/config.json"
open(path, "w").write(json.dumps(settings))
start = used()
DefaultExecutor(init_configs(["--config", path])).run()
import pyarrow.parquet
rows = pyarrow.parquet.read_metadata(f"{out}/all.parquet").num_rows
""",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    for half in ("--speed", "--memory"):
        parser.add_argument(half, action="store_true")
    options = parser.parse_args()
    both, where = options.speed == options.memory, circumstances()
    found = json.loads(result("ingest").read_text()) if result("ingest").is_file() and not both else {}
    if both or options.speed:
        found["speed"] = {**where, **speed(options.rows)}
    if both or options.memory:
        found["memory"] = {**where, **memory(options.rows)}
    record("ingest", found)
    return judge(found)


def judge(found: dict[str, Any]) -> int:
    rows = {name: way["rows_per_cpu_s"]["median"] for name, way in found.get("speed", {}).get("ways", {}).items()}
    met = [True]
    if rows:
        rival = max(rows["datatrove"], rows["data-juicer"])
        met += [rows["raypipe"] >= OF_PYARROW * rows["pyarrow"], rows["raypipe"] >= OF_RIVALS * rival]
        print(
            f"{rows['raypipe'] / rows['pyarrow']:.2f} of plain pyarrow (goal {OF_PYARROW}), {rows['raypipe'] / rival:.1f} times the better peer (goal {OF_RIVALS})"
        )
    if "memory" in found:
        grows = found["memory"]["growth"]
        met.append(max(grows.values()) <= GROWTH)
        print(
            f"peak memory of 10^7 rows over that of 10^5: {grows['reader']:.2f} of a reader, {grows['driver']:.2f} of the driver (goal {GROWTH})"
        )
    return int(not all(met))


def speed(rows: Path) -> dict[str, Any]:
    rivals = {name: str(environment(name, steps) / "bin" / "python") for name, steps in INSTALL.items()}
    interpreters, lake = {"raypipe": sys.executable, "pyarrow": sys.executable, **rivals}, FOLDER / "lake"
    data = written(rows, lake)
    runs: dict[str, list[float]] = {name: [] for name in WAYS}
    for round_ in range(ROUNDS):
        for name in [name for turn in range(3) for name in WAYS if turn < AGAIN.get(name, 1)]:
            runs[name].append(timed(name, interpreters[name], lake, data.count(b"\n") * TIMES))
            print(f"round {round_ + 1}  {name:12} {runs[name][-1]:7.2f} CPU s", flush=True)
    count, megabytes = data.count(b"\n") * TIMES, len(data) * TIMES / 1e6
    ways = {
        name: {"cpu_s": used, "rows_per_cpu_s": spread(count, used), "mb_per_cpu_s": spread(megabytes, used)}
        for name, used in runs.items()
    }
    for name, way in ways.items():
        print(
            f"{name:12} {way['rows_per_cpu_s']['median']:9,.0f} rows and {way['mb_per_cpu_s']['median']:6.1f} MB a CPU second"
        )
    return {"rows": count, "megabytes": megabytes, "ways": ways}


def spread(amount: float, seconds: list[float]) -> dict[str, float]:
    rates = [amount / used for used in seconds]
    return {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}


def written(rows: Path, lake: Path) -> bytes:
    """The rows once, written to as many files as TIMES."""
    data = b"".join(gzip.decompress(path.read_bytes()) for path in sorted(rows.glob("*.gz")))
    shutil.rmtree(lake, ignore_errors=True)
    lake.mkdir(parents=True)
    for number in range(TIMES):
        (lake / f"{number:03d}.jsonl").write_bytes(data)
    return data


def timed(name: str, interpreter: str, lake: Path, wanted: int) -> float:
    """CPU seconds of one way, whole, in a process of its own; the benchmark ends where rows are missing."""
    out = FOLDER / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    own = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(PROJECT) if interpreter == sys.executable else "",
        "UV_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "HF_HUB_OFFLINE": "1",
    }
    code = TIMED + WAYS[name] + "\nprint('took', used() - start, rows)"
    done = subprocess.run([interpreter, "-c", code, lake, out], env=os.environ | own, capture_output=True, text=True)
    said = done.stdout.splitlines() + done.stderr.splitlines()  # Data-Juicer takes the one for the other
    line = next((line for line in reversed(said) if line.startswith("took ")), None)
    if done.returncode or line is None:
        sys.exit(f"{name}: it ended with {done.returncode}:\n{done.stderr[-3000:]}")
    _, seconds, rows = line.split()
    if not wanted * 0.99 < int(rows) <= wanted:
        sys.exit(f"{name}: {rows} rows of {wanted}")
    return float(seconds)


def memory(rows: Path) -> dict[str, Any]:
    peaks = {count: peak(rows, count) for count in COUNTS}
    growth = {who: peaks[COUNTS[-1]][who] / peaks[COUNTS[0]][who] for who in ("reader", "driver")}
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for who in growth:
        axes.plot(COUNTS, [peaks[count][who] / 2**20 for count in COUNTS], "o-", label=who)
    axes.set(xscale="log", ylim=0, xlabel="rows of the lake", ylabel="peak memory, MiB", title="ingest on Ray")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(PROJECT / "docs" / "ingest-memory.png", dpi=100)
    return {"peak_bytes": {str(count): found for count, found in peaks.items()}, "growth": growth}


def peak(rows: Path, count: int) -> dict[str, float]:
    """Of the largest process below the driver that reads, and of the driver itself; and wall seconds."""
    shutil.rmtree(FOLDER / "memory", ignore_errors=True)
    (FOLDER / "memory" / "lake").mkdir(parents=True)
    data = b"".join(gzip.decompress(path.read_bytes()) for path in sorted(rows.glob("*.gz")))
    left, times = count, 10
    for number in range(-(-count // (times * data.count(b"\n")))):
        lines = (data * times).splitlines(keepends=True)[:left]
        (FOLDER / "memory" / "lake" / f"{number:04d}.jsonl").write_bytes(b"".join(lines))
        left -= len(lines)
    config = FOLDER / "memory" / "config.yaml"
    columns = {"instruction": ["instruction", "input"], "response": "output"}
    models = FOLDER / "models"
    if not models.is_dir():
        subprocess.run([sys.executable, "-m", "raypipe.demo", str(models)], check=True)
    tree = {"name": "x", "model": f"{models}/tiny", "embed": {"model": f"{models}/all-MiniLM-L6-v2"}, "ingest": {"paths": [f"{FOLDER}/memory/lake"], "columns": columns}, "storage": {"root": f"{FOLDER}/memory/root"}}  # fmt: skip
    config.write_text(yaml.safe_dump(tree))
    started, found = time.monotonic(), {"reader": 0.0, "driver": 0.0}
    run = subprocess.Popen([*RAYPIPE, "run", config, "--until", "ingest"], cwd=PROJECT)
    root = psutil.Process(run.pid)
    while run.poll() is None:
        for pid, used in memory_bytes(root).items():
            who = "driver" if pid == run.pid else "reader" if reads(pid) else None
            if who:
                found[who] = max(found[who], used)
        time.sleep(0.25)
    if run.returncode:
        sys.exit(f"raypipe ended with {run.returncode}")
    print(
        f"{count:,} rows: reader {found['reader'] / 2**20:.0f} MiB, driver {found['driver'] / 2**20:.0f} MiB, {time.monotonic() - started:.0f} s",
        flush=True,
    )
    shutil.rmtree(FOLDER / "memory")
    return {**found, "wall_s": time.monotonic() - started}


def reads(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_apply")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())

"""Every fault of tests/faults.py, one after the other: outcome, faults met, time beside a run without any.

    .venv/bin/python benchmarks/reliability.py            # about half an hour on two quiet cores; starts a Ceph RGW itself
    .venv/bin/python benchmarks/reliability.py mixed gone # these only, printed and not written

Writes docs/reliability.md and benchmarks/results/reliability.json after every row, and exits with 1 if an outcome is not as
promised.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from raypipe.demo import link_embedder
from tests.faultproxy import proxying
from tests.faults import BY_NAME, SCENARIOS, Outcome, make_world, meet
from tests.lakes import save_random_model
from tests.rgw import running

PROJECT = Path(__file__).resolve().parents[1]
RESULT, DOCUMENT = PROJECT / "benchmarks/results/reliability.json", PROJECT / "docs/reliability.md"
TEXT = """# Reliability

What is promised, and held below under faults made on purpose: **a run ends with exactly the rows, counts and values that it
has without faults; or it stops with an exit code and one line that says what to do, and the next run goes on from what was
committed.** Nothing committed is made again or changed, nothing is made up for what failed.

- **Storage that fails for a while** (5xx, 429, resets, cut bodies, time-outs): each request, its body included, is tried
  again with growing pauses of chance length, at most 8 s, until it succeeds or `RAYPIPE_RETRY_S` seconds (300) have passed. This
  is the only layer of retries for data. Planning and the checks before a run wait for 20 s, as a person does.
- **A PUT whose answer was lost** is tried again and finds its name taken, which is success: parts are put by
  `If-None-Match: *` and are functions of their inputs.
- **Expired credentials** are read anew from the AWS chain; after 30 s without newer ones the run stops.
- **A damaged part** is found when a column of it is read, by the digest that was recorded when it was written; another part's
  bytes or a changed account by the seal in its footer. It is named and left as it is. `raypipe run CONFIG --repair STAGE` reads all
  parts of that stage and makes the damaged ones again, and nothing else of it. A column that no stage reads is not looked at.

| exit code | what it means | what to do |
|---|---|---|
| 0 | done, exactly | |
| 3 | data: a part is not what was committed | find out what changed it, then the `--repair` of the line |
| 4 | storage refuses: disk full, read-only, no permission | what the line says, then run again |
| 5 | stopped, or storage failed for longer than `RAYPIPE_RETRY_S` | run again when it answers |

Each row is `raypipe run` until select on {rows} rows in 12 parts of tests' random models, lake on a real S3 server (Ceph RGW), network
faults by a proxy before it. "exact" is: rows, counts by status and the digest of every column of every part equal those of the
run without faults, which took {unbroken:.0f} s and {requests} requests. Each fault on the network but latency costs a retry, so
their number is that of retries made. Two times are until the stop + the rerun. Disks and damage were tried on a root here with
what came before score (or before what reads the damaged part) done already, so these take less.

| fault | rate | outcome | faults | seconds |
|---|---|---|---|---|
"""
END = """
{date}, commit {commit}, {hardware}, load of the machine {load} (others worked on it meanwhile where it is above 2: times
are then upper bounds). Made by `make reliability` (`.venv/bin/python benchmarks/reliability.py`), which fails when an outcome
is not as promised; figures by row in `benchmarks/results/reliability.json`.
"""


def main(names: Sequence[str]) -> int:
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory() as there,
        running(Path(there, "rgw")) as rgw,
        proxying(rgw.endpoint, rgw.environment) as proxy,
    ):
        model = save_random_model(Path(there, "qwen2"), "qwen2", bos=False)
        link_embedder(embedder := Path(there, "all-MiniLM-L6-v2"))
        world = make_world(Path(there), rgw, proxy, model, embedder)
        facts = {**circumstances(), "unbroken_s": world.seconds, "requests": world.requests}
        facts["rows"] = world.accounts["ingest"][0]
        print(facts, flush=True)
        for scenario in [BY_NAME[name] for name in names] or sorted(
            SCENARIOS, key=lambda s: -s.promise
        ):  # short ones first
            outcomes.append(meet(world, scenario))
            print(row(outcomes[-1]), *outcomes[-1].wrong, sep="\n", flush=True)
            if not names:
                write(facts, outcomes)
    return int(any(outcome.wrong for outcome in outcomes))


def circumstances() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True
    ).stdout.strip()
    memory = psutil.virtual_memory().total >> 30
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "hardware": f"{os.cpu_count()} x {platform.processor() or platform.machine()}, {memory} GB",
    }


def write(facts: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    facts |= {"load": round(psutil.getloadavg()[2], 1)}
    RESULT.write_text(json.dumps({**facts, "outcomes": [asdict(outcome) for outcome in outcomes]}, indent=1) + "\n")
    head = TEXT.format(rows=facts["rows"], unbroken=facts["unbroken_s"], requests=facts["requests"])
    rows = {outcome.name: row(outcome) for outcome in outcomes}
    in_order = [rows[scenario.name] for scenario in SCENARIOS if scenario.name in rows]
    DOCUMENT.write_text(head + "\n".join(in_order) + "\n" + END.format(**facts))


def row(outcome: Outcome) -> str:
    scenario, faults = BY_NAME[outcome.name], sum(outcome.fired.values())
    stops = f"stops with exit code {outcome.codes[0]}, then "
    how = "repaired: " if scenario.promise == 3 else "resumes: "
    kept = (stops + how if scenario.promise else "") + "exact"
    seconds = " + ".join(f"{seconds:.0f}" for seconds in outcome.seconds)
    return f"| {scenario.fault} | {scenario.rate} | {'**NOT AS PROMISED**' if outcome.wrong else kept} | {faults:,} | {seconds} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Every fault of tests/faults.py, one after the other: outcome, faults met, time beside a run without any.

    .venv/bin/python benchmarks/reliability.py            # about half an hour on two quiet cores; starts a Ceph RGW itself
    .venv/bin/python benchmarks/reliability.py mixed gone # these rows only, measured anew

Writes docs/reliability.md and benchmarks/results/reliability.json after every row, each with its own date, commit and time
without faults, and exits with 1 if an outcome is not as promised.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.record import PROJECT, circumstances, record, result
from raypipe.demo import link_embedder
from tests.faultproxy import proxying
from tests.faults import BY_NAME, SCENARIOS, make_world, meet
from tests.lakes import save_random_model
from tests.rgw import running

DOCUMENT = PROJECT / "docs/reliability.md"
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

Each row is `raypipe run` until select on {rows} rows in 12 parts, with the tests' random models; the lake is on a real S3
server (Ceph RGW), and network faults are made by a proxy before it. "exact" is: rows, counts by status and the digest of every
column of every part equal those of the same run without faults ({requests} requests). Every fault on the network but latency
costs a retry, so their number is that of retries made. Two times are until the stop + the rerun. Disks and damage were tried
on a local root with what comes before the stage concerned done already, so these take less than a whole run.

| fault | rate | outcome | faults met | s | s without faults |
|---|---|---|---|---|---|
"""
END = """
{date}, commit {commit}, {hardware}, 15-minute load of the machine {load}: above 2 others worked on it too, and times say
little. Made by `make reliability`, which fails when an outcome is not as promised; figures by row in
`benchmarks/results/reliability.json`.
"""
FACTS = ("rows", "requests", "date", "commit", "hardware", "load")


def main(names: Sequence[str]) -> int:
    before = result("reliability")
    measured = json.loads(before.read_text()) if names and before.exists() else {}
    with (
        tempfile.TemporaryDirectory() as there,
        running(Path(there, "rgw")) as rgw,
        proxying(rgw.endpoint, rgw.environment) as proxy,
    ):
        model = save_random_model(Path(there, "qwen2"), "qwen2", bos=False)
        link_embedder(embedder := Path(there, "all-MiniLM-L6-v2"))
        world = make_world(Path(there), rgw, proxy, model, embedder)
        facts = {
            "rows": world.accounts["ingest"][0],
            "requests": world.requests,
            "unbroken_s": round(world.seconds, 1),
            "commit": circumstances()["commit"],  # before the files written here make it dirty
        }
        for scenario in [BY_NAME[name] for name in names] or sorted(
            SCENARIOS, key=lambda s: -s.promise
        ):  # short ones first
            outcome = meet(world, scenario)
            measured[outcome.name] = {**asdict(outcome), **circumstances(), **facts}
            print(row(measured[outcome.name]), *outcome.wrong, sep="\n", flush=True)
            write(measured)
    return int(any(found["wrong"] for found in measured.values()))


def write(measured: dict[str, dict[str, Any]]) -> None:
    in_order = {scenario.name: measured[scenario.name] for scenario in SCENARIOS if scenario.name in measured}
    record("reliability", in_order)
    facts = {name: shown({found[name] for found in in_order.values()}) for name in FACTS}
    DOCUMENT.write_text((TEXT + "\n".join(map(row, in_order.values())) + "\n" + END).format(**facts))


def shown(values: set[Any]) -> str:
    if all(isinstance(value, int | float) for value in values) and len(values) > 1:
        return f"{min(values):,.0f} to {max(values):,.0f}"
    return ", ".join(map(str, sorted(values)))


def row(found: dict[str, Any]) -> str:
    scenario, faults = BY_NAME[found["name"]], sum(found["fired"].values())
    stops = f"stops with exit code {scenario.promise}, then {'repaired' if scenario.promise == 3 else 'resumes'}: "
    kept = (stops if scenario.promise else "") + "exact"
    outcome = "**NOT AS PROMISED**" if found["wrong"] else kept
    seconds = " + ".join(f"{seconds:.0f}" for seconds in found["seconds"])
    return f"| {scenario.fault} | {scenario.rate} | {outcome} | {faults:,} | {seconds} | {found['unbroken_s']:.0f} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

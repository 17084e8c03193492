"""What `raypipe plan --measure` foretells of scoring, beside what the run then takes: CPU seconds of the actors.

    .venv/bin/python benchmarks/cost.py              # about 8 minutes; 5,002 rows of ../shared/data, or of --rows FILE

By the command line, with the default engine on two actors: the estimate from 500 rows with its interval, then the run, three
times. The figure is the worst of the three.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import raypipe
from benchmarks.record import PROJECT, circumstances, record
from benchmarks.score import ROWS, TRAINED_ON, read_rows, set_up
from raypipe import load_config, plan
from raypipe.demo import link_embedder
from raypipe.pipeline import cost_of_scoring

GOAL = 0.15  # of the run's CPU seconds, by which the estimate may be off
ROUNDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS, help="json lines with instruction, input, output")
    rows, found = parser.parse_args().rows, circumstances()
    model = set_up(read_rows(rows, TRAINED_ON))
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        link_embedder(embedder := Path(folder, "embedder"))
        config, prepared = str(PROJECT / "jobs" / "configs" / "code-alpaca.yaml"), Path(folder, "prepared")
        changes = [f"model={model}", f"embed.model={embedder}", f"ingest.paths=[{rows}]", "storage.root="]
        raypipe("run", config, *changes[:-1], f"storage.root={prepared}", "--until", "cluster")
        for number in range(ROUNDS):
            changes[-1] = f"storage.root={shutil.copytree(prepared, Path(folder, str(number)))}"
            raypipe("plan", config, *changes, "--measure")
            cost = cost_of_scoring(plan(load_config(config, changes)))
            raypipe("run", config, *changes, "--until", "score")
            made = plan(load_config(config, changes))["score"].manifest
            assert cost and cost.cpu_s and made, "scoring is not finished, or was not measured"
            rounds.append({"foretold": cost.cpu_s._asdict(), "took": made["figures"]["cpu_s"], "rows": made["rows"]})
    off = max(abs(one["foretold"]["mid"] / one["took"] - 1) for one in rounds)
    for one in rounds:
        low, mid, high = (one["foretold"][name] for name in ("low", "mid", "high"))
        print(f"{one['rows']} rows: foretold {mid:.1f} ({low:.1f} to {high:.1f}) CPU s, took {one['took']:.1f}")
    record("cost", {**found, "rounds": rounds, "off": round(off, 3), "goal": GOAL})
    print(f"an estimate from 500 rows is off by at most {off:.1%} (goal {GOAL:.0%}){'' if off <= GOAL else '  MISSED'}")
    return int(off > GOAL)


if __name__ == "__main__":
    sys.exit(main())

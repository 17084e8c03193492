"""Nodes and actors over time on a cluster that grows: the story of tests/scaling_story.py, with a node reclaimed while it scores.

    .venv/bin/python benchmarks/autoscaling.py     # writes docs/autoscaling.png; some two minutes

What it shows is tested (tests/test_autoscaling.py). The autoscaler is Ray's (version 2); its nodes are raylets on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plotting import pyplot
from benchmarks.record import PROJECT, circumstances, record
from tests.growing import growing
from tests.scaling_story import KILL_AT, KINDS

PANELS = {"nodes": ["L4", "H100", "cpu"], "actors": ["models", "trainers", "folds"]}


def tell(out: Path) -> dict[str, Any]:
    """The story as it was, with one event more."""
    with tempfile.TemporaryDirectory(prefix="rg", dir="/tmp") as short, growing(Path(short), KINDS) as grows:
        environment = {**os.environ, **grows.environment}
        driver = subprocess.Popen([sys.executable, "-m", "tests.scaling_story", str(out)], cwd=PROJECT, env=environment)
        while len(list(out.glob("score-*/part-*"))) < KILL_AT:
            if driver.poll() is not None:
                raise SystemExit(f"the driver ended before it scored: exit code {driver.returncode}")
            time.sleep(0.2)
        grows.raylets("H100")[0].kill()
        killed = time.time()
        if driver.wait():
            raise SystemExit(f"the driver ended with exit code {driver.returncode}")
    told: dict[str, Any] = json.loads((out / "story.json").read_text())
    told["events"].append([round(killed - told.pop("started"), 2), "a node is reclaimed"])
    told["events"].sort()
    return told


def plot(told: dict[str, Any], path: Path) -> None:
    figure, axes = pyplot().subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    for axis, (of, kinds) in zip(axes, PANELS.items(), strict=True):
        times = [at for at, _ in told[of]]
        for shift, kind in enumerate(kinds):
            axis.step(times, [found.get(kind, 0) + 0.03 * shift for _, found in told[of]], where="post", label=kind)
        for at, _ in told["events"]:
            axis.axvline(at, color="grey", linewidth=0.6, linestyle=":")
        axis.set(ylabel=of, ylim=(-0.1, None))
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="upper right")
    for at, what in told["events"]:
        axes[0].annotate(what, (at, 1), xycoords=("data", "axes fraction"), rotation=30, fontsize=7, va="bottom")
    axes[1].set(xlabel="s")
    figure.savefig(path, dpi=110)


def main() -> None:
    where = circumstances()
    with tempfile.TemporaryDirectory() as out:
        told = tell(Path(out))
    record("autoscaling", {**where, **told})
    plot(told, PROJECT / "docs" / "autoscaling.png")
    for at, what in told["events"]:
        print(f"{at:6.1f} s  {what}")


if __name__ == "__main__":
    main()

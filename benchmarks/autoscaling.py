"""Nodes and actors over time on a cluster that grows: the story of tests/scaling_story.py, with a node reclaimed while it scores.

    .venv/bin/python benchmarks/autoscaling.py     # writes docs/autoscaling.png; some two minutes

What it shows is tested (tests/test_autoscaling.py). The autoscaler is Ray's (version 2); its nodes are raylets on this machine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plotting import pyplot
from benchmarks.record import PROJECT, circumstances, record
from tests.scaling_story import told

PANELS = {"nodes": ["L4", "H100", "cpu"], "actors": ["models", "trainers", "folds"]}


def plot(story: dict[str, Any], path: Path) -> None:
    figure, axes = pyplot().subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    for axis, (of, kinds) in zip(axes, PANELS.items(), strict=True):
        times = [at for at, _ in story[of]]
        for shift, kind in enumerate(kinds):
            axis.step(times, [found.get(kind, 0) + 0.03 * shift for _, found in story[of]], where="post", label=kind)
        for at, _ in story["events"]:
            axis.axvline(at, color="grey", linewidth=0.6, linestyle=":")
        axis.set(ylabel=of, ylim=(-0.1, None))
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="upper right")
    for at, what in story["events"]:
        axes[0].annotate(what, (at, 1), xycoords=("data", "axes fraction"), rotation=30, fontsize=7, va="bottom")
    axes[1].set(xlabel="s")
    figure.savefig(path, dpi=110)


def main() -> None:
    where = circumstances()
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory(prefix="rg", dir="/tmp") as short:
        story, _ = told(Path(out), Path(short))
    record("autoscaling", {**where, **story})
    plot(story, PROJECT / "docs" / "autoscaling.png")
    for at, what in story["events"]:
        print(f"{at:6.1f} s  {what}")


if __name__ == "__main__":
    main()

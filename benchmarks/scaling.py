"""The cost model of docs/scaling.md: its constants from the runs that benchmarks/scale.py recorded, and how well it gives them back.

.venv/bin/python benchmarks/scaling.py           # at once; prints the tables
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.record import result
from benchmarks.scale import NUM_CLUSTERS, PART_ROWS, SIZES, middle

PASS_S = {100: 1.3e-6, 1000: 10.5e-6}  # CPU seconds a row of ops.kmeans.nearest, one thread
BYTES_READ, BYTES_PUT = 751, 27  # a row, of embed's parts and of cluster's
DIMENSIONS, ROUNDS = 384, 20


class Line(NamedTuple):
    """CPU seconds: `fixed` + `a_row` * rows."""

    fixed: float
    a_row: float

    def __call__(self, num_rows: float) -> float:
        return self.fixed + self.a_row * num_rows


def line(seconds: Mapping[int, float]) -> Line:
    """By least squares of relative errors."""
    rows, took = np.array(list(seconds), float), np.array(list(seconds.values()))
    fixed, a_row = np.linalg.lstsq(np.stack([1 / took, rows / took], 1), np.ones(len(rows)), rcond=None)[0]
    return Line(float(fixed), float(a_row))


def steps(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[int, float]]:
    fit = {size: middle(runs[str(size)], "fit_cpu_s") for size in SIZES}
    return {"fit": fit, "assign": {size: middle(runs[str(size)], "cpu_s") - fit[size] for size in SIZES}}


def main() -> None:
    measured = steps(json.loads(result("scale").read_text())["runs"]["ray"])
    lines = {step: line(seconds) for step, seconds in measured.items()}
    print(f"k = {NUM_CLUSTERS}: CPU seconds")
    for step, of in lines.items():
        print(f"{step}: {of.fixed:.1f} + {1e6 * of.a_row:.1f} a million rows")
    print("\n| rows | fit, predicted / measured | assign, predicted / measured | both |\n|---|---|---|---|")
    for size in SIZES:
        pairs = [(lines[step](size), measured[step][size]) for step in lines]
        pairs.append((sum(said for said, _ in pairs), sum(took for _, took in pairs)))
        print(f"| {size:,} | " + " | ".join(f"{said:.1f} / {took:.1f} s" for said, took in pairs) + " |")
    print("\n10^9 rows:\n\n| k | nodes of 16 cores | CPU hours | hours | network a node |\n|---|---|---|---|---|")
    for num_clusters in PASS_S:
        more = PASS_S[num_clusters] - PASS_S[NUM_CLUSTERS]
        held = max(512 * num_clusters, 100_000)
        rounds = (held * PASS_S[num_clusters] - 100_000 * PASS_S[NUM_CLUSTERS]) * ROUNDS / 2
        seconds = sum(of(1e9) for of in lines.values()) + 1e9 * more + rounds
        for nodes in (1, 10, 100):
            actors = 16 * nodes
            network = 1e9 * (2 * BYTES_READ + 2 * BYTES_PUT) / nodes + ROUNDS * 16 * num_clusters * DIMENSIONS * 12
            print(
                f"| {num_clusters:,} | {nodes} | {seconds / 3600:.1f} | {seconds / 3600 / actors:.2f} | {network / 1e9:.0f} GB |"
            )
    print(f"\n{1e9 / PART_ROWS:,.0f} parts")


if __name__ == "__main__":
    main()

"""The cost model of docs/scaling.md: its constants from the runs that benchmarks/scale.py recorded, and how well it gives them back.

.venv/bin/python benchmarks/scaling.py           # at once; prints the tables
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.record import result
from benchmarks.scale import NUM_CLUSTERS, PART_ROWS, SIZES, middle
from raypipe.ops import kmeans

PASS_S = {100: 1.2e-6, 1000: 10.5e-6}  # CPU seconds a row of ops.kmeans.nearest, one thread
VISITS = 5.5  # of rows in all rounds of a fit, over the rows of its last batch
BYTES_READ, BYTES_PUT = 668, 27  # a row, of embed's parts and of cluster's
DIMENSIONS, ROUNDS, NODE_CPUS = 384, 20, 16


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
    print("\n| k | nodes | CPU hours | hours | network a node |\n|---|---|---|---|---|")
    for num_clusters, nodes in itertools.product(PASS_S, (1, 10)):
        seconds = cpu_seconds(lines, 1e9, num_clusters)
        print(
            f"| {num_clusters:,} | {nodes} | {seconds / 3600:.1f} | {seconds / 3600 / NODE_CPUS / nodes:.2f} | "
            f"{network_bytes(1e9, num_clusters, nodes) / 1e9:,.0f} GB |"
        )
    print(f"\n{1e9 / PART_ROWS:,.0f} parts")


def cpu_seconds(lines: Mapping[str, Line], num_rows: float, num_clusters: int) -> float:
    """What was measured, and what more clusters add: to the one pass over all rows, and to the rounds over some."""
    a_pass, measured = PASS_S[num_clusters], PASS_S[NUM_CLUSTERS]
    rounds = VISITS * (last_batch(num_clusters) * a_pass - last_batch(NUM_CLUSTERS) * measured)
    return sum(of(num_rows) for of in lines.values()) + num_rows * (a_pass - measured) + rounds


def network_bytes(num_rows: float, num_clusters: int, nodes: int) -> float:
    """Of a node: its parts twice in, its labels out and in again; every round centres (float32) to its actors and sums (float64) back."""
    parts = num_rows * 2 * (BYTES_READ + BYTES_PUT) / nodes
    return parts + ROUNDS * NODE_CPUS * num_clusters * DIMENSIONS * (4 + 8)


def last_batch(num_clusters: int) -> int:
    return max(kmeans.END_ROWS_PER_CLUSTER * num_clusters, kmeans.END_ROWS)


if __name__ == "__main__":
    main()

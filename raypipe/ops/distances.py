"""How far rows are from their centres: silhouettes; sums by cluster and a histogram, which add up over parts; and drift between two of them.

B bins, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.ops.kmeans import Nearest
from raypipe.ops.sums import sums_by

EDGES = np.concatenate([[0.0], np.geomspace(1e-6, 1e6, 600), [np.inf]])  # of squared distances: 4.7 % a bin


@dataclass(frozen=True)
class Distances:
    counts_K: NDArray[np.int64]
    sse_K: NDArray[np.float64]  # sums of squared distances
    histogram_B: NDArray[np.int64]

    def __add__(self, other: Distances) -> Distances:
        return Distances(self.counts_K + other.counts_K, self.sse_K + other.sse_K, self.histogram_B + other.histogram_B)

    @property
    def inertia(self) -> float:
        """Mean squared distance over rows."""
        return float(self.sse_K.sum() / max(int(self.counts_K.sum()), 1))


@dataclass(frozen=True)
class MeasureDistances:
    """A part of cluster, with columns cluster_id and sq_distance, to Distances."""

    num_clusters: int

    def __call__(self, tables: list[pa.Table]) -> Distances:
        there = tables[0].filter(tables[0].column("cluster_id").is_valid())
        id_N, sq_distance_N = (there.column(name).to_numpy() for name in ("cluster_id", "sq_distance"))
        return Distances(
            np.bincount(id_N, minlength=self.num_clusters),
            sums_by(id_N, sq_distance_N, self.num_clusters),
            np.histogram(sq_distance_N, EDGES)[0],
        )


def silhouette(found: Nearest) -> NDArray[np.float64]:
    """[N] simplified silhouettes, by the distances a to the own centre and b to the nearest other: 1 - a / b, or b / a - 1 where the other is
    nearer (only of clusters that are given); 0 where both are 0 or there is no other."""
    a_N, b_N = (np.sqrt(sq_N.astype(np.float64)) for sq_N in (found.sq_distance, found.sq_second))
    other_N = np.isfinite(b_N) & (b_N > 0)
    nearer_N = b_N < a_N
    return np.where(
        nearer_N, b_N / np.where(nearer_N, a_N, 1) - 1, np.where(other_N, 1 - a_N / np.where(other_N, b_N, 1), 0.0)
    )


def drift(before_B: NDArray[np.int64], now_B: NDArray[np.int64]) -> float:
    """Kolmogorov-Smirnov statistic of two histograms: the largest difference of their distribution functions, 0 to 1."""
    shares = [np.cumsum(counts) / max(int(counts.sum()), 1) for counts in (before_B, now_B)]
    return float(np.abs(shares[0] - shares[1]).max())

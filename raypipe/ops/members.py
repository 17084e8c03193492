"""Clusters that are given: their centres are the means of their members.

N rows, K clusters, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.ops.kmeans import Nearest, Statistics, assign, move, rows_of
from raypipe.ops.sums import members

MOST_CLUSTERS = 1_000_000
FAR = 1e6  # in every dimension, of the centre of no sample: farther than any float16, so that nothing is ever assigned to it


@dataclass(frozen=True)
class Members:
    """Sums of rows by cluster, [K, D] float64 and exact (rows are on a grid), and how many; K is the highest id so far, and one."""

    sums_KD: NDArray[np.float64]
    counts_K: NDArray[np.int64]

    def __add__(self, other: Members) -> Members:
        one, two = sorted((self, other), key=lambda members: len(members.counts_K))
        more = len(two.counts_K) - len(one.counts_K)
        return Members(
            np.pad(one.sums_KD, ((0, more), (0, 0))) + two.sums_KD, np.pad(one.counts_K, (0, more)) + two.counts_K
        )

    def centers(self, metric: str) -> NDArray[np.float32]:
        """[K, D]; FAR for an id that no sample has."""
        far_KD = np.full(self.sums_KD.shape, FAR, np.float32)
        return move(far_KD, Statistics(self.sums_KD, self.counts_K, np.zeros(len(self.counts_K))), metric)


@dataclass(frozen=True)
class Gather:
    """A part's embeddings and given clusters (aligned) to Members."""

    metric: str

    def __call__(self, tables: list[pa.Table]) -> Members:
        there = both(tables)
        id_N = tables[1].column("cluster_id").filter(pa.array(there)).to_numpy()
        x_ND = rows_of(tables[0].filter(pa.array(there)), self.metric).astype(np.float64)
        num_clusters = int(id_N.max(initial=-1)) + 1
        return Members(members(id_N, num_clusters) @ x_ND, np.bincount(id_N, minlength=num_clusters))


def both(tables: list[pa.Table]) -> NDArray[np.bool_]:
    """[N] rows with an embedding and a cluster."""
    embedding, cluster = tables[0].column("embedding"), tables[1].column("cluster_id")
    return np.asarray(embedding.is_valid().to_numpy() & cluster.is_valid().to_numpy())


def distances(x_ND: NDArray[np.float32], id_N: NDArray[np.integer[Any]], centers_KD: NDArray[np.float32]) -> Nearest:
    """To the own centre, and to the nearest of the others."""
    found = assign(x_ND, centers_KD)
    difference_ND = x_ND - centers_KD[id_N]
    own_N = np.einsum("nd,nd->n", difference_ND, difference_ND)
    return Nearest(id_N, own_N, np.where(found.cluster_id == id_N, found.sq_second, found.sq_distance))

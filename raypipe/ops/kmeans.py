"""Mini-batch k-means as pure steps: rows and centres in, statistics that add up out.

Batches are nested and growing (Newling and Fleuret, arXiv 1602.02934): a row is in the batch while its `draw` lies below a
threshold that only rises, so each round is one Lloyd step on a growing random sample, the same whatever the sharding. The
sums are exact: rows are multiples of 2^-20 and distances of 2^-16, added in float64, so equal data and seed give equal
bits with any number of actors. Cost: one pass over the batch a round, N * K * D multiplications.

x_ND rows, centers_KD centres; N rows, K clusters, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from raypipe.ops.text import draw, id_words

ROW_GRID, DISTANCE_GRID = 2.0**20, 2.0**16
SAMPLE_ROWS = 20_000  # that k-means++ starts from
FIRST_BATCH_ROWS_PER_CLUSTER = 256
TOLERANCE = 1e-3  # relative fall of inertia a round, below which the batch doubles; at the whole, the end
MAX_ROUNDS = 100

Fold = Callable[[Callable[[list[pa.Table]], Any]], Any]


def rows_of(table: pa.Table, metric: str) -> NDArray[np.float32]:
    """[N, D] embeddings that are there, on the grid; for cosine of unit length. A zero row stays zero."""
    column = table.column("embedding").combine_chunks()
    array = (pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column).drop_null()
    x_ND = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), column.type.list_size).astype(np.float32)
    if metric == "cosine":
        x_ND = unit_rows(x_ND)
    return np.asarray(np.rint(x_ND * ROW_GRID) / ROW_GRID, dtype=np.float32)


def unit_rows(x_ND: NDArray[Any]) -> NDArray[Any]:
    norms = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.asarray(x_ND / np.where(norms > 0, norms, 1).astype(x_ND.dtype))


def assign(x_ND: NDArray[np.float32], centers_KD: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Nearest centre of each row (ties: the lowest id) and the squared distance to it, at least 0."""
    sq_distance_NK = (x_ND * x_ND).sum(1)[:, None] - 2 * (x_ND @ centers_KD.T) + (centers_KD * centers_KD).sum(1)
    nearest_N = sq_distance_NK.argmin(1)
    return nearest_N.astype(np.int32), np.maximum(sq_distance_NK[np.arange(len(x_ND)), nearest_N], 0).astype(np.float32)


@dataclass(frozen=True)
class Statistics:
    """Of a set of rows under given centres; adds up over sets."""

    sums_KD: NDArray[np.float64]
    counts_K: NDArray[np.int64]
    inertia: float

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.sums_KD + other.sums_KD, self.counts_K + other.counts_K, self.inertia + other.inertia)


def statistics(x_ND: NDArray[np.float32], centers_KD: NDArray[np.float32]) -> Statistics:
    nearest_N, sq_distance_N = assign(x_ND, centers_KD)
    num_rows, num_clusters = len(x_ND), len(centers_KD)
    member_KN = csr_matrix((np.ones(num_rows), (nearest_N, np.arange(num_rows))), shape=(num_clusters, num_rows))
    inertia = float((np.rint(sq_distance_N.astype(np.float64) * DISTANCE_GRID) / DISTANCE_GRID).sum())
    return Statistics(member_KN @ x_ND.astype(np.float64), np.bincount(nearest_N, minlength=num_clusters), inertia)


def move(centers_KD: NDArray[np.float32], found: Statistics, metric: str) -> NDArray[np.float32]:
    """Centres to the means of their rows, of unit length for cosine. An empty cluster keeps its centre."""
    means_KD = found.sums_KD / np.maximum(found.counts_K, 1)[:, None]
    if metric == "cosine":
        means_KD = unit_rows(means_KD)
    return np.where(found.counts_K[:, None] > 0, means_KD, centers_KD).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Rows of a part whose draw lies below `share` of all draws; a part function for a fold."""

    share: float
    seed: int
    metric: str

    def rows(self, table: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
        there = table.filter(table.column("embedding").is_valid())
        draws_N = draw(id_words(there.column("sample_id")), self.seed)
        inside_N = (
            draws_N < np.uint64(min(int(self.share * 2**64), 2**64 - 1))
            if self.share < 1
            else np.ones(len(draws_N), bool)
        )
        return rows_of(there.filter(pa.array(inside_N)), self.metric), draws_N[inside_N]


@dataclass(frozen=True)
class Step:
    batch: Batch
    centers_KD: NDArray[np.float32]

    def __call__(self, tables: list[pa.Table]) -> Statistics:
        return statistics(self.batch.rows(tables[0])[0], self.centers_KD)


@dataclass(frozen=True)
class Sample:
    batch: Batch

    def __call__(self, tables: list[pa.Table]) -> Drawn:
        return Drawn(*self.batch.rows(tables[0]))


@dataclass(frozen=True)
class Drawn:
    x_ND: NDArray[np.float32]
    draws_N: NDArray[np.uint64]

    def __add__(self, other: Drawn) -> Drawn:
        return Drawn(np.concatenate([self.x_ND, other.x_ND]), np.concatenate([self.draws_N, other.draws_N]))


@dataclass(frozen=True)
class State:
    """After a round: all that the next one needs."""

    centers_KD: NDArray[np.float32]
    share: float
    inertia: float  # mean over the batch; infinite before the first round
    done: bool = False


def start(fold: Fold, num_rows: int, num_clusters: int, *, metric: str, seed: int) -> State:
    """Greedy k-means++ (scikit-learn's) on the SAMPLE_ROWS rows with the lowest draws."""
    from sklearn.cluster import kmeans_plusplus

    drawn: Drawn = fold(Sample(Batch(min(1.0, 1.5 * SAMPLE_ROWS / num_rows), seed, metric)))
    lowest = np.argsort(drawn.draws_N, kind="stable")[:SAMPLE_ROWS]
    centers_KD, _ = kmeans_plusplus(drawn.x_ND[lowest], num_clusters, random_state=seed)
    return State(
        centers_KD.astype(np.float32), min(1.0, num_clusters * FIRST_BATCH_ROWS_PER_CLUSTER / num_rows), np.inf
    )


def advance(fold: Fold, state: State, *, metric: str, seed: int) -> State:
    """One round: a Lloyd step on the batch; the batch doubles when steps no longer pay."""
    found: Statistics = fold(Step(Batch(state.share, seed, metric), state.centers_KD))
    inertia = found.inertia / max(int(found.counts_K.sum()), 1)
    settled = state.inertia - inertia < TOLERANCE * inertia
    share = min(1.0, 2 * state.share) if settled else state.share
    return State(
        move(state.centers_KD, found, metric), share, np.inf if settled else inertia, settled and state.share == 1
    )

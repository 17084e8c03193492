"""Mini-batch k-means as pure steps: rows and centres in, statistics that add up out.

Batches are nested and growing (Newling and Fleuret, arXiv 1602.02934): a row is in the batch while its `draw` lies below a share
that only rises, so a round is one Lloyd step on a growing random sample, each row counted once with its latest assignment. A
batch doubles when the sampling error of a centre outweighs how far it moved, and ends at END_ROWS_PER_CLUSTER: centres of b rows
lie K / b above the best inertia, 0.2 % there, wherever the lake ends. Cost: N * K * D multiplications a round over N rows.

The sums are exact: rows are multiples of 2^-20 and squared distances of 2^-16 (ops.sums), added in float64. So sets of rows add up to the same
bits in any order; within a set a matrix product is the same as long as the set is, so sets must not follow from the number of
actors (see folds.Shards).

x_ND rows, centers_KD centres; N rows, K clusters, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.ops.sums import members, sums_by
from raypipe.ops.text import draw, id_words

ROW_GRID = 2.0**20
SAMPLE_ROWS = 20_000  # that k-means++ starts from
FIRST_ROWS_PER_CLUSTER, FIRST_ROWS = 64, 2000  # of the first batch, whichever are more
END_ROWS_PER_CLUSTER, END_ROWS = 512, 100_000  # of the last
NOISE = 2.0  # sampling error of a centre over its movement, above which the batch doubles: 1 to 10 were tried
RELAXATION = 1.3  # times as far as its mean that a centre moves while batches grow; then 1, so that inertia falls
TOLERANCE = 5e-4  # relative fall of inertia in a round of the last batch, below which the fit ends
MAX_ROUNDS = 100
BLOCK = {"cpu": 2048, "cuda": 65_536}  # rows whose distances exist at once

Array = Any  # of numpy, or a tensor of torch on the device
Fold = Callable[[Callable[["Drawn"], Any]], Any]  # sums a function over sets of rows


def rows_of(table: pa.Table, metric: str) -> NDArray[np.float32]:
    """[N, D] embeddings that are there, on the grid; for cosine of unit length. A zero row stays zero."""
    column = table.column("embedding").combine_chunks()
    array = (pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column).drop_null()
    x_ND = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), column.type.list_size).astype(np.float32)
    if metric == "cosine":
        unit_rows(x_ND, out=x_ND)
    return on_grid(x_ND, out=x_ND)  # in place: of several such arrays malloc gives the memory back, part by part


def on_grid(x_ND: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    y_ND = np.multiply(x_ND, np.float32(ROW_GRID), out=out)
    np.rint(y_ND, out=y_ND)
    y_ND *= np.float32(1 / ROW_GRID)  # a power of two: exact
    return np.asarray(y_ND, np.float32)


def unit_rows(x_ND: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    norms = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND))[:, None]
    return np.asarray(np.divide(x_ND, np.where(norms > 0, norms, 1).astype(x_ND.dtype), out=out))


class Nearest(NamedTuple):
    """[N]: id of the nearest centre (ties: the lowest), squared distances to it and to the second nearest, at least 0."""

    cluster_id: Array
    sq_distance: Array
    sq_second: Array


def nearest(x_ND: Array, centers_KD: Array, *, second: bool = False) -> Nearest:
    """`sq_second` is filled only where it is asked for; infinite where there is one centre."""
    xp = _module_of(x_ND)
    half_K = (centers_KD * centers_KD).sum(1) / 2
    found, size = [], BLOCK[x_ND.device.type if xp is not np else "cpu"]
    for first in range(0, max(len(x_ND), 1), size):
        block_ND = x_ND[first : first + size]
        near_NK = block_ND @ centers_KD.T
        xp.subtract(half_K, near_NK, out=near_NK)  # half the squared distance, but for the row's own length
        rows, cluster_id = xp.arange(len(block_ND), device=block_ND.device), near_NK.argmin(1)
        distances = [near_NK[rows, cluster_id]]
        if second:
            near_NK[rows, cluster_id] = float("inf")
            distances.append(near_NK[rows, near_NK.argmin(1)])
        own_N = xp.einsum("nd,nd->n", block_ND, block_ND)
        found.append((cluster_id, *((2 * distance + own_N).clip(0) for distance in distances)))
    columns = [xp.concatenate(column) for column in zip(*found, strict=True)]
    return Nearest(columns[0], columns[1], columns[-1])


def assign(x_ND: NDArray[np.float32], centers_KD: NDArray[np.float32], device: str = "cpu") -> Nearest:
    """With distances to the second nearest too."""
    if device == "cpu":
        return nearest(x_ND, centers_KD, second=True)
    import torch

    x, centers = (torch.as_tensor(array, device=device) for array in (x_ND, centers_KD))
    return Nearest(*(column.cpu().numpy() for column in nearest(x, centers, second=True)))


@dataclass(frozen=True)
class Statistics:
    """Of a set of rows under given centres; adds up over sets. `sse_K`: sums of squared distances."""

    sums_KD: NDArray[np.float64]
    counts_K: NDArray[np.int64]
    sse_K: NDArray[np.float64]

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.sums_KD + other.sums_KD, self.counts_K + other.counts_K, self.sse_K + other.sse_K)

    @property
    def inertia(self) -> float:
        """Mean over rows."""
        return float(self.sse_K.sum() / max(int(self.counts_K.sum()), 1))


def statistics(x_ND: NDArray[np.float32], centers_KD: NDArray[np.float32], device: str = "cpu") -> Statistics:
    """numpy on a CPU (a fifth faster than torch there), torch on a GPU: exact sums do not mind the order of its atomics."""
    num_clusters = len(centers_KD)
    if device == "cpu":
        found = nearest(x_ND, centers_KD)
        sums_KD, id_N = np.zeros((num_clusters, x_ND.shape[1])), found.cluster_id
        for first in range(0, len(x_ND), BLOCK["cpu"]):
            block = slice(first, first + BLOCK["cpu"])
            sums_KD += members(id_N[block], num_clusters) @ x_ND[block].astype(np.float64)
        return Statistics(
            sums_KD, np.bincount(id_N, minlength=num_clusters), sums_by(id_N, found.sq_distance, num_clusters)
        )
    return torch_statistics(x_ND, centers_KD, device)


def torch_statistics(x_ND: NDArray[np.float32], centers_KD: NDArray[np.float32], device: str) -> Statistics:
    import torch

    x, centers = (torch.as_tensor(array, device=device) for array in (x_ND, centers_KD))
    found = nearest(x, centers)
    sums = torch.zeros(centers.shape, dtype=torch.float64, device=device)
    for block in torch.arange(len(x), device=device).split(BLOCK["cuda"]):
        sums.index_add_(0, found.cluster_id[block], x[block].double())
    id_N, sq_distance_N = found.cluster_id.cpu().numpy(), found.sq_distance.cpu().numpy()
    counts_K = np.bincount(id_N, minlength=len(centers_KD))
    return Statistics(sums.cpu().numpy(), counts_K, sums_by(id_N, sq_distance_N, len(centers_KD)))


def move(centers_KD: NDArray[np.float32], found: Statistics, metric: str) -> NDArray[np.float32]:
    """Centres to the means of their rows, of unit length for cosine. An empty cluster keeps its centre."""
    means_KD = found.sums_KD / np.maximum(found.counts_K, 1)[:, None]
    if metric == "cosine":
        means_KD = unit_rows(means_KD)
    return np.where(found.counts_K[:, None] > 0, means_KD, centers_KD).astype(np.float32)


@dataclass(frozen=True)
class Drawn:
    """Rows with their draws, lowest first: a smaller batch is a shorter beginning."""

    x_ND: NDArray[np.float32]
    draws_N: NDArray[np.uint64]

    @staticmethod
    def of(x_ND: NDArray[np.float32], draws_N: NDArray[np.uint64]) -> Drawn:
        order = np.argsort(draws_N, kind="stable")
        return Drawn(x_ND[order], draws_N[order])

    def __add__(self, other: Drawn) -> Drawn:
        return Drawn.of(np.concatenate([self.x_ND, other.x_ND]), np.concatenate([self.draws_N, other.draws_N]))

    @property
    def nbytes(self) -> int:
        return self.x_ND.nbytes + self.draws_N.nbytes

    def below(self, share: float) -> Drawn:
        end = len(self.draws_N) if share >= 1 else int(np.searchsorted(self.draws_N, np.uint64(int(share * 2**64))))
        return Drawn(self.x_ND[:end], self.draws_N[:end])


@dataclass(frozen=True)
class Draw:
    """Of some parts' tables, the rows whose draw lies below `share` of all draws."""

    share: float
    seed: int
    metric: str

    def __call__(self, parts: Iterable[list[pa.Table]]) -> Drawn:
        found = [self._of(tables[0]) for tables in parts]
        return Drawn.of(np.concatenate([x for x, _ in found]), np.concatenate([draws for _, draws in found]))

    def _of(self, table: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
        there = table.column("embedding").is_valid().to_numpy()
        draws_N = draw(id_words(table.column("sample_id")), self.seed)
        inside_N = there if self.share >= 1 else there & (draws_N < np.uint64(int(self.share * 2**64)))
        return rows_of(table.filter(pa.array(inside_N)), self.metric), draws_N[inside_N]


@dataclass(frozen=True)
class Below:
    """The rows of a smaller share themselves: to start from."""

    share: float

    def __call__(self, drawn: Drawn) -> Drawn:
        return drawn.below(self.share)


@dataclass(frozen=True)
class Step:
    centers_KD: NDArray[np.float32]
    share: float
    device: str = "cpu"

    def __call__(self, drawn: Drawn) -> Statistics:
        return statistics(drawn.below(self.share).x_ND, self.centers_KD, self.device)


@dataclass(frozen=True)
class State:
    """After a round: all that the next one needs."""

    centers_KD: NDArray[np.float32]
    share: float
    inertia: float = np.inf  # mean over the batch; infinite before the first round of a batch
    done: bool = False


@dataclass(frozen=True)
class Fit:
    """One fit: how its batches grow. `fold` sums a function of Drawn over sets that hold the rows below `end_share`."""

    num_rows: int
    num_clusters: int
    metric: str
    seed: int
    device: str = "cpu"

    @property
    def first_share(self) -> float:
        return min(1.0, max(FIRST_ROWS_PER_CLUSTER * self.num_clusters, FIRST_ROWS) / self.num_rows)

    @property
    def end_share(self) -> float:
        return min(1.0, max(END_ROWS_PER_CLUSTER * self.num_clusters, END_ROWS) / self.num_rows)

    @property
    def drawn(self) -> Draw:
        return Draw(self.end_share, self.seed, self.metric)

    def start(self, fold: Fold) -> State:
        """Greedy k-means++ (scikit-learn's) on the SAMPLE_ROWS rows with the lowest draws; on two a cluster where that is more."""
        from sklearn.cluster import kmeans_plusplus

        wanted = max(SAMPLE_ROWS, 2 * self.num_clusters)
        sample: Drawn = fold(Below(min(self.end_share, 1.5 * wanted / self.num_rows)))
        centers_KD, _ = kmeans_plusplus(sample.x_ND[:wanted], self.num_clusters, random_state=self.seed)
        return State(centers_KD.astype(np.float32), self.first_share)

    def advance(self, fold: Fold, state: State) -> State:
        """One round."""
        found: Statistics = fold(Step(state.centers_KD, state.share, self.device))
        centers_KD = move(state.centers_KD, found, self.metric)
        if state.share < self.end_share:
            grows = noise(state.centers_KD, centers_KD, found) > NOISE
            centers_KD = relaxed(state.centers_KD, centers_KD, self.metric)
            return State(centers_KD, min(self.end_share, 2 * state.share) if grows else state.share)
        return State(centers_KD, state.share, found.inertia, state.inertia - found.inertia < TOLERANCE * found.inertia)


def relaxed(before_KD: NDArray[np.float32], after_KD: NDArray[np.float32], metric: str) -> NDArray[np.float32]:
    """Centres moved on by RELAXATION: the rounds of a small batch are the cheap ones, so what they find out is taken further."""
    further_KD = before_KD + np.float32(RELAXATION) * (after_KD - before_KD)
    return unit_rows(further_KD) if metric == "cosine" else further_KD


def noise(before_KD: NDArray[np.float32], after_KD: NDArray[np.float32], found: Statistics) -> float:
    """Median over clusters of a centre's standard error over its movement; infinite for one that did not move."""
    moved_K = np.linalg.norm(after_KD - before_KD, axis=1)
    error_K = np.sqrt(found.sse_K / np.maximum(found.counts_K * (found.counts_K - 1.0), 1))
    return float(np.median(np.where(moved_K > 0, error_K / np.where(moved_K > 0, moved_K, 1), np.inf)))


def _module_of(x: Array) -> Any:
    if isinstance(x, np.ndarray):
        return np
    import torch

    return torch

"""What benchmarks/kmeans.py measures: each contestant's way from rows to centres, the fit alone and end to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans

from raypipe.ops import kmeans

NUM_ROWS, WITHIN = 1_000_000, 1.01
BATCHES = (1024, 4096, 16384)
BLOCK = 4096  # rows that come at once, as a part's do
LOOKED_AT = slice(None, None, 20)  # rows that inertia is measured on

Rows = NDArray[np.float32]
Centers = NDArray[np.float32]


class Lloyd(NamedTuple):
    """Full Lloyd's from a start. `inertia` is the mean squared distance before every round, the last one after it."""

    start_KD: Centers
    centers_KD: Centers
    inertia: NDArray[np.float64]


class Case(NamedTuple):
    name: str
    x_ND: Rows
    num_clusters: int
    lloyd: Lloyd

    def ratio(self, centers_KD: Centers) -> float:
        """To Lloyd's, on the rows looked at."""
        here, there = (inertia(self.x_ND[LOOKED_AT], centers) for centers in (centers_KD, self.lloyd.centers_KD))
        return here / there


def inertia(x_ND: Rows, centers_KD: Centers) -> float:
    return float(kmeans.nearest(x_ND, centers_KD).sq_distance.mean(dtype=np.float64))


# Fit to 1 %: first the start, once rows are in memory in the form that is wanted, then centres after every piece of work.


def ours(case: Case, seed: int) -> Iterator[Centers]:
    fit, fold = local_fit(case, seed)
    state = replace(fit.start(fold), centers_KD=case.lloyd.start_KD)
    yield state.centers_KD
    while not state.done:
        state = fit.advance(fold, state)
        yield state.centers_KD


def local_fit(case: Case, seed: int) -> tuple[kmeans.Fit, kmeans.Fold]:
    """All in one set of rows. As `draw` says which rows are in a batch, only those are read."""
    fit = kmeans.Fit(NUM_ROWS, case.num_clusters, "euclidean", seed)
    draws_N = np.random.default_rng(seed).integers(0, 2**64, NUM_ROWS, np.uint64)
    inside_N = draws_N < np.uint64(min(int(fit.end_share * 2**64), 2**64 - 1))
    blocks = np.array_split(np.flatnonzero(inside_N), -(-int(inside_N.sum()) // BLOCK))
    x_ND = np.concatenate([kmeans.on_grid(case.x_ND[block]) for block in blocks])
    drawn = kmeans.Drawn.of(x_ND, draws_N[inside_N])
    return fit, lambda function: function(drawn)


def mini_batch(case: Case, seed: int, size: int) -> Iterator[Centers]:
    yield case.lloyd.start_KD
    rng = np.random.default_rng(seed)
    model = MiniBatchKMeans(
        case.num_clusters, init=case.lloyd.start_KD, n_init=1, batch_size=size, random_state=seed, compute_labels=False
    )
    while True:
        model.partial_fit(case.x_ND[rng.integers(NUM_ROWS, size=size)])
        yield model.cluster_centers_


def sklearn_lloyd(case: Case, seed: int) -> Iterator[Centers]:
    """As many rounds as it took our own Lloyd's, which is the same but for rounding."""
    yield case.lloyd.start_KD
    rounds = int(np.argmax(case.lloyd.inertia <= WITHIN * case.lloyd.inertia[-1]))
    model = KMeans(case.num_clusters, init=case.lloyd.start_KD, n_init=1, max_iter=rounds, tol=0, random_state=seed)
    yield model.fit(case.x_ND).cluster_centers_


def faiss_lloyd(case: Case, seed: int, rows_per_cluster: int) -> Iterator[Centers]:
    import faiss

    yield (centers_KD := case.lloyd.start_KD)
    some_ND = case.x_ND[: rows_per_cluster * case.num_clusters]
    model = faiss.Kmeans(
        case.x_ND.shape[1], case.num_clusters, niter=1, seed=seed + 1, max_points_per_centroid=rows_per_cluster
    )
    while True:
        model.train(some_ND, init_centroids=centers_KD)
        yield (centers_KD := model.centroids)


def super_kmeans(case: Case, seed: int, rows_per_cluster: int, iterations: int) -> Centers:
    import faiss

    model = faiss.SuperKmeans(
        case.x_ND.shape[1], case.num_clusters, niter=iterations, seed=seed + 1, max_points_per_centroid=rows_per_cluster
    )
    model.train(case.x_ND[: rows_per_cluster * case.num_clusters])
    return np.asarray(model.centroids)


FITS: dict[str, Callable[[Case, int], Iterator[Centers]]] = {
    "raypipe": ours,
    **{f"scikit-learn MiniBatchKMeans {size}": partial(mini_batch, size=size) for size in BATCHES},
    "scikit-learn KMeans": sklearn_lloyd,
    **{f"faiss Kmeans {rows} rows a cluster": partial(faiss_lloyd, rows_per_cluster=rows) for rows in (256, 512)},
}
SUPER = {f"faiss SuperKmeans {rows} rows a cluster": rows for rows in (256, 512)}


# End to end: rows to centres and labels.


def all_ours(case: Case, seed: int) -> tuple[Centers, Any]:
    fit, fold = local_fit(case, seed)
    state = fit.start(fold)
    while not state.done:
        state = fit.advance(fold, state)
    blocks = (case.x_ND[first : first + BLOCK] for first in range(0, NUM_ROWS, BLOCK))
    return state.centers_KD, [kmeans.nearest(block, state.centers_KD).cluster_id for block in blocks]


def all_sklearn(case: Case, seed: int, size: int) -> tuple[Centers, Any]:
    model = MiniBatchKMeans(case.num_clusters, batch_size=size, random_state=seed).fit(case.x_ND)
    return model.cluster_centers_, model.labels_


def all_faiss(case: Case, seed: int, kind: str) -> tuple[Centers, Any]:
    import faiss

    model = getattr(faiss, kind)(case.x_ND.shape[1], case.num_clusters, seed=seed + 1)
    model.train(case.x_ND)
    return model.centroids, model.assign(case.x_ND)[1]


WHOLES: dict[str, Callable[[Case, int], tuple[Centers, Any]]] = {
    "raypipe": all_ours,
    **{f"scikit-learn MiniBatchKMeans {size}": partial(all_sklearn, size=size) for size in BATCHES},
    "faiss Kmeans": partial(all_faiss, kind="Kmeans"),
    "faiss SuperKmeans": partial(all_faiss, kind="SuperKmeans"),
}


def pruned(case: Case) -> dict[str, float]:
    """SuperKmeans' assignment beside ours in a late round: of rows whose last centre is known, as it does not take others."""
    import faiss
    from scipy.stats import chi2

    x_ND, before_KD = case.x_ND[: 512 * case.num_clusters], case.lloyd.centers_KD
    num_rows, num_dimensions = x_ND.shape
    before_N = kmeans.nearest(x_ND, before_KD).cluster_id.astype(np.int32)
    centers_KD = kmeans.move(before_KD, kmeans.statistics(x_ND, before_KD), "euclidean")
    turn_DD = np.linalg.qr(np.random.default_rng(0).standard_normal((num_dimensions, num_dimensions)))[0]
    turned_ND, turned_KD = (np.ascontiguousarray(a @ turn_DD.astype(np.float32)) for a in (x_ND, centers_KD))
    bounds = np.r_[0.0, chi2.ppf(1 - 1 / num_dimensions, np.arange(1, num_dimensions + 1)) / num_dimensions]
    settings, split, found = faiss.SuperKMeansParameters(), num_dimensions // 8, list[dict[str, float]]()
    started = time.process_time()
    exact_N = kmeans.nearest(x_ND, centers_KD).cluster_id
    ours_s = time.process_time() - started
    for _ in range(8):  # by its own rule for how many dimensions are multiplied for all pairs
        id_N = before_N.copy()
        started = time.process_time()
        known_N = np.concatenate(
            [
                np.square(turned_ND[block] - turned_KD[id_N[block]]).sum(1)
                for block in np.array_split(np.arange(num_rows), num_rows // 1024)
            ]
        )  # squared distances to the last centre, where it is now
        pairs, left = faiss.super_kmeans_assign_iteration(
            turned_ND, turned_KD, known_N, id_N, split, bounds.astype(np.float32), settings
        )
        spent, share = time.process_time() - started, left / pairs
        found.append({"pruned_s": spent, "split": split, "pruned": share, "wrong": float((id_N != exact_N).mean())})
        change = 0.8 if share > settings.pruning_target_high else 1.2 if share < settings.pruning_target_low else 1.0
        split = min(max(settings.d_prime_min, round(split * change)), num_dimensions // 2)
    moved = float((before_N != exact_N).mean())
    return {"rows": num_rows, "moved": moved, "raypipe_s": ours_s, **min(found, key=lambda one: one["pruned_s"])}

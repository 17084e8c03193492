"""How many clusters? Five criteria for every k that is tried, each from one pass over the rows under fitted centres.

inertia           mean squared distance to the nearest centre; falls with every k, so what counts is its elbow in log k
silhouette        simplified: 1 - distance / distance to the second nearest centre, mean over rows; the highest
Calinski-Harabasz squares between clusters over squares within, each by its degrees of freedom; the highest
BIC               of spherical Gaussians that share one variance, every row belonging to its own cluster (X-means, Pelleg and
                  Moore 2000, with the variance of maximum likelihood): -2 log-likelihood + p log N of
                  p = K D means + K - 1 shares + 1 variance; the lowest
stability         adjusted Rand index of the clusters that two seeds find, mean over pairs; the highest

They answer different questions and disagree on real data, so `verdict` says who says what. None stands for what is not defined:
all but inertia and BIC of one cluster, and Calinski-Harabasz and BIC of clusters without any spread.

Rows of cosine are of unit length (kmeans.rows_of). Squares are about the means of the rows, inertia about the centres.

x_ND rows, centers_KD centres; N rows, K clusters, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.ops import kmeans
from raypipe.ops.distances import silhouette
from raypipe.ops.sums import exact

PAPER_CLUSTERS = 10
FAINT = 0.1  # of the fall of inertia: an elbow less far below the chord is hardly one
NAMES = {
    "inertia": "the elbow of inertia",
    "silhouette": "silhouette",
    "calinski_harabasz": "Calinski-Harabasz",
    "bic": "BIC",
    "stability": "stability",
}
FINER = {"stability"}  # where two k are equally good, the finer clusters; else the fewer

Ids = NDArray[np.integer[Any]]
Row = Mapping[str, Any]  # of one k; see `row`


@dataclass(frozen=True)
class Quality:
    """Of one fit."""

    inertia: float
    silhouette: float | None
    calinski_harabasz: float | None
    bic: float | None
    smallest: float  # share of the rows; 0 where a cluster is empty
    largest: float


def fit(
    x_ND: NDArray[np.float32], num_clusters: int, metric: str, seed: int, each_round: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """[K, D] centres, by the steps of a real fit with these rows for its lake. The seed draws the batches too."""
    draws_N = np.random.default_rng(seed).integers(0, 2**64, len(x_ND), dtype=np.uint64)
    drawn = kmeans.Drawn.of(x_ND, draws_N)
    steps = kmeans.Fit(len(x_ND), num_clusters, metric, seed)
    state = steps.start(lambda function: function(drawn))
    for _ in range(kmeans.MAX_ROUNDS):
        each_round()
        state = steps.advance(lambda function: function(drawn), state)
        if state.done:
            break
    return state.centers_KD


def quality(x_ND: NDArray[np.float32], found: kmeans.Nearest, num_clusters: int) -> Quality:
    within, between, counts_K = squares(x_ND, found.cluster_id, num_clusters)
    several = int((counts_K > 0).sum()) > 1
    return Quality(
        inertia=float(exact(found.sq_distance).mean()),
        silhouette=float(silhouette(found).mean()) if several else None,
        calinski_harabasz=calinski_harabasz(within, between, counts_K, x_ND.shape[1]) if several else None,
        bic=bic(within, counts_K, x_ND.shape[1]),
        smallest=float(counts_K.min() / len(x_ND)),
        largest=float(counts_K.max() / len(x_ND)),
    )


def squares(x_ND: NDArray[np.float32], id_N: Ids, num_clusters: int) -> tuple[float, float, NDArray[np.int64]]:
    """Sums of squares within clusters and between them, about means, and [K] rows of each."""
    counts_K = np.bincount(id_N, minlength=num_clusters)
    members = np.split(np.argsort(id_N, kind="stable"), np.cumsum(counts_K)[:-1])
    within, means = 0.0, []
    for rows in members:
        if len(rows):
            own_ND = x_ND[rows].astype(np.float64)
            means.append(own_ND.mean(0))
            within += float(((own_ND - means[-1]) ** 2).sum())
    there, means_KD = counts_K[counts_K > 0], np.stack(means)
    apart_K = ((means_KD - there @ means_KD / len(x_ND)) ** 2).sum(1)
    return within, float(there @ apart_K), counts_K


def calinski_harabasz(within: float, between: float, counts_K: NDArray[np.int64], dimensions: int) -> float | None:
    rows, clusters = int(counts_K.sum()), int((counts_K > 0).sum())
    if clusters < 2 or rows <= clusters or _no_spread(within, rows * dimensions):
        return None
    return between / (clusters - 1) / (within / (rows - clusters))


def bic(within: float, counts_K: NDArray[np.int64], dimensions: int) -> float | None:
    there = counts_K[counts_K > 0]
    rows, clusters = int(there.sum()), len(there)
    if _no_spread(within, rows * dimensions):
        return None
    variance = within / (rows * dimensions)  # of one dimension
    log_likelihood = there @ np.log(there / rows) - rows * dimensions / 2 * (np.log(2 * np.pi * variance) + 1)
    return float((clusters * dimensions + clusters) * np.log(rows) - 2 * log_likelihood)


def agreements(ids: Sequence[Ids]) -> list[float]:
    """Adjusted Rand index of every pair: 1 for the same clusters under whatever names, 0 at the mean of chance."""
    from sklearn.metrics import adjusted_rand_score

    return [float(adjusted_rand_score(one, other)) for one, other in combinations(ids, 2)]


def row(num_clusters: int, qualities: Sequence[Quality], ids: Sequence[Ids]) -> dict[str, Any]:
    """What is said of a k: of each criterion mean, low and high over seeds (or pairs of them), None where it is not defined."""
    names = ("inertia", "silhouette", "calinski_harabasz", "bic")
    values = {name: [getattr(one, name) for one in qualities] for name in names}
    values["stability"] = agreements(ids) if num_clusters > 1 else []
    spreads = {name: _spread(of_seeds) for name, of_seeds in values.items()}
    smallest, largest = min(one.smallest for one in qualities), max(one.largest for one in qualities)
    return {"k": num_clusters, **spreads, "smallest": smallest, "largest": largest}


def choices(rows: Sequence[Row]) -> dict[str, int | None]:
    """The k that each criterion is for; None where it has nothing to say. `rows` by k, ascending."""
    chosen = {"inertia": elbow([row["k"] for row in rows], [row["inertia"]["mean"] for row in rows])}
    for name in [name for name in NAMES if name != "inertia"]:
        known = {row["k"]: row[name]["mean"] * (-1 if name == "bic" else 1) for row in rows if row[name] is not None}
        best = [k for k, value in known.items() if value == max(known.values())]
        chosen[name] = None if not best else max(best) if name in FINER else min(best)
    return chosen


def elbow(ks: Sequence[int], inertias: Sequence[float]) -> int | None:
    """Where inertia lies farthest below the chord from its first to its last value over log k (kneedle, Satopaa et al. 2011).

    Fewest clusters where several do; None for fewer than three k, and where it lies nowhere below or does not fall.
    """
    below = below_chord(ks, inertias)
    return int(ks[int(below.argmax())]) if below.max() > 0 else None


def below_chord(ks: Sequence[int], inertias: Sequence[float]) -> NDArray[np.float64]:
    """In shares of the whole fall; 0 at both ends, less above the chord, and all 0 where inertia does not fall."""
    fall = inertias[0] - inertias[-1]
    if fall <= 0:
        return np.zeros(len(ks))
    along = np.log(np.asarray(ks) / ks[0]) / np.log(ks[-1] / ks[0])
    below = (inertias[0] - np.asarray(inertias)) / fall - along
    return np.asarray(np.round(below, 9), np.float64)  # rounding is no elbow


def verdict(rows: Sequence[Row], chosen: Mapping[str, int | None]) -> list[str]:
    """In words: who agrees, what that is worth, what to look at."""
    ks, voices = [row["k"] for row in rows], dict[int, list[str]]()
    for name, k in chosen.items():
        if k is not None:
            voices.setdefault(k, []).append(NAMES[name])
    if not voices:
        said = ["no criterion can choose between these k"]
    elif len(voices) == 1:
        (k, names), *_ = voices.items()
        said = [f"the criteria agree on k = {k}: {_listed(names)}"]
    else:
        each = "; ".join(
            f"{_listed(names)} {'choose' if len(names) > 1 else 'chooses'} {k}" for k, names in voices.items()
        )
        said = [f"the criteria disagree: {each}; no one of them is to be trusted alone"]
    if silent := [NAMES[name] for name, k in chosen.items() if k is None]:
        said.append(f"nothing can be said by {_listed(silent)}")
    depth = below_chord(ks, [row["inertia"]["mean"] for row in rows]).max()
    if chosen["inertia"] is not None and depth < FAINT:
        said.append(f"the elbow is faint: inertia lies {depth:.1%} of its whole fall below the chord there")
    for k, end in ((ks[0], "smallest"), (ks[-1], "largest")):
        if k in voices and k > 1:
            said.append(f"{k} is the {end} k that was tried: what {_listed(voices[k])} would choose may lie beyond")
    tried = "" if PAPER_CLUSTERS in ks else ", which was not tried here"
    said.append(
        "look at the smallest and the largest cluster, and at the samples of each cluster in the report of a run with "
        f"cluster.num_clusters=K; without a reason for another k keep the paper's {PAPER_CLUSTERS}, the default{tried}"
    )
    return said


def _no_spread(within: float, values: int) -> bool:
    """Less than the grid that rows lie on: that is rounding, and its logarithm says nothing."""
    return within <= values * kmeans.ROW_GRID**-2


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": float(np.mean(known)), "low": min(known), "high": max(known)}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

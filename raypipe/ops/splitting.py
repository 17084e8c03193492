"""Clusters of bounded size: one that holds too many rows is halved by two-means, until none does.

So there are more clusters than were asked for, and every row still belongs to its nearest centre. Cost: two folds a halving.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypipe.ops import kmeans

HALVING_ROUNDS = 10  # of two-means
HALVINGS = 4  # times 1 / max_fraction: even halves end with at most 2 / max_fraction clusters


@dataclass(frozen=True)
class Members:
    """The rows of one cluster below a share of draws."""

    centers_KD: NDArray[np.float32]
    cluster_id: int
    share: float

    def __call__(self, drawn: kmeans.Drawn) -> kmeans.Drawn:
        drawn = drawn.below(self.share)
        mine = kmeans.nearest(drawn.x_ND, self.centers_KD).cluster_id == self.cluster_id
        return kmeans.Drawn(drawn.x_ND[mine], drawn.draws_N[mine])


def split(fit: kmeans.Fit, fold: kmeans.Fold, state: kmeans.State, max_fraction: float) -> NDArray[np.float32]:
    """Centres, more of them, so that none holds more than `max_fraction` of the rows: the largest cluster is halved until then.

    Where the last batch is a sample, less by three standard errors. Ends with a larger one where its rows are all the same, or where
    twice as many halvings as even ones would need only chipped at it.
    """
    centers_KD = state.centers_KD
    for _ in range(HALVINGS * int(np.ceil(1 / max_fraction))):
        counts_K = fold(kmeans.Step(centers_KD, fit.end_share, fit.device)).counts_K
        most = max_fraction * counts_K.sum()
        largest, margin = int(counts_K.argmax()), 3 * np.sqrt(most) if fit.end_share < 1 else 0.0
        if counts_K[largest] <= max(most - margin, 1):
            break
        share = fit.end_share * min(1.0, 1.5 * kmeans.SAMPLE_ROWS / counts_K[largest])
        halves_2D = _halves(fold(Members(centers_KD, largest, share)).x_ND[: kmeans.SAMPLE_ROWS], fit.metric, fit.seed)
        if len(halves_2D) < 2:
            break
        centers_KD = np.concatenate([centers_KD[:largest], halves_2D, centers_KD[largest + 1 :]])
    return centers_KD


def _halves(x_ND: NDArray[np.float32], metric: str, seed: int) -> NDArray[np.float32]:
    """Two centres, or one where rows are all the same."""
    from sklearn.cluster import kmeans_plusplus

    if (x_ND == x_ND[0]).all():
        return x_ND[:1]
    centers_2D = np.asarray(kmeans_plusplus(x_ND, 2, random_state=seed)[0], np.float32)
    for _ in range(HALVING_ROUNDS):
        centers_2D = kmeans.move(centers_2D, kmeans.statistics(x_ND, centers_2D), metric)
    return centers_2D

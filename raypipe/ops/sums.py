"""Sums by cluster whose bits do not follow from the order or the number of what is added.

N rows, K clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DISTANCE_GRID = 2.0**16


def sums_by(id_N: NDArray[np.integer[Any]], value_N: NDArray[Any], num_clusters: int) -> NDArray[np.float64]:
    """[K] sums of values, rounded first, so that they are exact."""
    return np.asarray(np.bincount(id_N, weights=exact(value_N), minlength=num_clusters), np.float64)


def exact(value_N: NDArray[Any]) -> NDArray[np.float64]:
    """On the grid of distances, where float64 sums are exact."""
    return np.rint(value_N.astype(np.float64) * DISTANCE_GRID) / DISTANCE_GRID


def members(id_N: NDArray[np.integer[Any]], num_clusters: int) -> Any:
    """[K, N] sparse, a one for each row's cluster."""
    from scipy.sparse import csc_matrix

    num_rows = len(id_N)
    return csc_matrix((np.ones(num_rows), id_N, np.arange(num_rows + 1)), shape=(num_clusters, num_rows))

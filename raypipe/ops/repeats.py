"""Which rows repeat an earlier one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def repeats(*keys_N: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of N rows in order: those that are equal in all keys to an earlier one, and for each the first such row."""
    order = np.lexsort(keys_N)  # stable
    same = np.zeros(len(order), bool)
    same[1:] = np.logical_and.reduce([key[order[1:]] == key[order[:-1]] for key in keys_N])
    first = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    return order[same], first[same]

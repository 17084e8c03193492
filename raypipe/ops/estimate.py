"""Totals from a sample, with an interval."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """low and high are NaN where one batch says nothing of the spread."""

    mid: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        return Interval(*(value * factor for value in self))


def ratio_total(cost_N: ArrayLike, size_N: ArrayLike, size: float) -> Interval:
    """What a whole of `size` costs, from batches of `size_N` drawn at random that cost `cost_N`. N at least 1, sizes over 0.

    The ratio estimator and its variance: Cochran, Sampling Techniques, 1977, 6.4, with Student's t; the whole is taken to be
    much larger than the sample.
    """
    from scipy.special import stdtrit  # takes 0.2 s, for which no finished run should wait

    cost, sizes = np.asarray(cost_N, float), np.asarray(size_N, float)
    ratio: Any = cost.sum() / sizes.sum()
    if len(cost) < 2:
        return Interval(ratio * size, np.nan, np.nan)
    deviation = np.sqrt(np.sum((cost - ratio * sizes) ** 2) / (len(cost) - 1) / len(cost)) / sizes.mean()
    reach = stdtrit(len(cost) - 1, (1 + CONFIDENCE) / 2) * deviation
    return Interval(*(float(size * value) for value in (ratio, max(ratio - reach, 0.0), ratio + reach)))

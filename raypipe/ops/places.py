"""Where each sample is: its place, looked up by sample_id.

N samples, M ids that are looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Places:
    """[N], sorted by id: the leading words, the other words, and a number for each; 24 bytes a sample."""

    high_N: NDArray[np.uint64]
    low_N: NDArray[np.uint64]
    place_N: NDArray[np.int64]

    @staticmethod
    def of(words_N2: NDArray[np.uint64], place_N: NDArray[np.int64]) -> Places:
        """Of rows with one id only the first can be a sample."""
        order = np.lexsort([words_N2[:, 1], words_N2[:, 0]])  # stable
        words_N2 = words_N2[order]
        first = np.ones(len(order), bool)
        first[1:] = (words_N2[1:] != words_N2[:-1]).any(1)
        return Places(words_N2[first, 0], words_N2[first, 1], place_N[order[first]])

    def find(self, words_M2: NDArray[np.uint64]) -> NDArray[np.int64]:
        """[M]; -1 for what is no sample."""
        found_M, last = np.full(len(words_M2), -1), len(self.high_N)
        at_M, open_M = np.searchsorted(self.high_N, words_M2[:, 0]), np.arange(len(words_M2))
        while len(open_M := open_M[at_M[open_M] < last]):  # once, but for samples that share the leading word
            open_M = open_M[self.high_N[at_M[open_M]] == words_M2[open_M, 0]]
            equal = self.low_N[at_M[open_M]] == words_M2[open_M, 1]
            found_M[open_M[equal]] = self.place_N[at_M[open_M[equal]]]
            open_M = open_M[~equal]
            at_M[open_M] += 1
        return found_M

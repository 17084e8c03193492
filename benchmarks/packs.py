"""Packs in memory, laid out as raypipe's pack stage does, for what trains without Ray. Needs raypipe.ops alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raypipe.ops.packing import Pack, Segment, fill
from raypipe.ops.steps import Shapes
from raypipe.ops.tokens import IGNORED

Sample = tuple[Sequence[int], Sequence[int]]  # tokens, labels


class Packs(list[Pack]):
    def __init__(self, laid: Sequence[Sequence[Segment]], samples: Sequence[Sample], *, divisible: bool) -> None:
        super().__init__(_pack(segments, samples) for segments in laid)
        lengths = np.array([length for pack in self for length in pack.lengths], np.int64)
        bounds = np.cumsum([0, *(len(pack.lengths) for pack in self)])
        counts = np.array([len(pack.sample_ids) for pack in self], np.int64)
        targets = np.array([int((np.asarray(pack.labels) != IGNORED).sum()) for pack in self], np.int64)
        self.shapes = Shapes(lengths, bounds, counts, targets, divisible)


def _pack(segments: Sequence[Segment], samples: Sequence[Sample]) -> Pack:
    names = [str(place) for segment in segments for place in segment.places]
    return Pack(*fill(segments, samples, 0), [segment.length for segment in segments], names, [None] * len(names))

"""The step plan of a training run: which packs make each optimiser step, a pure function of the packs' figures and the seed.

A step is measured in samples, so that packing does not silently cut the number of steps. Packs are fixed; their order is
drawn anew for each epoch. World size plays no part until a step's packs are shared out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Step:
    epoch: int
    packs: tuple[int, ...]
    num_samples: int
    target_tokens: int  # of the whole step: what its loss is divided by


def plan_steps(
    num_samples: Sequence[int], target_tokens: Sequence[int], *, epochs: int, samples_per_step: int, seed: int
) -> list[Step]:
    """Both figures are per pack. A step closes at `samples_per_step` samples or more; the rest of an epoch is its last step."""
    steps = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(num_samples)).tolist()
        begin, samples = 0, 0
        for end, pack in enumerate(order, 1):
            samples += num_samples[pack]
            if samples >= samples_per_step or end == len(order):
                chosen = tuple(order[begin:end])
                steps.append(Step(epoch, chosen, samples, sum(target_tokens[n] for n in chosen)))
                begin, samples = end, 0
    return steps


def micro_batches(packs: Sequence[int], rank: int, world_size: int, packs_each: int) -> list[list[int]]:
    """A rank's share of a step's packs, in micro-batches; every rank gets the same number, of which some may be empty."""
    mine = list(packs[rank::world_size])
    longest = -(-len(packs) // world_size)
    return [mine[n : n + packs_each] for n in range(0, longest, packs_each)]


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Of the peak, at step 0, 1, ...: linear to 1 over the warm-up, then cosine to 0 at `total_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup_steps) / max(total_steps - warmup_steps, 1))))

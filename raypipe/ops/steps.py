"""The step plan of a training run, a pure function of the packs' shapes and the seed, and each rank's share of a step.

A step is measured in samples, so that packing does not silently cut the number of steps. Packs are fixed; their order is
drawn anew for each epoch. World size plays no part until a step is shared out: then its segments are dealt to ranks and
micro-batches of equal cost, whatever packs they came in, as 100 packs cannot be dealt evenly to 64 ranks, but their 500 samples
can. Cost is that of a transformer: linear in tokens, and quadratic in each segment's length for attention.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Shapes:
    """What a plan knows of P packs, whose S segments' lengths are laid end to end.

    `divisible`: segments of one pack may go to several ranks. Where they may not, a micro-batch is what the strategy made it.
    """

    lengths: Ints  # [S]
    bounds: Ints  # [P + 1] in lengths
    num_samples: Ints  # [P]
    target_tokens: Ints  # [P]
    divisible: bool

    def __len__(self) -> int:
        return len(self.num_samples)


@dataclass(frozen=True)
class Step:
    epoch: int
    packs: Ints
    num_samples: int
    target_tokens: int  # of the whole step: what its loss is divided by


class Piece(NamedTuple):
    """Segments [first, last) of a pack."""

    pack: int
    first: int
    last: int


EVEN = 1.002  # the dearest micro-batch over the mean that is good enough
Share = list[list[Piece]]  # of a rank: its micro-batches


def plan_steps(shapes: Shapes, *, epochs: int, samples_per_step: int, seed: int) -> list[Step]:
    """Each epoch is cut into steps as even as whole packs allow, so many that they have about `samples_per_step` samples each.

    So no step is the short rest of an epoch, which would weigh as much as a whole one.
    """
    return [step for epoch in range(epochs) for step in _epoch(shapes, epoch, samples_per_step, seed)]


def plan_budget(shapes: Shapes, *, samples_per_step: int, seed: int, **budget: int) -> list[Step]:
    """Epoch after epoch as `plan_steps` has them, up to the step that reaches the budget: `samples`, `target_tokens` or `steps`."""
    ((kind, left),) = budget.items()
    steps: list[Step] = []
    for step in (step for epoch in count() for step in _epoch(shapes, epoch, samples_per_step, seed)):
        steps.append(step)
        left -= {"samples": step.num_samples, "target_tokens": step.target_tokens, "steps": 1}[kind]
        if left <= 0:
            break
    return steps


def _epoch(shapes: Shapes, epoch: int, samples_per_step: int, seed: int) -> Iterator[Step]:
    total = int(shapes.num_samples.sum())
    number = min(max(round(total / samples_per_step), 1), len(shapes))
    order = np.random.default_rng([seed, epoch]).permutation(len(shapes))
    ends = np.searchsorted(np.cumsum(shapes.num_samples[order]), total * np.arange(1, number) / number) + 1
    for packs in np.split(order, ends):
        if len(packs):
            yield Step(epoch, packs, int(shapes.num_samples[packs].sum()), int(shapes.target_tokens[packs].sum()))


def plan_digest(steps: Sequence[Step]) -> str:
    """Of what every step holds, in order: a checkpoint of another plan must not be resumed."""
    digest = hashlib.blake2b(digest_size=16)
    for step in steps:
        head = [step.epoch, len(step.packs), step.num_samples, step.target_tokens]
        digest.update(np.concatenate([head, step.packs]).astype("<i8").tobytes())
    return digest.hexdigest()


class Volume:
    """What steps hold, by their number, which counts from 1; `tokens` [steps + 1] up to each. Padding included."""

    def __init__(self, shapes: Shapes, steps: Sequence[Step]) -> None:
        self.tokens, self.squares = (
            np.cumsum([0, *(int(of_packs[step.packs].sum()) for step in steps)])
            for of_packs in (_by_pack(shapes, shapes.lengths), _by_pack(shapes, np.square(shapes.lengths)))
        )
        self.epochs = np.cumsum([0, *(step.num_samples for step in steps)]) / shapes.num_samples.sum()

    def tokens_of(self, number: int) -> int:
        return int(self.tokens[number] - self.tokens[number - 1])

    def squares_of(self, number: int) -> int:
        """Of segments' lengths squared."""
        return int(self.squares[number] - self.squares[number - 1])

    def epoch(self, number: int) -> float:
        """How often each sample was seen, on average."""
        return float(round(self.epochs[number], 4))


def share_out(
    shapes: Shapes, packs: Sequence[int] | Ints, *, world_size: int, micro_batch_tokens: int, quadratic: float
) -> list[Share]:
    """Of each rank its micro-batches, all of nearly equal cost; every rank has equally many, of which some may be empty.

    A micro-batch has at most `micro_batch_tokens` tokens, or one piece; there are as few as can be. `quadratic` is the cost of
    a segment's length squared, where a token costs 1. Longest processing time first, then swaps.
    """
    pieces = [piece for pack in packs for piece in _pieces(shapes, int(pack))]
    lengths = [_lengths(shapes, piece) for piece in pieces]
    tokens = np.array([part.sum() for part in lengths], dtype=np.int64)
    costs = tokens + quadratic * np.array([np.square(part).sum() for part in lengths])
    alone = int((tokens > micro_batch_tokens // 2).sum())  # no two of these fit together
    fewest = min(max(int(tokens.sum()) // micro_batch_tokens, alone), len(pieces))
    each = max(-(-fewest // world_size), 1)
    while True:
        bins = _deal(costs, world_size * each)
        if all(len(chosen) <= 1 or tokens[chosen].sum() <= micro_batch_tokens for chosen in bins):
            break
        each += 1
    bins.sort(key=lambda chosen: -costs[chosen].sum())  # micro-batches that run at the same time are neighbours
    shares: list[Share] = [[] for _ in range(world_size)]
    for turn in range(each):
        for rank, chosen in enumerate(bins[turn * world_size : (turn + 1) * world_size]):
            shares[rank].append([pieces[place] for place in chosen])
    return shares


def imbalance(shapes: Shapes, shares: Sequence[Share], quadratic: float) -> float:
    """Time of a step over that of an even split, as modelled: of each micro-batch every rank waits for the dearest."""
    costs = np.array(
        [[sum(_cost(_lengths(shapes, piece), quadratic) for piece in batch) for batch in share] for share in shares]
    )
    total = costs.sum()
    return float(costs.max(0).sum() / total * len(shares)) if total else 1.0


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Of the peak, at step 0, 1, ...: linear to 1 over the warm-up, then cosine to 0 at `total_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup_steps) / max(total_steps - warmup_steps, 1))))


def _by_pack(shapes: Shapes, values: Ints) -> Ints:
    return np.diff(np.concatenate([[0], np.cumsum(values)])[shapes.bounds])


def _pieces(shapes: Shapes, pack: int) -> list[Piece]:
    count = int(shapes.bounds[pack + 1] - shapes.bounds[pack])
    return [Piece(pack, n, n + 1) for n in range(count)] if shapes.divisible else [Piece(pack, 0, count)]


def _lengths(shapes: Shapes, piece: Piece) -> Ints:
    begin = shapes.bounds[piece.pack]
    return shapes.lengths[begin + piece.first : begin + piece.last]


def _cost(lengths: Ints, quadratic: float) -> float:
    return float(lengths.sum() + quadratic * np.square(lengths).sum())


def _deal(costs: NDArray[np.float64], num_bins: int) -> list[NDArray[np.intp]]:
    """Places in `costs` of each bin: the dearest first, each to the cheapest bin, then evened out."""
    bin_of = np.empty(len(costs), dtype=np.intp)
    heap = [(0.0, number) for number in range(num_bins)]
    for place in np.argsort(-costs, kind="stable").tolist():
        cost, number = heap[0]
        bin_of[place] = number
        heapq.heapreplace(heap, (cost + costs[place], number))
    _even_out(costs, bin_of, num_bins)
    return [np.flatnonzero(bin_of == number) for number in range(num_bins)]


def _even_out(costs: NDArray[np.float64], bin_of: NDArray[np.intp], num_bins: int) -> None:
    """Swap two pieces of the dearest bin and another one, which makes the dearer of both cheapest, while that helps."""
    totals: NDArray[np.float64] = np.bincount(bin_of, weights=costs, minlength=num_bins).astype(np.float64)
    for _ in range(8 * num_bins):
        dearest = int(totals.argmax())
        if totals[dearest] <= EVEN * totals.mean():
            return
        mine = np.flatnonzero(bin_of == dearest)
        moved = costs[mine][:, None] - costs  # [pieces of it, all pieces]
        after = np.maximum(totals[dearest] - moved, totals[bin_of] + moved)
        after[:, mine] = np.inf
        give, take = np.unravel_index(after.argmin(), after.shape)
        if after[give, take] >= totals[dearest]:
            return
        other = bin_of[take]
        totals[dearest] -= moved[give, take]
        totals[other] += moved[give, take]
        bin_of[mine[give]], bin_of[take] = other, dearest

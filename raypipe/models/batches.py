"""A rank's batches of each step, made ahead in a thread while the step before is computed.

A batch is a function of the packs, the step, the rank and the number of ranks, so nothing of it is kept for a restart.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from raypipe.models.packed import Batch, make_batch
from raypipe.ops.packing import Pack
from raypipe.ops.steps import Ints, Piece, Shapes, Share, imbalance, share_out
from raypipe.ops.tokens import IGNORED

READERS = 8  # packs read at once


class Packs(Protocol):
    shapes: Shapes

    def __getitem__(self, place: int) -> Pack: ...


@dataclass(frozen=True)
class Dealt:
    """Of one step: this rank's micro-batches, what of which pack each holds, and these packs."""

    batches: list[Batch]
    pieces: Share
    packs: dict[int, Pack]
    imbalance: float  # of all ranks
    waited_s: float = 0.0


@dataclass(frozen=True)
class Dealer:
    packs: Packs
    rank: int
    world_size: int
    micro_batch_tokens: int
    quadratic: float  # cost of a segment's length squared (ops.steps)
    eos: int

    def deal(self, steps: Iterable[Sequence[int] | Ints]) -> Generator[Dealt]:
        """Batches of each step, given by its packs, in turn."""
        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as ahead:
            rest = iter(steps)
            coming = _submitted(ahead, self, rest, readers)
            while coming is not None:
                started = time.perf_counter()
                dealt = coming.result()
                waited_s = time.perf_counter() - started
                coming = _submitted(ahead, self, rest, readers)
                yield replace(dealt, waited_s=waited_s)

    def of(self, packs: Sequence[int] | Ints, readers: ThreadPoolExecutor) -> Dealt:
        shares = share_out(
            self.packs.shapes,
            packs,
            world_size=self.world_size,
            micro_batch_tokens=self.micro_batch_tokens,
            quadratic=self.quadratic,
        )
        mine = shares[self.rank]
        needed = sorted({piece.pack for batch in mine for piece in batch})
        read = dict(zip(needed, readers.map(self.packs.__getitem__, needed), strict=True))
        batches = [self._batch(batch, read) for batch in mine]
        return Dealt(batches, mine, read, imbalance(self.packs.shapes, shares, self.quadratic))

    def _batch(self, pieces: Sequence[Piece], read: dict[int, Pack]) -> Batch:
        """One row of all pieces; for none two tokens whose loss counts nothing, as every rank must take part."""
        if not pieces:
            return make_batch([self.eos, self.eos], [IGNORED, self.eos], [2])
        ids, labels, lengths = [], [], list[int]()
        for piece in pieces:
            pack = read[piece.pack]
            bounds = np.cumsum([0, *pack.lengths])
            chosen = slice(bounds[piece.first], bounds[piece.last])
            ids.append(np.asarray(pack.input_ids)[chosen])
            labels.append(np.asarray(pack.labels)[chosen])
            lengths += pack.lengths[piece.first : piece.last]
        return make_batch(np.concatenate(ids), np.concatenate(labels), lengths)


def _submitted(
    ahead: ThreadPoolExecutor, dealer: Dealer, rest: Iterator[Sequence[int] | Ints], readers: ThreadPoolExecutor
) -> Future[Dealt] | None:
    packs = next(rest, None)
    return None if packs is None else ahead.submit(dealer.of, packs, readers)

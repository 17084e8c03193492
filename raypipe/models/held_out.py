"""NLL of every held-out sample, so that two models are compared sample by sample: two means alone have no error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from raypipe.models.batches import Dealer
from raypipe.models.checkpoints import Output
from raypipe.models.packed import by_segment

HELD_OUT = "held_out.json"
PACKS_AT_ONCE = 256  # are read and dealt: held-out sets grow with the lake
Row = tuple[str, int | None, float, int]  # sample_id, cluster_id, summed NLL over its targets in nats, targets


@dataclass(frozen=True)
class HeldOut:
    rows: list[Row]  # by sample_id

    @property
    def loss(self) -> float | None:
        """Token mean; None where nothing is held out."""
        return _token_mean(self.rows) if self.rows else None

    @property
    def loss_by_cluster(self) -> dict[str, float]:
        clusters = sorted({cluster for _, cluster, _, _ in self.rows if cluster is not None})
        return {str(cluster): _token_mean([row for row in self.rows if row[1] == cluster]) for cluster in clusters}


def evaluate(model: Any, dealer: Dealer, device: str, group: dist.ProcessGroup) -> HeldOut:
    """Of the dealer's packs; a collective: each rank scores its share, all get the whole."""
    model.eval()
    mine: list[Row] = []
    count = len(dealer.packs.shapes)
    some = [range(first, min(first + PACKS_AT_ONCE, count)) for first in range(0, count, PACKS_AT_ONCE)]
    with torch.no_grad(), closing(dealer.deal(some)) as dealt:
        for share in dealt:
            for batch, pieces in zip(share.batches, share.pieces, strict=True):
                sums, counts = by_segment(batch.bounds, *(found.cpu() for found in model(batch.to(device))))
                names = [
                    (share.packs[piece.pack].sample_ids[n], share.packs[piece.pack].cluster_ids[n])
                    for piece in pieces
                    for n in range(piece.first, piece.last)
                ]
                if names:  # none in a batch that only keeps this rank in step
                    rows = zip(names, sums.tolist(), counts.tolist(), strict=True)
                    mine += [(*name, total, count) for name, total, count in rows]
    shares: list[Any] = [None] * dealer.world_size
    dist.all_gather_object(shares, mine, group=group)
    return HeldOut(sorted(row for share in shares for row in share))


def remember(out: Output, step: int, found: HeldOut) -> None:
    """`held_out.json`: sample_ids, cluster_ids, num_tokens, and under `nll` those after each step that was evaluated."""
    before = out.find(HELD_OUT) if step else None
    ids, clusters, nll, tokens = map(list, zip(*found.rows, strict=True)) if found.rows else ([], [], [], [])
    fresh = {"sample_ids": ids, "cluster_ids": clusters, "num_tokens": tokens, "nll": {}}
    seen: dict[str, Any] = json.loads(before) if before else fresh
    seen["nll"][str(step)] = nll
    out.replace(HELD_OUT, json.dumps(seen).encode())


def _token_mean(rows: Sequence[Row]) -> float:
    return sum(row[2] for row in rows) / sum(row[3] for row in rows)

"""How much of training's tokens would be padding under each strategy of packing: from the packs, or else from scored lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow.compute as pc

from raypipe.ops.packing import Strategy, padding_share
from raypipe.ops.selection import SELECTED
from raypipe.pipeline import Plan
from raypipe.sampled import gathered, spread


@dataclass(frozen=True)
class Padding:
    shares: Mapping[str, float]  # by strategy
    basis: str


def padding(planned: Plan) -> Padding | None:
    """None while no lengths are known. Scored lengths are of score's model and template; another one's differ somewhat."""
    if planned["pack"].manifest is not None:
        summary = planned["pack"].manifest["summary"]
        return Padding(summary["padding"], f"{summary['samples']:,} packed samples")
    if planned["score"].manifest is None:
        return None
    score, select = planned["score"].table, planned["select"]
    tables = [score.only("num_instruction_tokens", "num_response_tokens")]
    tables += [select.table.only("reason")] if select.done else []
    rows = gathered(tables, spread(score.parts, planned["score"].manifest["rows"]), lambda rows: rows)
    if select.done:
        rows = rows.filter(pc.equal(rows.column("reason"), SELECTED))
    both = pc.add(rows.column("num_instruction_tokens"), rows.column("num_response_tokens"))
    lengths = both.drop_null().to_numpy().astype(np.int64) + 1  # EOS
    window = planned.config.pack.max_length
    lengths = lengths[lengths <= window]
    if not len(lengths):
        return None
    shares = {name: padding_share(name, lengths, window, np.random.default_rng(0)) for name in get_args(Strategy)}
    return Padding(shares, f"{len(lengths):,} {'selected' if select.done else 'scored'} samples")

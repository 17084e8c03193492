"""Select: the top of every group: folds that find the cuts, then a map that marks. No join, no shuffle.

Columns: sample_id, selected, reason: the first that applies of clean's status, semantic_duplicate, held_out, no_cluster, score's status, ifd_too_high, ifd_too_low,
no_column_value, selected, below_cut; beside the parts `cuts.json`, and `ranks.npz`: how many samples of each of its groups have which
leading bits of a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.config import SIZES, Config, Select
from raypipe.errors import DataError
from raypipe.folds import shards
from raypipe.ops import warnings
from raypipe.ops.cuts import CountKeys, Cut, Group, find_cuts
from raypipe.ops.selection import BELOW_CUT, SELECTED, Gather, mark, quotas, score_of
from raypipe.part import Table, with_figures
from raypipe.parts import map_parts
from raypipe.resources import Pool
from raypipe.sampled import gathered, spread
from raypipe.stage import Inputs, Result
from raypipe.store import Folder


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    rule, seed = config.select, config.seed
    carried = [name for name in (rule.column, rule.per) if name]
    tables = [
        inputs["clean"].only("sample_id", "status", *carried),
        inputs["cluster"].only("cluster_id", *(["repeats"] if config.cluster.semantic_similarity is not None else [])),
        inputs["score"].only("status", "ifd", "num_instruction_tokens", "num_response_tokens"),
    ]
    with shards(tables, pool=Pool()) as held:
        fold = partial(held.fold, of=Gather(rule, seed))
        cuts = find_cuts(fold, partial(quotas, rule), rule.num_tokens)
        _check(config, cuts)
        out.put("ranks.npz", fold(CountKeys(tuple(cuts))).to_bytes())
    out.put("cuts.json", json.dumps([_as_json(*item, rule.strategy) for item in cuts.items()], indent=1).encode())
    parts = map_parts(partial(Mark, rule, seed, cuts), tables, out, pool=Pool(), light=True)
    said = warned(rule, cuts, inputs["score"], Table(out, tuple(parts)))
    totals = {"eligible": sum(c.eligible for c in cuts.values()), "kept": sum(c.keep for c in cuts.values())}
    return Result(parts, {**totals, "warnings": said})


@dataclass(frozen=True)
class Mark:
    """A part's figure `kept_tokens` is of instructions and responses."""

    select: Select
    seed: int
    cuts: Mapping[Group, Cut]

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        made, kept_tokens = mark(tables, self.select, self.seed, self.cuts)
        return with_figures(made, kept_tokens=int(kept_tokens.sum()))


def warned(rule: Select, cuts: Mapping[Group, Cut], score: Table, made: Table) -> list[str]:
    """From rows of parts spread over the lake: of what was scored, and what this stage made of it."""
    rows = gathered(
        [score.only("ifd", "num_response_tokens"), made.only("reason")],
        spread(score.parts, score.manifest["rows"]),
        lambda rows: rows.filter(pc.is_valid(pc.field("ifd"))),
    )
    tokens_N, reason_N = rows.column("num_response_tokens").to_numpy(), rows.column("reason").to_numpy()
    kept_N = reason_N == SELECTED
    of_lengths = warnings.of_lengths(tokens_N, tokens_N[kept_N | (reason_N == BELOW_CUT)], tokens_N[kept_N])
    eligible_G, keep_G = (np.array([getattr(cut, name) for cut in cuts.values()]) for name in ("eligible", "keep"))
    return [
        *warnings.of_scores(rows.column("ifd").to_numpy(), rule.max_ifd),
        *(of_lengths if rule.strategy != "longest" else []),  # that was asked for
        *warnings.of_groups(eligible_G, keep_G),
    ]


def _check(config: Config, cuts: dict[Group, Cut]) -> None:
    rule = config.select
    if not cuts:
        raise DataError(
            f"select: no sample has an IFD of at least select.min_ifd={rule.min_ifd:g} and below select.max_ifd={rule.max_ifd:g}"
            f"{f', and a number in {rule.column!r}' if rule.column else ''}. See the reasons in the score manifest, or widen the band"
        )
    if not any(cut.keep for cut in cuts.values()):
        name, value = next((name, getattr(rule, name)) for name in SIZES if getattr(rule, name) is not None)
        raise DataError(
            f"select.{name}: {value} of {len(cuts)} groups of at most {max(cut.eligible for cut in cuts.values())} samples keeps none. "
            "Raise it, or lower cluster.num_clusters"
        )


def _as_json(group: Group, cut: Cut, strategy: str) -> dict[str, Any]:
    """`cut_score` is what the first sample that was dropped has, by strategies that have a score."""
    by_score = cut.keep < cut.eligible and "random" not in strategy
    return {
        "cluster_id": group[0],
        "value": group[1],
        "counted": cut.counted,
        "eligible": cut.eligible,
        "keep": cut.keep,
        "at_least": f"{cut.at_least:048x}",
        "cut_score": score_of(cut.at_least >> 128) if by_score else None,
    }

"""Select: the top share of every cluster: a histogram fold, an exact-cut fold, then a map that marks. No join, no shuffle.

Columns: sample_id, selected, reason: the first that applies of clean's status, held_out, score's status, ifd_too_high,
below_cut, selected; beside the parts `cuts.json`.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from raypipe.config import Config, Pool
from raypipe.errors import DataError
from raypipe.folds import shards
from raypipe.ops.selection import CountKeys, Cut, GatherCut, Mark, Quota, cuts, quotas, score_of
from raypipe.ops.text import id_hex
from raypipe.parts import map_parts
from raypipe.stage import Inputs, Result
from raypipe.store import Folder


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    tables = [
        inputs["clean"].only("sample_id", "status"),
        inputs["cluster"].only("cluster_id"),
        inputs["score"].only("status", "ifd", "num_response_tokens"),
    ]
    rule, seed = config.select, config.seed
    with shards(tables, pool=Pool()) as held:
        quota = quotas(held.fold(CountKeys(rule, seed)), rule.keep_fraction)
        if not quota:
            raise DataError(
                f"select: no sample has a score below select.max_ifd={rule.max_ifd}. See the statuses in the score manifest, or raise it"
            )
        if not any(group.keep for group in quota.values()):
            raise DataError(
                f"select.keep_fraction: {rule.keep_fraction} of each of {len(quota)} groups of at most "
                f"{max(group.eligible for group in quota.values())} samples keeps none. Raise it, or lower cluster.num_clusters"
            )
        found = cuts(quota, held.fold(GatherCut(rule, seed, quota)))
    out.put(
        "cuts.json",
        json.dumps([_as_json(group, quota[group], found[group], rule.strategy) for group in quota], indent=1).encode(),
    )
    parts = map_parts(partial(Mark, rule, seed, found), tables, out, pool=Pool(), light=True)
    return Result(
        parts, {"eligible": sum(q.eligible for q in quota.values()), "kept": sum(q.keep for q in quota.values())}
    )


def _as_json(group: int, quota: Quota, cut: Cut | None, strategy: str) -> dict[str, Any]:
    """A group is a cluster, or 0 for strategies that know no clusters; `last_kept` is the sample at the cut."""
    by_ifd = cut is not None and strategy in ("paper", "global_ifd")
    return {
        "group": group,
        "eligible": quota.eligible,
        "keep": quota.keep,
        "last_kept": id_hex(cut.id_words) if cut else None,
        "last_kept_ifd": score_of(cut.key) if cut and by_ifd else None,
    }

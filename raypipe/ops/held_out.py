"""Training's effect on samples that it never saw, from the NLL of each before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def paired_difference(held_out: Mapping[str, Any]) -> dict[str, Any]:
    """Per-token NLL of each held-out sample after training minus before: mean over samples, and its standard error.

    `held_out`: sample_ids, num_tokens, and under nll by step the summed NLL of each, in nats.
    """
    tokens = np.array(held_out["num_tokens"], dtype=float)
    before, after = _first_and_last(held_out)
    if len(tokens) < 2:
        return {"num_samples": len(tokens)}
    difference = (after - before) / tokens
    return {
        "num_samples": len(tokens),
        "loss_before": float(before.sum() / tokens.sum()),
        "loss_after": float(after.sum() / tokens.sum()),
        "mean_difference": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
    }


def losses_by_cluster(held_out: Mapping[str, Any]) -> list[dict[str, Any]]:
    return losses_by("cluster", held_out, held_out["cluster_ids"])


def losses_by(name: str, held_out: Mapping[str, Any], group_N: Sequence[Any]) -> list[dict[str, Any]]:
    """Of each group with held-out samples, by its value under `name`: token means in nats before and after. None is no group."""
    groups, tokens = np.array(group_N, dtype=object), np.array(held_out["num_tokens"], dtype=float)
    before, after = _first_and_last(held_out)
    rows = []
    for group in sorted(set(group_N) - {None}):
        its = groups == group
        losses = {"loss_before": before[its].sum(), "loss_after": after[its].sum()}
        means = {of: float(total / tokens[its].sum()) for of, total in losses.items()}
        rows.append({name: group, "num_samples": int(its.sum()), **means})
    return rows


def _first_and_last(held_out: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    steps = sorted(held_out["nll"], key=int)
    return np.array(held_out["nll"][steps[0]]), np.array(held_out["nll"][steps[-1]])

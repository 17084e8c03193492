"""Training's effect on samples that it never saw, from the NLL of each before and after."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Of each cluster with held-out samples: token means in nats before and after."""
    clusters, tokens = np.array(held_out["cluster_ids"], dtype=object), np.array(held_out["num_tokens"], dtype=float)
    before, after = _first_and_last(held_out)
    rows = []
    for cluster in sorted(set(clusters) - {None}):
        its = clusters == cluster
        losses = {"loss_before": before[its].sum(), "loss_after": after[its].sum()}
        means = {name: float(total / tokens[its].sum()) for name, total in losses.items()}
        rows.append({"cluster": int(cluster), "num_samples": int(its.sum()), **means})
    return rows


def _first_and_last(held_out: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    steps = sorted(held_out["nll"], key=int)
    return np.array(held_out["nll"][steps[0]]), np.array(held_out["nll"][steps[-1]])

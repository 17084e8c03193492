"""Where the method is out of its depth: what a stage's figures say of its own result, each with what to try.

A warning is one sentence with its numbers and one with a remedy; a stage puts them under `warnings` in its manifest's summary, and the
screen and the report show those. Thresholds are below, with where they come from: real means CodeAlpaca's 20,022 rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

COHERENT = (
    0.05  # mean simplified silhouette. Real, at 5 to 100 clusters: 0.14 to 0.15; noise of 384 dimensions: 0.02 to 0.03
)
LOW_IFD = (
    0.25  # median: the instruction leaves a quarter of the perplexity or less; Cherry_LLM's and ours lie at 0.5 to 0.9
)
FLAT_IFD = (
    0.05  # between the quartiles: ranks of samples this alike are mostly noise (bfloat16 alone moves an IFD by 0.005)
)
MANY_HIGH = 0.25  # of the scored: the paper drops these as misaligned, which is to be a few in a hundred
SHORT_TOKENS, MANY_SHORT, MORE_SHORT = 16, 0.3, 1.5  # a response; a share of the kept; times that of the eligible
LONGER = 1.25  # or its inverse: median response of the kept against all scored
LITTLE_PADDING, FULL, FEW_PACKS = 0.1, 0.9, 20
FEW_STEPS = 100


def said(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All of a run, in the order of its stages."""
    return [text for manifest in manifests.values() for text in manifest.get("summary", {}).get("warnings", ())]


def of_secrets(figures: Mapping[str, int], rule: str | None) -> list[str]:
    kinds = {name.removeprefix("secrets: "): count for name, count in figures.items() if name.startswith("secrets: ")}
    if not kinds:
        return []
    said = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
    left_out = "were left out" if rule == "drop" else "are among the samples. To leave them out: clean.secrets=drop"
    return [f"secrets and personal data, in samples of each kind: {said}. They {left_out}"]


def of_clusters(silhouette: float, num_clusters: int) -> list[str]:
    if num_clusters == 1 or silhouette >= COHERENT:
        return []
    return [
        f"clusters do not cohere: mean silhouette {silhouette:.3f} (below {COHERENT:g}: rows lie about as near to another centre), so a "
        "share of each is close to a random split. Try raypipe sweep-k, another embed.model, or embed.text=both"
    ]


def of_scores(ifd_N: NDArray[np.float64], max_ifd: float) -> list[str]:
    """`ifd_N` of the scored; of those below max_ifd the spread counts, as among them selection ranks."""
    said = []
    below = ifd_N[ifd_N < max_ifd]
    high = 1 - len(below) / max(len(ifd_N), 1)
    if high > MANY_HIGH:
        said.append(
            f"{high:.0%} of the scored samples have an IFD of {max_ifd:g} or more: to the scoring model their instructions do not help. "
            "Check template (is it the model's own?) and ingest.columns (do responses belong to instructions?), or score with a better "
            "score.model"
        )
    if not len(below):
        return said
    low, median, top = np.quantile(below, [0.25, 0.5, 0.75])
    if median < LOW_IFD:
        said.append(
            f"IFD is low everywhere: median {median:.3f} (below {LOW_IFD:g}): the instructions all but give the responses away, or the model "
            "knows them by heart. Look for responses that repeat their instruction; score with a model that was not trained on this lake"
        )
    if top - low < FLAT_IFD:
        said.append(
            f"IFD is flat: half of all samples lie between {low:.3f} and {top:.3f} (less than {FLAT_IFD:g} apart), so their ranks are mostly "
            "noise. Compare with select.strategy=cluster_random, or score with a stronger score.model"
        )
    return said


def of_lengths(scored_N: NDArray[np.int64], eligible_N: NDArray[np.int64], kept_N: NDArray[np.int64]) -> list[str]:
    """Of response tokens."""
    said = []
    if not len(kept_N):
        return []
    short, usual = float(np.mean(kept_N < SHORT_TOKENS)), float(np.mean(eligible_N < SHORT_TOKENS))
    if short > MANY_SHORT and short > MORE_SHORT * usual:
        said.append(
            f"scores are dominated by short responses: {short:.0%} of what is kept has fewer than {SHORT_TOKENS} tokens, {usual:.0%} of what "
            "was eligible. An IFD over few tokens is noise: leave short responses out of the lake, or compare with "
            "select.strategy=cluster_random"
        )
    before, after = float(np.median(scored_N)), float(np.median(kept_N))
    if not 1 / LONGER <= after / max(before, 1) <= LONGER:
        said.append(
            f"selection favours {'long' if after > before else 'short'} responses: median {before:.0f} -> {after:.0f} tokens. "
            "Compare with select.strategy=cluster_random"
        )
    return said


def of_groups(eligible_G: NDArray[np.int64], keep_G: NDArray[np.int64]) -> list[str]:
    """Groups too small for their fraction: floor leaves nothing of them."""
    lost = (eligible_G > 0) & (keep_G == 0)
    if not lost.any():
        return []
    return [
        f"{lost.sum():,} of {len(lost):,} groups keep nothing: {eligible_G[lost].sum():,} eligible samples, {eligible_G[lost].max():,} in the largest, "
        "fewer than one over the share that is kept. Lower cluster.num_clusters, keep more, or use strategy global_ifd"
    ]


def of_packs(
    long: float, mean_length: float, padding: Mapping[str, float], num_packs: int, max_length: int
) -> list[str]:
    """`long`: the share of samples longer than half a window; `padding`: that of each strategy (ops.packing)."""
    if 1 - padding["best_fit"] < FULL:
        why = (
            f"there are only {num_packs} packs, and what is left of the last weighs. Lower pack.max_length, or keep more samples"
            if num_packs < FEW_PACKS
            else f"{long:.0%} of the samples are longer than half a pack, and no two of those share one. Raise pack.max_length"
        )
        return [f"packs are only {1 - padding['best_fit']:.0%} full: {why}"]
    if padding["pad"] < LITTLE_PADDING:
        return [
            f"packing gains little: padding would take only {padding['pad']:.1%} of the tokens, as samples are about as long as each other "
            f"({mean_length:.0f} tokens on average). Nothing is wrong; do not expect the paper's savings of time and memory"
        ]
    return []


def of_steps(num_steps: int) -> list[str]:
    if num_steps >= FEW_STEPS:
        return []
    return [f"training took only {num_steps} optimiser steps. Lower train.samples_per_step, or train for more epochs"]


def of_evaluation(sandboxes: Mapping[str, int]) -> list[str]:
    """`sandboxes`: completions that ran in each kind; none: nothing was run."""
    if not sandboxes:
        return [
            "evaluate: nothing that a model wrote was run, so there are no scores. To run it, in a sandbox: evaluate.execute=true"
        ]
    said = {
        "restricted": "without namespaces, only with system calls, files and limits restricted. Where that is not enough, install bubblewrap and "
        "allow user namespaces",
        "user": "without namespaces and Landlock, as another user with limits: they could write no file, but read those that anybody may. Install "
        "bubblewrap and allow user namespaces, or use Linux 5.13 or newer",
        "unprotected": "WITHOUT A SANDBOX, as evaluate.execute_without_sandbox allows: they could read, write and reach all that raypipe may",
    }
    return [
        f"evaluate: {count:,} completions of models ran {said[kind]}"
        for kind, count in sandboxes.items()
        if kind in said
    ]

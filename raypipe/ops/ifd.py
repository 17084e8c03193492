"""Instruction-Following Difficulty: PPL(response | instruction) / PPL(response) (arXiv 2308.12032, as arXiv 2504.12687 uses it).

Both perplexities are over the same n response tokens, so IFD = exp((nll_conditional - nll_unconditional) / n). At 1 or more
the instruction does not help to predict the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = list[int]


def scored_sequences(
    anchor: Tokens, prompts: Sequence[Tokens], responses: Sequence[Tokens]
) -> tuple[list[Tokens], list[int]]:
    """Two sequences a sample, conditional then unconditional, and how many leading tokens of each are context.

    `anchor` is the one token before an unconditional response (BOS, or EOS where there is no BOS), so that the first
    response token is scored in both passes. `prompts` carry their own BOS.
    """
    sequences, num_context = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        sequences += [prompt + response, anchor + response]
        num_context += [len(prompt), len(anchor)]
    return sequences, num_context


def ifd(
    nll_conditional: NDArray[np.float64], nll_unconditional: NDArray[np.float64], num_tokens: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """[N] from sums of NLL in nats. NaN where there are no tokens or a sum is not finite."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ratio = np.exp((nll_conditional - nll_unconditional) / num_tokens)
    return np.where(np.isfinite(ratio), ratio, np.nan)

"""Instruction-Following Difficulty: PPL(response | instruction) / PPL(response) (arXiv 2308.12032, as arXiv 2504.12687 uses it).

Both perplexities are over the same response tokens, so IFD = exp((nll_conditional - nll_unconditional) / n). At 1 or more
the instruction does not help to predict the response. The authors' own code tokenises prompt and response as one text and the
response alone once more, so its two perplexities may be over different tokens; `authors_passes` does the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = list[int]


@dataclass(frozen=True)
class Passes:
    """What a sample's two passes see: [N, 2] token ids, conditional then unconditional, and how many of each are context.

    `num_lost` [N]: response tokens beyond the window, in neither pass.
    """

    sequences: list[tuple[Tokens, Tokens]]
    num_context_N2: NDArray[np.int32]
    num_lost: NDArray[np.int32]

    @property
    def num_scored_N2(self) -> NDArray[np.int32]:
        lengths = np.array([[len(ids) for ids in pair] for pair in self.sequences], np.int32).reshape(-1, 2)
        return np.asarray(np.maximum(lengths - self.num_context_N2, 0))


def exact_passes(anchor: Tokens, prompts: Sequence[Tokens], responses: Sequence[Tokens], max_length: int) -> Passes:
    """Prompt and response tokenised apart; both passes score the same leading response tokens, those that fit beside the prompt.

    `anchor` is the one token before an unconditional response (BOS, or EOS where there is no BOS), so that the first
    response token is scored in both passes. `prompts` carry their own BOS.
    """
    fit = [max(max_length - len(prompt), 0) for prompt in prompts]
    pairs = [
        (prompt + response[:n], anchor + response[:n])
        for prompt, response, n in zip(prompts, responses, fit, strict=True)
    ]
    context = [(len(prompt), len(anchor)) for prompt in prompts]
    lost = [max(len(response) - n, 0) for response, n in zip(responses, fit, strict=True)]
    return _passes(pairs, context, lost)


def authors_passes(
    prompts: Sequence[Tokens], joint: Sequence[Tokens], responses: Sequence[Tokens], max_length: int
) -> Passes:
    """As calculate_ifd.py of the paper's repository. All three carry the tokenizer's own special tokens; `joint` is prompt + response.

    The response begins where the prompt alone ends, also where a token goes across. The unconditional pass has no anchor, so
    without a BOS its first token is not scored, and it is cut to max_length - prompt + 1.
    """
    ends = [min(len(prompt), max_length) for prompt in prompts]
    pairs = [
        (whole[:max_length], alone[: max_length - end + 1])
        for whole, alone, end in zip(joint, responses, ends, strict=True)
    ]
    lost = [max(len(whole) - max_length, 0) for whole in joint]
    return _passes(pairs, [(end, 1) for end in ends], lost)


def ifd(nll_N2: NDArray[np.float64], num_tokens_N2: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """[N] from sums of NLL in nats, conditional then unconditional. NaN where there are no tokens or a sum is not finite."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean_N2 = nll_N2 / num_tokens_N2
        ratio = np.exp(mean_N2[:, 0] - mean_N2[:, 1])
    # without the second an infinite unconditional sum would give 0
    finite = np.isfinite(ratio) & np.isfinite(mean_N2).all(1)
    return np.where(finite, ratio, np.nan)


def num_scored(manifest: Mapping[str, Any]) -> int:
    """Samples that have an IFD, of score's manifest: also those that were cut, where they are scored on what fits."""
    counts, rule = manifest["counts"], manifest["config"]["score"]
    cut = rule["on_overflow"] == "truncate" or rule["rule"] == "authors"
    return int(counts.get("ok", 0) + (counts.get("truncated", 0) if cut else 0))


def _passes(pairs: list[tuple[Tokens, Tokens]], context: list[tuple[int, int]], lost: list[int]) -> Passes:
    return Passes(pairs, np.array(context, np.int32).reshape(-1, 2), np.array(lost, np.int32))

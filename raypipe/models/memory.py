"""What an engine may take of a device's memory, decided before it starts.

vLLM measures its own peak, but not what log-probabilities of prompts take: of one sequence after the other, as far as it is in a
step, [tokens, vocabulary] logits in float32, their log-softmax and their ranks. So the tokens of a step are bounded by what is
left beside the weights, and the KV cache gets what these tokens need, not all that is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

LOGIT_BYTES = 18  # of a token and word of the vocabulary: 17.4 measured on CPU in float32, 15.4 in bfloat16 (0.32)
MIN_TOKENS = 256  # a step; where not even these fit, the engine says so better than an estimate
MIN_KV_BYTES = 64 << 20
MARGIN = 0.9  # of memory: the rest is for what nobody counts
MAX_SEQUENCES = 256  # of a step
STEP_TOKENS = 8192  # that vLLM computes at once while it generates


@dataclass(frozen=True)
class Budget:
    batch_tokens: int  # a step
    kv_bytes: int


def budget(
    config: Any, dtype: str, free_bytes: float, max_length: int, max_batch_tokens: int, block: int, gpus: int = 1
) -> Budget:
    """Of a causal language model of this transformers configuration, for sequences of at most `max_length` tokens.

    At most `max_batch_tokens` a step, fewer where `free_bytes` do not hold more, of each of the `gpus` that share weights and
    cache. `block` is the KV cache's unit in tokens: each sequence of a step may leave one all but empty.
    """
    itemsize = getattr(torch, dtype).itemsize
    layer_bytes, logit_bytes, kv_bytes = _per_token(config, itemsize, gpus)
    kept = max_length + MAX_SEQUENCES * block  # tokens of the cache beside a step's own
    left = MARGIN * free_bytes - weight_bytes(config, itemsize) / gpus - kept * kv_bytes
    fits = (left - max_length * logit_bytes) / (layer_bytes + kv_bytes)  # with logits of one whole sequence
    if fits < max_length:
        fits = left / (layer_bytes + kv_bytes + logit_bytes)
    batch_tokens = min(max_batch_tokens, max(int(fits), MIN_TOKENS))
    return Budget(batch_tokens, max((kept + batch_tokens) * kv_bytes, MIN_KV_BYTES))


def cache_bytes(config: Any, dtype: str, free_bytes: float, max_length: int, gpus: int = 1) -> int:
    """Of a KV cache to generate with: for MAX_SEQUENCES of `max_length` tokens, or as far as memory goes beside weights and a step's work."""
    itemsize = getattr(torch, dtype).itemsize
    layer_bytes, logit_bytes, kv_bytes = _per_token(config, itemsize, gpus)
    work = max(STEP_TOKENS, max_length) * layer_bytes + MAX_SEQUENCES * logit_bytes
    left = MARGIN * free_bytes - weight_bytes(config, itemsize) / gpus - work
    return int(max(min(left, MAX_SEQUENCES * max_length * kv_bytes), MIN_KV_BYTES))


def _per_token(config: Any, itemsize: int, gpus: int) -> tuple[int, int, int]:
    """Bytes of a token's work in a layer, of its logits, and of its place in the cache."""
    text = config.get_text_config()
    width = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layer_bytes = (4 * text.hidden_size + 3 * width) * itemsize
    return (
        layer_bytes,
        LOGIT_BYTES * text.vocab_size,
        2 * text.num_hidden_layers * -(-heads // gpus) * head_dim * itemsize,
    )


def weight_bytes(config: Any, itemsize: int) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return int(sum(weight.numel() for weight in model.parameters())) * itemsize

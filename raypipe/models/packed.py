"""A causal language model over packed sequences: many samples in one row, none sees another.

One attention function, registered with transformers' AttentionInterface and given the segment bounds that the caller passes
to the model, isolates the segments. With no mask function registered for its name transformers builds no mask, so neither a
cache nor an attention mask can silently switch isolation off. Per-segment SDPA on CPU (3.7 times faster than a 4-D mask at
2,048 tokens), torch's varlen attention on CUDA. The LM head runs on the target positions only, for scoring in pieces, so that
no [tokens, vocabulary] tensor exists.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.modeling_outputs import MoeModelOutputWithPast

from raypipe.errors import ConfigError
from raypipe.ops.hub import split_revision
from raypipe.ops.tokens import IGNORED

ATTENTION = "raypipe_packed"
# Of logits in float32 that exist at once in scoring; their log-softmax is as much.
LOGITS_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}


@dataclass(frozen=True)
class Batch:
    """T tokens of S segments: input_ids and position_ids [1, T], bounds [S + 1], labels [T]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    bounds: torch.Tensor
    labels: torch.Tensor
    longest: int


def make_batch(input_ids: Sequence[int], labels: Sequence[int], lengths: Sequence[int], device: str) -> Batch:
    """Segments are laid end to end; each counts its positions from 0. Labels are aligned with the tokens they name."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    bounds = torch.cumsum(torch.tensor([0, *lengths]), 0, dtype=torch.int32)
    ids = torch.as_tensor(input_ids, dtype=torch.int64)
    targets = torch.as_tensor(labels, dtype=torch.int64)
    targets = targets.index_fill(0, bounds[:-1].long(), IGNORED)  # nothing predicts a segment's first token
    return Batch(ids[None].to(device), positions[None].to(device), bounds.to(device), targets.to(device), max(lengths))


def target_nll(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL in nats, float32, of each target token, and the position [0, T) of each. With gradient where enabled."""
    (positions,) = torch.nonzero(batch.labels != IGNORED, as_tuple=True)
    logits = model(**_inputs(batch), logits_to_keep=positions - 1).logits[0]
    return cross_entropy(logits.float(), batch.labels[positions], reduction="none"), positions


def summed_nll(model: Any, head: Any, batch: Batch) -> torch.Tensor:
    """[S] float64: sums of NLL in nats over each segment's targets. `head` is the model's `head_of`. Call in inference mode."""
    hidden_TD = model.base_model(**_inputs(batch)).last_hidden_state[0]
    (positions,) = torch.nonzero(batch.labels != IGNORED, as_tuple=True)
    sizes = batch.bounds.diff()
    segment_T = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    sums_S = torch.zeros(len(sizes), dtype=torch.float64, device=sizes.device)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    for piece in positions.split(max(LOGITS_BYTES[hidden_TD.device.type] // (4 * vocab_size), 1)):
        logits = head(inputs_embeds=hidden_TD[None, piece - 1]).logits[0]
        nll = cross_entropy(logits.float(), batch.labels[piece], reduction="none")
        sums_S.index_add_(0, segment_T[piece], nll.double())
    return sums_S


def head_of(model: Any) -> Any:
    """The model without its layers, on the same weights: logits from hidden states, by its own code, as some models scale them."""
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _no_layers}
    return head


def _no_layers(inputs_embeds: torch.Tensor, **_: Any) -> MoeModelOutputWithPast:
    return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)


def _inputs(batch: Batch) -> dict[str, Any]:
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "cu_seq_lens_q": batch.bounds,
        "cu_seq_lens_k": batch.bounds,
        "max_length_q": batch.longest,
        "max_length_k": batch.longest,
        "use_cache": False,
    }


def load_model(model: str, dtype: str, device: str) -> Any:
    AttentionInterface.register(ATTENTION, packed_attention)
    name, revision = split_revision(model)
    wanted = {"dtype": getattr(torch, dtype), "attn_implementation": ATTENTION, "revision": revision}
    loaded = AutoModelForCausalLM.from_pretrained(name, **wanted)
    return loaded.to(device)


def packed_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, d], key and value [1, H_kv, T, d] to [1, T, H, d]; causal within each segment, blind to the others."""
    bounds, scale, longest = options["cu_seq_lens_q"], options.get("scaling"), options["max_length_q"]
    window = options.get("sliding_window")
    if window is not None and longest > window:
        raise ConfigError(
            f"model: its attention window is {window} tokens, got a sample of {longest}. Lower pack.max_length and score.max_length"
        )
    if unknown := [name for name in ("softcap", "s_aux") if options.get(name) is not None]:
        raise ConfigError(
            f"model: its attention wants {unknown[0]}, which packed attention has not. Use score.backend=vllm, or another model"
        )
    if query.is_cuda:
        return _varlen(query, key, value, bounds, longest, scale), None
    sizes = bounds.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    pieces = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        for q, k, v in zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    ]
    return torch.cat(pieces, 2).transpose(1, 2), None


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    known = _varlen_options()
    if key.shape[1] != query.shape[1] and "enable_gqa" not in known:
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    wanted: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    wanted |= {"enable_gqa": True} if "enable_gqa" in known else {}
    wanted |= {"scale": scale} if "scale" in known else {}
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, **wanted)[None]


@cache
def _varlen_options() -> frozenset[str]:
    """torch moved causal from is_causal (2.10) to window_size (2.11) and grouped queries behind enable_gqa (2.12)."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)

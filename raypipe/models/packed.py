"""A causal language model over packed sequences: many samples in one row, none sees another.

One attention function, registered with transformers' AttentionInterface and given the segment bounds that the caller passes
to the model, isolates the segments. With no mask function registered for its name transformers builds no mask, so neither a
cache nor an attention mask can silently switch isolation off. Per-segment SDPA on CPU (3.7 times faster than a 4-D mask at
2,048 tokens), torch's varlen attention on CUDA. The LM head runs on the target positions only and in pieces, which backward
makes again one after the other, so that no [tokens, vocabulary] tensor exists.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.modeling_outputs import MoeModelOutputWithPast

from raypipe.errors import ConfigError
from raypipe.ops.hub import split_revision
from raypipe.ops.tokens import IGNORED

ATTENTION = "raypipe_packed"
# Of logits in float32 that exist at once; their log-softmax is as much. Training takes four times that, beside their gradient: it keeps
# a little of each piece, and pieces of less than 32 MB, which the C library does not map apart, then left holes in its heap (2.9 GB at
# 4,096 tokens and 150,000 words).
LOGITS_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
IN_TRAINING = 4
# On a CPU without gradients, numbers of tokens are multiples of it: in bfloat16 oneDNN makes and keeps half a MB of code for each number that a layer has seen
LENGTHS = 64


@dataclass(frozen=True)
class Batch:
    """T tokens of S segments: input_ids and position_ids [1, T], bounds [S + 1], labels [T]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    bounds: torch.Tensor
    labels: torch.Tensor
    longest: int

    def to(self, device: str) -> Batch:
        ids, positions, bounds, labels = (
            x.to(device, non_blocking=True) for x in (self.input_ids, self.position_ids, self.bounds, self.labels)
        )
        return Batch(ids, positions, bounds, labels, self.longest)


def make_batch(input_ids: Sequence[int], labels: Sequence[int], lengths: Sequence[int], device: str = "cpu") -> Batch:
    """Segments are laid end to end; each counts its positions from 0. Labels are aligned with the tokens they name."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    bounds = torch.cumsum(torch.tensor([0, *lengths]), 0, dtype=torch.int32)
    ids = torch.as_tensor(input_ids, dtype=torch.int64)
    targets = torch.as_tensor(labels, dtype=torch.int64)
    targets = targets.index_fill(0, bounds[:-1].long(), IGNORED)  # nothing predicts a segment's first token
    return Batch(ids[None], positions[None], bounds, targets, max(lengths)).to(device)


class PackedModel(torch.nn.Module):  # type: ignore[misc]
    """A causal language model of transformers whose forward pass is `target_nll`: one module, so that FSDP gathers the head too."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return target_nll(self.model, head_of(self.model), batch)


def target_nll(model: Any, head: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL in nats, float32, of each target token, and the position [0, T) of each. `head` is the model's `head_of`."""
    hidden_TD = model.base_model(**_inputs(batch)).last_hidden_state[0]
    (positions,) = torch.nonzero(batch.labels != IGNORED, as_tuple=True)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    size = max(LOGITS_BYTES[hidden_TD.device.type] // (4 * vocab_size), 1)

    def nll(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(inputs_embeds=hidden[None]).logits[0].float(), labels, reduction="none")

    if not torch.is_grad_enabled():
        filler = -len(positions) % LENGTHS if hidden_TD.device.type == "cpu" else 0
        filled = torch.cat([positions, positions[-1:].expand(filler)])
        found = torch.empty(len(filled), device=hidden_TD.device)
        for piece, its in zip(found.split(size), filled.split(size), strict=True):
            piece.copy_(nll(hidden_TD[its - 1], batch.labels[its]))
        return found[: len(positions)], positions
    size *= IN_TRAINING
    run = partial(checkpoint, nll, use_reentrant=False, preserve_rng_state=False) if len(positions) > size else nll
    hidden, labels = hidden_TD[positions - 1].split(size), batch.labels[positions].split(size)
    return torch.cat([run(*piece) for piece in zip(hidden, labels, strict=True)]), positions


def summed_nll(model: Any, head: Any, batch: Batch) -> torch.Tensor:
    """[S] float64: sums of NLL in nats over each segment's targets. Call in inference mode."""
    return by_segment(batch.bounds, *target_nll(model, head, batch))[0]


def by_segment(bounds: torch.Tensor, nll: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[S] float64: sums of what `target_nll` gives over each segment's targets; [S] their number."""
    owner = torch.bucketize(positions, bounds[1:].long(), right=True)
    sums_S = torch.zeros(len(bounds) - 1, dtype=torch.float64, device=nll.device).index_add_(0, owner, nll.double())
    return sums_S, torch.bincount(owner, minlength=len(sums_S))


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

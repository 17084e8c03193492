"""Floating-point operations of a training step, and what share of an accelerator's peak they are: model FLOP/s utilisation (MFU).

Counted as in PaLM, appendix B: 2 a parameter and token forward, 4 backward, of what the model needs; recomputation by activation
checkpointing counts nothing. Attention counts what a causal segment needs, quadratic in each segment's own length; the head
counts on target positions, where alone it runs. Of frozen parameters (LoRA) backward takes only the 2 that pass the gradient on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PEAKS = {  # dense bfloat16 FLOP/s, vendors' data sheets; the longer name first
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "H800": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
}


@dataclass(frozen=True)
class Cost:
    """FLOPs forward and backward."""

    token: float  # of the layers, without attention's products
    target: float  # of the head
    pair: float  # of attention, times a segment's length squared

    @property
    def quadratic(self) -> float:
        """What a segment's length squared costs, where a token costs 1 (ops.steps)."""
        return self.pair / self.token

    def of(self, tokens: int, squares: int, targets: int) -> float:
        """`squares`: the sum of segments' lengths squared."""
        return self.token * tokens + self.pair * squares + self.target * targets


def cost_of(model: Any) -> Cost:
    """Of a causal language model of transformers, not yet sharded; of experts (3-D weights) those that a token uses count."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    used = getattr(config, "num_experts_per_tok", None) or 1
    token = 0.0
    for module in model.base_model.modules():
        for weight in module.parameters(recurse=False):
            if weight.dim() < 2 or module is model.get_input_embeddings():
                continue
            active = weight.numel() * (min(used / weight.shape[0], 1.0) if weight.dim() == 3 else 1.0)
            token += active * _factor(weight)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # scores and weighted values: 2 products of 2 x head_dim a pair, half of the pairs, backward twice that
    return Cost(token, head.numel() * _factor(head), 6.0 * config.num_hidden_layers * heads * head_dim)


def _factor(weight: Any) -> float:
    return 6.0 if weight.requires_grad else 4.0


def peak_flops(device_name: str) -> float | None:
    """Of bfloat16; None where nobody wrote it down."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)

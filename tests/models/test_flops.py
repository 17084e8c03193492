"""Values by hand: an MFU that counts wrong sends people after the wrong bottleneck."""

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from raypipe.models.flops import cost_of, peak_flops

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_a_llama_by_hand():
    """A layer: q 64, k and v 32 each, o 64, three of 128 in the MLP = 576; two layers; the head 800; norms count nothing."""
    cost = cost_of(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)))
    assert cost.token == 6 * 2 * (64 + 2 * 32 + 64 + 3 * 128)
    assert cost.target == 6 * 800
    assert cost.pair == 6 * 2 * 8  # two layers, width 8
    assert cost.of(3 + 5, 9 + 25, 4) == cost.token * 8 + cost.pair * (9 + 25) + cost.target * 4
    assert cost.quadratic == pytest.approx(cost.pair / cost.token)


def test_frozen_parameters_count_two_thirds():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    trained = cost_of(model)
    model.requires_grad_(False)
    assert cost_of(model).token == pytest.approx(trained.token * 4 / 6)


def test_experts_count_as_far_as_they_are_used():
    """Two of four experts a token: half of the experts' weights."""
    config = MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)
    cost = cost_of(AutoModelForCausalLM.from_config(config))
    attention, router, experts = 64 + 2 * 32 + 64, 8 * 4, 4 * 3 * 128
    assert cost.token == 6 * 2 * (attention + router + experts / 2)


def test_peaks():
    assert (
        peak_flops("NVIDIA H200") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("cpu") is None
    )

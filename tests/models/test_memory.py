"""By hand, for two published shapes."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
from transformers import LlamaConfig

from raypipe.errors import ConfigError
from raypipe.models.memory import MIN_TOKENS, budget, weight_bytes
from raypipe.models.scorer import make_scorer

LLAMA_7B = LlamaConfig()  # transformers' default is its shape: 32,000 words, 4,096 wide, 32 layers, 32 heads
LOGITS, LAYERS = 18 * 32_000, (4 * 4096 + 3 * 11008) * 2  # bytes of a step, a token
KV = 2 * 32 * 32 * 128 * 2  # bytes of the cache, a token


def test_weights_of_llama_7b():
    assert weight_bytes(LLAMA_7B, 2) == 2 * 6_738_415_616


@pytest.mark.parametrize(
    ("gigabytes", "tokens"), [(80, 8192), (24, 5972), (20, 1085), (18, MIN_TOKENS), (1, MIN_TOKENS)]
)
def test_llama_7b(gigabytes, tokens):
    """A whole budget on 80 GB, less on 24, pieces of sequences on 20; on too little the least: the engine then says what is missing."""
    made = budget(LLAMA_7B, "bfloat16", gigabytes * 1e9, 2049, 8192, 16)
    kept = 2049 + 256 * 16
    assert made.batch_tokens == tokens and made.kv_bytes == (kept + tokens) * KV
    used = [2 * 6_738_415_616 + kept * KV + n * (LAYERS + KV) + min(n, 2049) * LOGITS for n in (tokens, tokens + 1)]
    assert tokens in (MIN_TOKENS, 8192) or used[0] <= 0.9 * gigabytes * 1e9 < used[1]


def test_a_large_vocabulary_costs_tokens():
    """Of 151,936 words a sequence of 2,048 tokens takes 5.6 GB that no engine counts."""
    config = LlamaConfig(
        vocab_size=151_936, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    assert budget(config, "float32", 8e9, 2049, 8192, 128).batch_tokens == 8192
    assert 1200 < budget(config, "float32", 4e9, 2049, 8192, 128).batch_tokens < 4e9 / (18 * 151_936)


def test_gpus_that_share_a_model():
    """A 7B model does not fit 12 GB; half of it does, with half of the cache's heads."""
    alone, shared = (budget(LLAMA_7B, "bfloat16", 12e9, 2049, 8192, 16, gpus) for gpus in (1, 2))
    assert alone.batch_tokens == MIN_TOKENS < 1000 < shared.batch_tokens
    assert shared.kv_bytes == (2049 + 256 * 16 + shared.batch_tokens) * KV // 2


def test_a_model_on_two_gpus_is_vllms(monkeypatch, tmp_path):
    """What reaches vLLM; its parallelism is its own."""
    given = {}

    class Engine:
        def __init__(self, name, **options):
            given.update(options)
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 32_000))

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams, fake.exceptions = Engine, lambda **_: None, ModuleType("vllm.exceptions")
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.exceptions", fake.exceptions)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    LLAMA_7B.save_pretrained(tmp_path)
    make_scorer("vllm", str(tmp_path), "cuda", "bfloat16", 2048, 80e9, 8192, gpus=2)
    assert given["tensor_parallel_size"] == 2 and given["max_num_batched_tokens"] == 8192
    given.clear()
    make_scorer("vllm", str(tmp_path), "cuda", "bfloat16", 2048, 80e9, 8192, gpus=0.5)
    assert given and "tensor_parallel_size" not in given
    with pytest.raises(
        ConfigError, match=r"resources\.score\.gpus: 2, wanted at most 1 for score\.backend=transformers"
    ):
        make_scorer("transformers", str(tmp_path), "cuda", "bfloat16", 2048, 80e9, 8192, gpus=2)

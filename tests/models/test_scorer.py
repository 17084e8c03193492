"""Both engines against a plain transformers loop, row by row, fp32."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from raypipe.models.packed import load_tokenizer
from raypipe.models.scorer import make_scorer, token_batches
from raypipe.ops.ifd import scored_sequences
from raypipe.ops.synthetic import chunk_lines
from raypipe.ops.tokens import anchor_ids, prompt_ids, text_ids
from tests.lakes import save_random_model

TEMPLATE = "### Instruction:\n{instruction}\n### Response:\n"


def rows(count):
    found = []
    for line in chunk_lines(0, seed=11, num_samples=600)[0]:
        try:
            row = json.loads(line)
            if row["instruction"].strip() and row["response"].strip():
                found.append((row["instruction"], row["response"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found[:count]


def plain_loop(model, sequences, num_context):
    """The oracle: one row at a time, no packing, no cache, transformers' own attention."""
    engine, sums = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), []
    for tokens, context in zip(sequences, num_context, strict=True):
        with torch.inference_mode():
            logprobs = engine(torch.tensor([tokens])).logits[0].log_softmax(-1)
        places = torch.arange(context, len(tokens))
        sums.append(-logprobs[places - 1, torch.tensor(tokens)[places]].double().sum().item())
    return np.array(sums)


@pytest.fixture(scope="module", params=[("qwen2", False), ("llama", True)], ids=["qwen2", "llama_bos"])
def case(request, tmp_path_factory):
    kind, bos = request.param
    model = str(save_random_model(tmp_path_factory.mktemp("m") / kind, kind, bos=bos))
    tokenizer, samples = load_tokenizer(model), rows(200)
    prompts = prompt_ids(tokenizer, TEMPLATE, [instruction for instruction, _ in samples])
    responses = text_ids(tokenizer, [response for _, response in samples])
    sequences, context = scored_sequences(anchor_ids(tokenizer), prompts, responses)
    return model, sequences, context, plain_loop(model, sequences, context)


def check(case, backend):
    model, sequences, context, oracle = case
    assert len(sequences) == 400
    scorer = make_scorer(backend, model, "cpu", "float32", 3000, 4096)
    num_tokens = np.array([len(tokens) - n for tokens, n in zip(sequences, context, strict=True)])
    worst = np.max(np.abs(scorer.nll(sequences, context) - oracle) / num_tokens)
    print(f"{backend}: worst difference {worst:.1e} nats a token")
    assert worst <= 1e-4


def test_transformers_equals_a_plain_loop(case):
    """An IFD that depends on how rows were batched selects other rows on another cluster."""
    check(case, "transformers")


@pytest.mark.slow
def test_vllm_equals_a_plain_loop(case):
    """The default engine where it is installed; also that it is installed here."""
    check(case, "vllm")


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 150))
def test_batches_hold_every_row_once_within_the_budget(lengths, most):
    batches = list(token_batches(lengths, most))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in batch) <= most or len(batch) == 1 for batch in batches)

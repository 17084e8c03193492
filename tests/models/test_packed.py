"""Isolation is proven by gradients: losses hide it (they move by 1e-2 where gradients move by 150 %)."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from raypipe.models import packed
from raypipe.models.packed import PackedModel, head_of, load_model, make_batch, summed_nll
from raypipe.ops.tokens import IGNORED
from tests.lakes import save_random_model

LENGTHS = [5, 17, 1, 9]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request, tmp_path_factory):
    return load_model(
        str(save_random_model(tmp_path_factory.mktemp("m") / "m", request.param, bos=False)), "float32", "cpu"
    )


def target_nll(model, batch):
    return PackedModel(model)(batch)


def samples():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, 900, (length,), generator=generator).tolist() for length in LENGTHS]


def joined(rows):
    tokens = [token for row in rows for token in row]
    return make_batch(tokens, tokens, [len(row) for row in rows], "cpu")


def gradients(model, batches):
    model.zero_grad()
    for batch in batches:
        target_nll(model, batch)[0].sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def worst(one, other):
    return max(float((one[name] - other[name]).norm() / (other[name].norm() + 1e-12)) for name in one)


def test_gradients_equal_those_of_separate_samples(model):
    """Samples that see each other train the model on contexts that do not exist."""
    apart = gradients(model, [joined([row]) for row in samples()])
    assert worst(gradients(model, [joined(samples())]), apart) < 1e-5


def test_the_gradient_test_sees_missing_isolation(model, monkeypatch):
    """The mutation: one segment over all. A test that passes here would pass for anything."""
    apart = gradients(model, [joined([row]) for row in samples()])

    def leaky(rows):
        batch = joined(rows)
        everything = torch.tensor([0, sum(LENGTHS)], dtype=torch.int32)
        return packed.Batch(batch.input_ids, batch.position_ids, everything, batch.labels, sum(LENGTHS))

    assert worst(gradients(model, [leaky(samples())]), apart) > 1e-2


def test_gradients_in_pieces_equal_those_at_once(model, monkeypatch):
    """Logits are made again piece by piece in backward: a piece made from other weights or twice would go unnoticed in the loss."""
    at_once = gradients(model, [joined(samples())])
    monkeypatch.setitem(packed.LOGITS_BYTES, "cpu", 4 * model.config.vocab_size)  # four places a piece
    assert worst(gradients(model, [joined(samples())]), at_once) < 1e-5


def test_changing_one_sample_leaves_the_others_bits(model):
    rows = samples()
    before, positions = target_nll(model, joined(rows))
    after, _ = target_nll(model, joined([rows[0], rows[1][::-1], rows[2], rows[3]]))
    changed = (positions >= 5) & (positions < 22)
    assert torch.equal(before[~changed], after[~changed]) and not torch.equal(before[changed], after[changed])


def test_equals_a_plain_forward(model):
    """Against transformers' own loss path on one sample, eager attention and no packing."""
    row = samples()[1]
    model.set_attn_implementation("eager")
    logits = model(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
    model.set_attn_implementation(packed.ATTENTION)
    plain = -logits.gather(1, torch.tensor(row[1:])[:, None])[:, 0]
    assert torch.allclose(target_nll(model, joined([row]))[0], plain, atol=1e-5)


def test_first_token_of_a_segment_is_no_target():
    """Nothing predicts it: its label would be scored from the sample before."""
    batch = make_batch([1, 2, 3, 4], [1, 2, 3, 4], [2, 2], "cpu")
    assert batch.labels.tolist() == [IGNORED, 2, IGNORED, 4]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1]] and batch.bounds.tolist() == [0, 2, 4]


@torch.inference_mode()
def both_ways(model):
    """Sums of the tails of all segments: in pieces, and from all logits at once."""
    rows = samples()
    labels = [token if place >= 2 else IGNORED for row in rows for place, token in enumerate(row)]
    batch = make_batch([token for row in rows for token in row], labels, LENGTHS, "cpu")
    logits = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, cu_seq_lens_q=batch.bounds, cu_seq_lens_k=batch.bounds,
        max_length_q=batch.longest, max_length_k=batch.longest, use_cache=False,
    ).logits[0]  # fmt: skip
    (positions,) = torch.nonzero(batch.labels != IGNORED, as_tuple=True)
    nll_T = torch.nn.functional.cross_entropy(logits[positions - 1].float(), batch.labels[positions], reduction="none")
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[positions]
    return summed_nll(model, head_of(model), batch), torch.zeros(len(LENGTHS), dtype=torch.float64).index_add_(
        0, owner, nll_T.double()
    )


def test_sums_in_pieces_equal_those_at_once(model, monkeypatch):
    """A segment's targets fall into several pieces, and a piece holds several segments'."""
    monkeypatch.setitem(packed.LOGITS_BYTES, "cpu", 4 * 7 * model.config.vocab_size)
    sums, at_once = both_ways(model)
    assert sums.dtype == torch.float64 and torch.allclose(sums, at_once, rtol=1e-6) and sums[2] == 0 < sums[1]


@pytest.mark.parametrize(
    ("kind", "config", "scales"),
    [(GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}), (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25})],
    ids=["granite", "cohere"],
)  # fmt: skip
def test_models_that_scale_their_logits_are_scored_as_they_are(kind, config, scales, tmp_path):
    """Hidden states times the head's weights are not these models' logits: each IFD would be that of another model."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 950,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    kind(
        config(**shape, **scales, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "float32", "cpu")
    sums, at_once = both_ways(model)
    assert torch.allclose(sums, at_once, rtol=1e-6)


MEMORY = """
import resource, torch
from transformers import LlamaConfig, LlamaForCausalLM
from raypipe.models.packed import ATTENTION, PackedModel, head_of, make_batch, packed_attention, summed_nll
from transformers import AttentionInterface

AttentionInterface.register(ATTENTION, packed_attention)
config = LlamaConfig(vocab_size=150_000, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, attn_implementation=ATTENTION)
model, peaks = LlamaForCausalLM(config).eval(), []

@torch.inference_mode()
def score(batch):
    summed_nll(model, head_of(model), batch)

def train(batch):
    PackedModel(model)(batch)[0].sum().backward()

for work in (score, train):
    for num_tokens in (512, 4096):
        ids = torch.randint(0, 150_000, (num_tokens,)).tolist()
        work(make_batch(ids, ids, [64] * (num_tokens // 64)))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
print(*peaks)
"""


def test_no_tensor_of_tokens_times_vocabulary_exists():
    """At 150,000 words a batch of 8,192 tokens would take 4.9 GB for its logits, again for their log-softmax, and for the gradient.

    One process for all, whose peak never falls: few tokens before many, and scoring before training, which takes more.
    """
    exact = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "1000000",
    }  # else what is freed may stay in the heap, as it happens
    said = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=exact).stdout
    scored, scored_many, trained, trained_many = map(int, said.split())
    print(f"peaks in MB at 512 and 4,096 tokens, all logits of which take 2,458: {said}")
    assert scored_many - scored < 300 and trained_many - trained < 300

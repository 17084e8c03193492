"""Isolation is proven by gradients: losses hide it (they move by 1e-2 where gradients move by 150 %)."""

import pytest
import torch

from raypipe.models import packed
from raypipe.models.packed import load_model, make_batch, target_nll
from raypipe.ops.tokens import IGNORED
from tests.lakes import save_random_model

LENGTHS = [5, 17, 1, 9]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request, tmp_path_factory):
    return load_model(
        str(save_random_model(tmp_path_factory.mktemp("m") / "m", request.param, bos=False)), "float32", "cpu"
    )


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

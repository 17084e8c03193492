import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.steps import learning_rate_factor, micro_batches, plan_steps


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 3), st.integers(1, 40), st.integers(0, 5))
def test_every_pack_once_an_epoch(samples, epochs, per_step, seed):
    """A pack that is skipped or repeated changes what the model is trained on."""
    steps = plan_steps(samples, [10 * n for n in samples], epochs=epochs, samples_per_step=per_step, seed=seed)
    for epoch in range(epochs):
        mine = [step for step in steps if step.epoch == epoch]
        assert sorted(pack for step in mine for pack in step.packs) == list(range(len(samples)))
        assert all(step.num_samples >= per_step for step in mine[:-1])
    assert all(step.target_tokens == 10 * step.num_samples for step in steps)


def test_epochs_differ_and_repeat():
    steps = plan_steps([1] * 50, [1] * 50, epochs=2, samples_per_step=50, seed=0)
    assert steps[0].packs != steps[1].packs
    assert steps == plan_steps([1] * 50, [1] * 50, epochs=2, samples_per_step=50, seed=0)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5))
def test_ranks_share_all_packs_in_equal_numbers_of_batches(num_packs, world_size, each):
    """A rank with one batch less leaves the others waiting in a collective for ever."""
    shares = [micro_batches(range(num_packs), rank, world_size, each) for rank in range(world_size)]
    assert sorted(pack for share in shares for batch in share for pack in batch) == list(range(num_packs))
    assert len({len(share) for share in shares}) == 1


def test_learning_rate_by_hand():
    """Warm-up of 4 to the peak, then a cosine to 0."""
    factors = [learning_rate_factor(step, warmup_steps=4, total_steps=8) for step in range(9)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5) and factors[8] == pytest.approx(0, abs=1e-12)

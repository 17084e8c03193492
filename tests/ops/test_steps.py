import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.packing import lay_out
from raypipe.ops.steps import (
    Shapes,
    Volume,
    imbalance,
    learning_rate_factor,
    plan_budget,
    plan_digest,
    plan_steps,
    share_out,
)
from tests.ops.test_packing import like_oss_instruct

QUADRATIC = 2e-5  # attention's part in a 7B model: layers x width / parameters
PACKS = st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=6), min_size=1, max_size=40)


def shapes_of(packs, divisible=True):
    bounds = np.cumsum([0] + [len(pack) for pack in packs])
    lengths = np.array([length for pack in packs for length in pack])
    return Shapes(lengths, bounds, np.diff(bounds), np.array([10 * len(pack) for pack in packs]), divisible)


@given(PACKS, st.integers(1, 3), st.integers(1, 40), st.integers(0, 5))
def test_every_pack_once_an_epoch(packs, epochs, per_step, seed):
    """A pack that is skipped or repeated changes what the model is trained on."""
    shapes = shapes_of(packs)
    steps = plan_steps(shapes, epochs=epochs, samples_per_step=per_step, seed=seed)
    for epoch in range(epochs):
        mine = [step for step in steps if step.epoch == epoch]
        assert sorted(pack for step in mine for pack in step.packs) == list(range(len(packs)))
    assert all(step.target_tokens == 10 * step.num_samples for step in steps)


@given(PACKS, st.integers(1, 40), st.integers(0, 5))
def test_steps_are_as_even_as_packs_allow(packs, per_step, seed):
    """A short last step would weigh as much as a whole one, as its loss is divided by its own tokens."""
    shapes = shapes_of(packs)
    steps = plan_steps(shapes, epochs=1, samples_per_step=per_step, seed=seed)
    total, largest = int(shapes.num_samples.sum()), int(shapes.num_samples.max())
    if total >= per_step * 2 and largest * 4 < per_step:
        assert len(steps) == round(total / per_step)
        assert all(abs(step.num_samples - total / len(steps)) <= 2 * largest for step in steps)


def test_steps_by_hand():
    """Ten packs of two samples, seven a step asked for: 20 / 7 is nearest to 3 steps, of 6.7 samples in whole packs."""
    steps = plan_steps(shapes_of([[5, 5]] * 10), epochs=1, samples_per_step=7, seed=0)
    assert [step.num_samples for step in steps] == [8, 6, 6]


def test_epochs_differ_and_repeat():
    shapes = shapes_of([[5]] * 50)
    one, two = (plan_steps(shapes, epochs=2, samples_per_step=50, seed=0) for _ in range(2))
    assert one[0].packs.tolist() != one[1].packs.tolist()
    assert plan_digest(one) == plan_digest(two)
    assert plan_digest(one) != plan_digest(plan_steps(shapes, epochs=2, samples_per_step=50, seed=1))


@given(PACKS, st.integers(1, 6), st.integers(1, 300), st.booleans())
def test_ranks_share_all_segments_in_equal_numbers_of_batches(packs, world_size, micro_batch_tokens, divisible):
    """A rank with one batch less leaves the others waiting in a collective for ever; a segment twice is trained on twice."""
    shapes = shapes_of(packs, divisible)
    shares = share_out(
        shapes, range(len(packs)), world_size=world_size, micro_batch_tokens=micro_batch_tokens, quadratic=0.01
    )
    batches = [batch for share in shares for batch in share]
    segments = [(piece.pack, n) for batch in batches for piece in batch for n in range(piece.first, piece.last)]
    assert sorted(segments) == [(pack, n) for pack, lengths in enumerate(packs) for n in range(len(lengths))]
    assert len({len(share) for share in shares}) == 1 and len(shares) == world_size
    pieces = sum(len(batch) for batch in batches)
    assert len(shares[0]) <= max(-(-pieces // world_size), 1), "rounds in which no rank has work"
    for batch in batches:
        tokens = [sum(packs[piece.pack][piece.first : piece.last]) for piece in batch]
        assert len(batch) <= 1 or sum(tokens) <= micro_batch_tokens


def test_no_packs_are_shared_as_no_batches_of_work():
    """Held out: none. Every rank still takes part."""
    shares = share_out(shapes_of([[3]]), [], world_size=2, micro_batch_tokens=8, quadratic=0)
    assert shares == [[[]], [[]]] and imbalance(shapes_of([[3]]), shares, 0) == 1


@pytest.mark.parametrize(("world_size", "most"), [(8, 1.01), (64, 1.02)])
@pytest.mark.parametrize("capacity", [2048, 8192])
def test_ranks_get_equal_work_on_code_lengths(world_size, most, capacity):
    """Every rank waits for the slowest: an imbalance of 1.7 is 41 % of all accelerators idle."""
    lengths = like_oss_instruct(10_000)
    packs = [[s.length for s in pack] for pack in lay_out("best_fit", lengths, capacity, np.random.default_rng(0))]
    shapes = shapes_of(packs)
    worst, whole = 0.0, 0.0
    for step in plan_steps(shapes, epochs=1, samples_per_step=512, seed=0):
        shares = share_out(shapes, step.packs, world_size=world_size, micro_batch_tokens=16_384, quadratic=QUADRATIC)
        worst = max(worst, imbalance(shapes, shares, QUADRATIC))
        dealt = [
            [[(int(pack), 0, len(packs[pack]))] for pack in step.packs[rank::world_size]] for rank in range(world_size)
        ]
        cost = [
            sum(sum(n + QUADRATIC * n * n for n in packs[piece[0]]) for batch in share for piece in batch)
            for share in dealt
        ]
        whole = max(whole, max(cost) / np.mean(cost))
    print(f"{world_size} ranks, windows of {capacity}: {worst:.4f}; whole packs in random order {whole:.2f}")
    assert worst <= most


def test_imbalance_by_hand():
    """Two ranks, two micro-batches: the dearer of 10 and 6, then of 4 and 4, over an even 12 each."""
    from raypipe.ops.steps import Piece

    shapes = shapes_of([[10], [6], [4], [4]])
    shares = [[[Piece(0, 0, 1)], [Piece(2, 0, 1)]], [[Piece(1, 0, 1)], [Piece(3, 0, 1)]]]
    assert imbalance(shapes, shares, 0) == pytest.approx(14 / 12)


def test_learning_rate_by_hand():
    """Warm-up of 4 to the peak, then a cosine to 0."""
    factors = [learning_rate_factor(step, warmup_steps=4, total_steps=8) for step in range(9)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5) and factors[8] == pytest.approx(0, abs=1e-12)


@given(
    PACKS,
    st.integers(1, 40),
    st.integers(0, 5),
    st.sampled_from(["samples", "target_tokens", "steps"]),
    st.integers(1, 500),
)
def test_a_budget_ends_with_the_step_that_reaches_it(packs, per_step, seed, kind, wanted):
    """Arms of an experiment are compared at equal budgets: a plan that ends early, or goes on, compares sizes instead."""
    shapes = shapes_of(packs)
    steps = plan_budget(shapes, samples_per_step=per_step, seed=seed, **{kind: wanted})
    held = {
        "samples": [step.num_samples for step in steps],
        "target_tokens": [step.target_tokens for step in steps],
        "steps": [1] * len(steps),
    }[kind]
    assert sum(held) >= wanted > sum(held[:-1])
    whole = plan_steps(shapes, epochs=steps[-1].epoch + 1, samples_per_step=per_step, seed=seed)
    assert plan_digest(steps) == plan_digest(whole[: len(steps)]), "the same steps as by epochs, as far as they go"


def test_a_budget_by_hand():
    """Ten packs of two samples in steps of 8, 6 and 6: 30 samples are reached by the second step of the second epoch."""
    shapes = shapes_of([[5, 5]] * 10)
    steps = plan_budget(shapes, samples_per_step=7, seed=0, samples=30)
    assert [(step.epoch, step.num_samples) for step in steps] == [(0, 8), (0, 6), (0, 6), (1, 8), (1, 6)]
    assert [step.num_samples for step in plan_budget(shapes, samples_per_step=7, seed=0, target_tokens=81)] == [8, 6]
    assert len(plan_budget(shapes, samples_per_step=7, seed=0, steps=7)) == 7
    volume = Volume(shapes, steps)
    assert [volume.epoch(number) for number in (1, 3, 5)] == [0.4, 1.0, 1.7]
    assert Volume(shapes, steps[:1]).epoch(1) == 0.4, "an epoch that is cut short is no whole one"

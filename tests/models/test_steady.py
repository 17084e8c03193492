"""Engines that fail in every way we know; what they say of a row, and that no other row suffers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import DataError
from raypipe.models.steady import RESTARTS, SteadyScorer

BAD, HUGE, POISON = 97, 98, 99  # refused; too large for the memory, alone too; the engine answers nothing afterwards


class Engine:
    """The sum of a sequence's tail. Runs out of memory where it may take more than `room` tokens a batch."""

    errors = (RuntimeError, ValueError)

    def __init__(self, max_batch_tokens, room=10**9, broken=False):
        self.max_batch_tokens, self.room, self.broken, self.calls, self.closed = (
            max_batch_tokens,
            room,
            broken,
            0,
            False,
        )

    def nll(self, sequences, num_context):
        self.calls += 1
        tokens = {token for sequence in sequences for token in sequence}
        if self.broken or POISON in tokens:
            self.broken = True
            raise RuntimeError("device-side assert triggered")
        if BAD in tokens:
            raise ValueError("refused\nand much more")
        lengths = [len(sequence) for sequence in sequences]
        if HUGE in tokens or max(*lengths, min(self.max_batch_tokens, sum(lengths))) > self.room:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return np.array([float(sum(s[n:])) for s, n in zip(sequences, num_context, strict=True)])

    def close(self):
        self.closed = True


def steady(max_batch_tokens=64, **options):
    engines = []

    def start(tokens):
        assert all(engine.closed for engine in engines), "two engines at once need twice the memory"
        engines.append(Engine(tokens, **options))
        return engines[-1]

    return SteadyScorer(start, max_batch_tokens), engines


tokens = st.lists(st.integers(0, 50), min_size=2, max_size=8)


@given(st.lists(st.tuples(tokens, st.booleans()), max_size=30))
def test_a_refused_sequence_costs_only_itself(rows):
    """In a batch of thousands one odd row must neither stop the run nor take others with it."""
    rows = [*rows, ([1, 2], False)]
    sequences = [[*ids, BAD] if bad else ids for ids, bad in rows]
    scorer, engines = steady()
    sums, refused = scorer.nll(sequences, [1] * len(rows))
    assert refused == {n: "ValueError: refused" for n, (_, bad) in enumerate(rows) if bad}
    for n, (ids, bad) in enumerate(rows):
        assert np.isnan(sums[n]) if bad else sums[n] == sum(ids[1:])
    bad = len(refused)
    assert len(engines) == 1 and engines[0].calls <= 1 + 2 * bad * max(len(rows), 1).bit_length() + bad


@given(st.integers(2, 200), st.lists(tokens, min_size=12, max_size=30))
def test_out_of_memory_halves_the_batches(room, sequences):
    """A long part late in the lake must not end the run, nor be lost."""
    sequences = [*sequences, [1, 2]]
    scorer, engines = steady(256, room=room)
    sums, refused = scorer.nll(sequences, [1] * len(sequences))
    lost = {n for n, ids in enumerate(sequences) if len(ids) > room}
    assert refused.keys() == lost and all("can't allocate memory" in said for said in refused.values())
    assert all(sums[n] == sum(ids[1:]) for n, ids in enumerate(sequences) if n not in lost)
    assert [engine.max_batch_tokens for engine in engines] == [256 >> n for n in range(scorer.restarts + 1)]
    assert scorer.restarts <= RESTARTS and sum(not engine.closed for engine in engines) == 1


def test_a_sequence_that_never_fits_costs_only_itself():
    scorer, _ = steady()
    sums, refused = scorer.nll([[1, 2], [1, HUGE], [3, 4]], [1, 1, 1])
    assert list(refused) == [1] and sums[[0, 2]].tolist() == [2.0, 4.0]


@pytest.mark.parametrize("broken", [True, False], ids=["from the start", "by a sequence"])
def test_a_broken_engine_stops_the_work(broken):
    """A GPU answers with errors for ever after an illegal access: a lake of ten million rows must not end as engine_error."""
    scorer, engines = steady(broken=broken)
    with pytest.raises(DataError, match=r"engine is broken.* said: RuntimeError: device-side assert.* score.backend"):
        scorer.nll([[1, 2]] * 50 + [[1, POISON]], [1] * 51)
    assert len(engines) == 1


def test_an_engine_that_refuses_everything_stops_the_work():
    """With too little memory for any sequence of a part, a lake would end as engine_error."""
    scorer, _ = steady()
    with pytest.raises(
        DataError, match=r"refuses all 20 sequences of a part, as ValueError: refused\. Give it more memory"
    ):
        scorer.nll([[1, BAD]] * 20, [1] * 20)


def test_an_engine_that_does_not_start_says_why():
    def start(tokens):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmuch more")

    with pytest.raises(
        DataError, match=r"does not start with 64 tokens a batch: RuntimeError: CUDA out of memory\. Tried"
    ):
        SteadyScorer(start, 64)


def test_nothing_to_score():
    scorer, engines = steady()
    sums, refused = scorer.nll([], [])
    assert sums.shape == (0,) and refused == {} and engines[0].calls == 0

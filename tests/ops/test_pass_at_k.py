from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops import pass_at_k as module
from raypipe.ops.pass_at_k import mean_interval, paired_bootstrap, pass_at_k


@given(st.data())
def test_equals_the_share_of_all_draws_in_which_one_passes(data):
    n = data.draw(st.integers(1, 9))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_by_hand():
    """Of 5 completions 2 pass: two drawn both fail with 3/5 * 2/4. Large numbers neither overflow nor leave 0 to 1."""
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4) and pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert (pass_at_k(5, 0, 5), pass_at_k(5, 1, 5), pass_at_k(5, 4, 3), pass_at_k(1, 1, 1)) == (0, 1, 1, 1)
    assert pass_at_k(10**6, 1, 10**5) == pytest.approx(0.1)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 6), (5, 2, 0), (5, 6, 1), (5, -1, 1), (0, 0, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_wilson_by_hand():
    """Of 10: 8 and none. A symmetric interval would end above 1, and be empty where no problem is solved."""
    assert mean_interval([1] * 8 + [0] * 2) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert mean_interval([0] * 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert mean_interval([1] * 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert mean_interval([0.5] * 4, level=0.5) == pytest.approx((0.3403, 0.6597), abs=1e-4)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_interval_holds_the_mean_as_often_as_it_says(share):
    rng = np.random.default_rng(0)
    held, wider = 0, 0
    for _ in range(1000):
        low, high = mean_interval((rng.random(164) < share).astype(float))
        held += low <= share <= high
        low, high = mean_interval(rng.binomial(10, share, 164) / 10)  # ten completions of each problem
        wider += low <= share <= high
    assert 930 <= held <= 975 and wider >= 990


def test_difference_by_hand():
    mean, low, high = paired_bootstrap([1, 1, 1, 0], [0, 0, 0, 0], seed=0)
    assert (
        mean == 0.75 and low == 0.25 and high == 1.0
    )  # of 4 draws, none of the one that is 0: 0.32; three of it: 0.05
    assert paired_bootstrap([1, 0], [1, 0], seed=0) == (0, 0, 0)
    assert paired_bootstrap([[1, 0], [1, 0]], [0, 1], seed=0)[0] == 0  # two seeds of one, a single run of the other


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20), st.integers(0, 5))
def test_differences_turn_with_their_sides(pairs, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BOOTSTRAPS", 200)
        a, b = np.array(pairs).T
        mean, low, high = paired_bootstrap(a, b, seed=seed)
        assert paired_bootstrap(a, b, seed=seed) == (mean, low, high)
        assert paired_bootstrap(b, a, seed=seed) == pytest.approx((-mean, -high, -low), abs=1e-9)
        assert low - 1e-9 <= high and min(a - b) - 1e-9 <= low and high <= max(a - b) + 1e-9


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_difference_is_held_as_often_as_it_says(monkeypatch, num_seeds):
    """With several training seeds more often, never less."""
    monkeypatch.setattr(module, "BOOTSTRAPS", 250)
    rng, held = np.random.default_rng(0), 0
    for n in range(200):
        rate = rng.uniform(0, 0.9, 164)
        a, b = rng.random((num_seeds, 164)) < rate + 0.1, rng.random((num_seeds, 164)) < rate
        low, high = paired_bootstrap(a, b, seed=n)[1:]
        held += low <= 0.1 <= high
    assert 183 <= held <= (197 if num_seeds == 1 else 200)


def test_seeds_that_differ_widen_the_interval():
    """Three runs that all gain by chance of their seed are three values, not 3 * 164."""
    rng = np.random.default_rng(0)
    problems = 0.1 * rng.standard_normal(164)
    alike, apart = (problems + np.array(seeds)[:, None] for seeds in ([0.1, 0.1, 0.1], [0.0, 0.1, 0.2]))
    narrow, wide = (high - low for _, low, high in (paired_bootstrap(a, np.zeros(164), seed=0) for a in (alike, apart)))
    assert wide > 3 * narrow


@pytest.mark.parametrize(
    ("a", "b"),
    [([], []), ([1, 2, 3], [1]), ([1, 2, 3], [1, 2]), (np.ones((2, 3)), np.ones((3, 3))), (np.ones((2, 2, 2)), 0)],
)
def test_unequal_sets_of_problems_are_refused(a, b):
    """Numpy would stretch a single value to all problems."""
    with pytest.raises(ValueError, match="shape"):
        paired_bootstrap(a, b, seed=0)

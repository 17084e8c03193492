import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.estimate import ratio_total


def test_by_hand():
    """Costs 10, 20, 40 of sizes 1, 2, 3: ratio 70/6; deviations -5/3, -10/3, 5 make a variance of 350/18/(3 x 4), and t(2) is 4.303."""
    made = ratio_total([10, 20, 40], [1, 2, 3], 60)
    assert made.mid == pytest.approx(700)
    reach = 60 * 4.302653 * np.sqrt(350 / 9 / 2 / 3) / 2
    assert (made.low, made.high) == pytest.approx((700 - reach, 700 + reach), rel=1e-5)


def test_one_batch_says_nothing_of_the_spread():
    made = ratio_total([10], [2], 20)
    assert made.mid == 100 and np.isnan([made.low, made.high]).all()


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=20), st.floats(0.1, 10), st.floats(1, 1e6))
def test_equal_prices_leave_no_doubt(sizes, price, size):
    made = ratio_total(np.multiply(sizes, price), sizes, size)
    assert made == pytest.approx((price * size,) * 3, rel=1e-6)


def test_it_holds_as_often_as_it_says():
    """Of 2,000 samples of 10 from a lognormal lake, about 95 % hold the truth; skew costs some."""
    rng, held = np.random.default_rng(0), 0
    sizes = rng.lognormal(5, 0.8, 100_000)
    costs = sizes * rng.normal(1, 0.2, 100_000) + 20
    for _ in range(2000):
        batches = rng.choice(100_000, (10, 50))
        made = ratio_total(costs[batches].sum(1), np.full(10, 50), 100_000)
        held += made.low <= costs.sum() <= made.high
    assert 0.92 <= held / 2000 <= 0.97

"""Statistics of an experiment: by hand, by laws, and by simulated experiments whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raypipe.ops import pass_at_k
from raypipe.ops.experiment import (
    Spread,
    aligned_values,
    by_group,
    compare,
    mean_with_interval,
    pooled,
    sentence,
    smallest_difference,
    spread,
)

VALUES = arrays(np.float64, st.tuples(st.integers(2, 4), st.integers(2, 12)), elements=st.floats(-5, 5))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(pass_at_k, "BOOTSTRAPS", 200)


def normal(rng, num_seeds, num_units, seeds, units, both):
    """Of mean 0, with these standard deviations."""
    return (
        seeds * rng.normal(size=(num_seeds, 1))
        + units * rng.normal(size=(1, num_units))
        + both * rng.normal(size=(num_seeds, num_units))
    )


@pytest.mark.parametrize(
    ("num_seeds", "of_seeds", "of_units", "both"), [(2, 1, 0.5, 0.5), (3, 1, 0, 0.1), (3, 0.1, 1, 1), (5, 1, 1, 1)]
)
def test_the_interval_holds_the_truth_as_often_as_it_says(num_seeds, of_seeds, of_units, both):
    """An interval that is too narrow calls chance a finding: the bootstrap alone, of two seeds, in 4 of 10 experiments."""
    rng, held = np.random.default_rng(5), 0
    for _ in range(400):
        found = mean_with_interval(normal(rng, num_seeds, 40, of_seeds, of_units, both))
        held += found["low"] <= 0 <= found["high"]
    assert held / 400 >= 0.93


def test_the_smallest_difference_is_shown_in_four_of_five_experiments():
    """It decides what a GPU-week is spent on."""
    rng, shown = np.random.default_rng(6), 0
    truth = smallest_difference(Spread(4, 200, 0.5, 0.0), 4)
    for _ in range(400):
        shown += mean_with_interval(truth + normal(rng, 4, 200, 0.5, 0, 0.001))["low"] > 0
    assert 0.72 <= shown / 400 <= 0.88


def test_by_hand():
    """Two seeds of means 1 and 3, two units of means 1 and 3: t of one degree of freedom is 12.706, its four fifths 1.376."""
    values = np.array([[0.0, 2.0], [2.0, 4.0]])
    root = math.sqrt(2)
    assert spread(values) == Spread(2, 2, pytest.approx(root), pytest.approx(root))
    width = 12.706205 * math.hypot(1, 1)
    assert mean_with_interval(values) == pytest.approx({"mean": 2, "low": 2 - width, "high": 2 + width}, rel=1e-6)
    more = (12.706205 + 1.376382) * math.hypot(1, 1)
    assert smallest_difference(spread(values), 2) == pytest.approx(more, rel=1e-6)
    assert smallest_difference(Spread(2, 1, 1.0, 0.0), 9) == pytest.approx((2.306004 + 0.888890) / 3, rel=1e-5)
    assert pooled([Spread(2, 5, 3.0, 0.0), Spread(2, 5, 4.0, 1.0)]) == Spread(2, 5, math.sqrt(12.5), math.sqrt(0.5))


@settings(max_examples=25)
@given(VALUES, st.booleans())
def test_the_other_way_round_is_the_other_verdict(values, lower):
    """Better and worse must not depend on which arm was named first."""
    zero = np.zeros_like(values)
    there = compare(values, zero, lower_is_better=lower)
    back = compare(zero, values, lower_is_better=lower)
    other = {"better": "worse", "worse": "better", "not distinguishable": "not distinguishable"}
    assert back["mean"] == -there["mean"] and back["by_seed"] == [-mean for mean in there["by_seed"]]
    assert there["low"] <= there["mean"] <= there["high"]
    if there["low"] > 1e-9 or there["high"] < -1e-9:
        assert back["verdict"] == other[there["verdict"]]
    assert compare(values, zero, lower_is_better=not lower)["verdict"] == other[there["verdict"]]


@given(VALUES)
def test_an_arm_against_itself_is_not_distinguishable(values):
    found = compare(values, values, lower_is_better=True)
    assert (found["verdict"], found["mean"], found["would_show"]) == ("not distinguishable", 0, 0)


def test_sentences_by_hand():
    """What the reader takes home, each of three."""
    found = {"mean": -0.0123, "low": -0.015, "high": -0.0096, "verdict": "better"}
    assert (
        sentence("paper@0.4", "random@0.4", "held-out loss", found)
        == "paper@0.4 is better than random@0.4: held-out loss -0.0123 (-0.015 to -0.0096)"
    )
    assert sentence("a", "b", "pass@1", found | {"verdict": "worse"}).startswith("a is worse than b: pass@1 -0.0123")
    found = {"mean": 0.003, "low": -0.009, "high": 0.0151, "verdict": "not distinguishable", "more_seeds": 3}
    assert (
        sentence("a", "b", "held-out loss", found | {"would_show": 0.0081})
        == "a is not distinguishable from b: held-out loss +0.003 (+-0.012); 3 more seeds would show a difference of 0.0081"
    )


def test_better_means_lower_loss_and_higher_pass_rate():
    """Swapped once, every report says the opposite."""
    rng = np.random.default_rng(0)
    low, high = normal(rng, 3, 30, 0.01, 0.1, 0.01), 1 + normal(rng, 3, 30, 0.01, 0.1, 0.01)
    assert compare(low, high, lower_is_better=True)["verdict"] == "better"
    assert compare(low, high, lower_is_better=False)["verdict"] == "worse"


def test_groups():
    """Numbers in their order, what has no name last, a group of one sample left out; each as if it were alone."""
    rng = np.random.default_rng(0)
    arm, versus = normal(rng, 3, 8, 1, 1, 1), normal(rng, 3, 8, 1, 1, 1)
    rows = by_group(arm, versus, ["10", "2", None, "2", "10", None, "rust", "10"], lower_is_better=True)
    assert [(row["group"], row["units"]) for row in rows] == [("2", 2), ("10", 3), (None, 2)]
    alone = compare(arm[:, [1, 3]], versus[:, [1, 3]], lower_is_better=True)
    assert {name: rows[0][name] for name in ("mean", "low", "verdict")} == {
        name: alone[name] for name in ("mean", "low", "verdict")
    }


def test_units_are_the_same_in_all_runs():
    """Two arms on other held-out samples differ by their samples."""
    units, values = aligned_values([("a", {"y": 2.0, "x": 1.0}), ("b", {"x": 3.0, "y": 4.0})])
    assert units == ["x", "y"] and values.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="a has 2 and b 2; 1 are the first's alone and 1 the second's, for example x"):
        aligned_values([("a", {"y": 2.0, "x": 1.0}), ("b", {"z": 3.0, "y": 4.0})])

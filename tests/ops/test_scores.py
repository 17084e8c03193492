"""What tuning changed, and how sure one may be of it."""

import numpy as np
import pytest

from raypipe.ops import pass_at_k
from raypipe.ops.scores import scores


def rows(base, tuned, task="t"):
    """Of one completion a problem."""
    models = {"base": base, "tuned": tuned}
    return [
        {"model": model, "task": task, "problem_id": f"p{n}", "passed": bool(passed)}
        for model, values in models.items()
        for n, passed in enumerate(values)
    ]


def test_by_hand():
    found = scores(rows([1, 0, 0, 0], [1, 1, 0, 0]), 1, seed=0)["t"]
    assert (found["num_problems"], found["base"]["pass@1"]["mean"], found["tuned"]["pass@1"]["mean"]) == (4, 0.25, 0.5)
    difference = found["difference"]
    assert difference["mean"] == 0.25 and difference["low"] < 0 < 0.25 < difference["high"]


def test_few_problems_that_do_not_differ_say_little():
    """Four problems that neither model solves are no proof that tuning changed nothing."""
    difference = scores(rows([0] * 4, [0] * 4), 1, seed=0)["t"]["difference"]
    assert difference["mean"] == 0 and difference["low"] < -0.25 and difference["high"] > 0.25
    assert abs(difference["low"] + difference["high"]) < 0.05


@pytest.mark.parametrize("num_problems", [8, 164])
def test_the_interval_holds_the_difference_as_often_as_it_says(monkeypatch, num_problems):
    """Also of few problems: without the two more, of eight it held a gain of 0.1 in 62 % of cases, as most often none had changed."""
    monkeypatch.setattr(pass_at_k, "BOOTSTRAPS", 250)
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        base = rng.random(num_problems) < 0.5
        tuned = base | (rng.random(num_problems) < 0.2)
        difference = scores(rows(base, tuned), 1, seed=seed)["t"]["difference"]
        held += difference["low"] <= 0.1 <= difference["high"]
    assert held >= 183

"""What an experiment may say of its arms: paired differences with intervals over seeds and units, and a sentence in words.

Units are held-out samples, or problems: the same of every arm. Seeds and units are both drawn anew (`pass_at_k.paired_bootstrap`). Of
few seeds that interval alone is too narrow: where seeds decide, of three it holds the truth 73 times in 100, of two 59 times. So it is at
least as wide as Student's t makes it for the means of seeds and for those of units, together as independent errors: 95 to 99 times in
100 whichever decides. One t of Satterthwaite's degrees of freedom holds it 85 times of two seeds (`tests/ops/test_experiment.py`).

S seeds, N units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from raypipe.ops.pass_at_k import paired_bootstrap

LEVEL, POWER = 0.95, 0.8
BOOTSTRAP_SEED = 0
Verdict = Literal["better", "worse", "not distinguishable"]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """What a mean over seeds and units is uncertain by."""

    num_seeds: int
    num_units: int
    of_seeds: float  # standard deviation of a seed's mean
    of_units: float  # of a unit's mean

    def width(self, num_seeds: int, *levels: float) -> float:
        """Of the mean of so many seeds, from the truth: quantiles of Student's t, added up."""
        of_seeds, of_units = (
            sum(stdtrit(max(count - 1, 1), level) for level in levels) * sd / math.sqrt(count)
            for count, sd in ((num_seeds, self.of_seeds), (self.num_units, self.of_units))
        )
        return math.hypot(of_seeds, of_units)


def spread(values_SN: Values) -> Spread:
    """At least two seeds."""
    num_seeds, num_units = values_SN.shape
    of_units = float(values_SN.mean(0).std(ddof=1)) if num_units > 1 else 0.0
    return Spread(num_seeds, num_units, float(values_SN.mean(1).std(ddof=1)), of_units)


def mean_with_interval(values_SN: Values) -> dict[str, float]:
    mean, low, high = paired_bootstrap(values_SN, np.zeros_like(values_SN), seed=BOOTSTRAP_SEED, level=LEVEL)
    width = spread(values_SN).width(len(values_SN), (1 + LEVEL) / 2)
    return {"mean": mean, "low": min(low, mean - width), "high": max(high, mean + width)}


def smallest_difference(known: Spread, num_seeds: int) -> float:
    """The true difference that so many seeds would show in POWER of all experiments. By t: the normal
    promises of three seeds half of what they need."""
    return known.width(num_seeds, (1 + LEVEL) / 2, POWER)


def compare(arm_SN: Values, versus_SN: Values, *, lower_is_better: bool) -> dict[str, Any]:
    """Of the same seeds and units, in order."""
    difference_SN = arm_SN - versus_SN
    found, known = mean_with_interval(difference_SN), spread(difference_SN)
    verdict: Verdict = "not distinguishable"
    if found["low"] > 0 or found["high"] < 0:
        verdict = "better" if (found["mean"] < 0) == lower_is_better else "worse"
    more = known.num_seeds  # as many again: for what was paid once more
    return {
        **found,
        "by_seed": difference_SN.mean(1).tolist(),
        "sd_of_seeds": known.of_seeds,
        "sd_of_units": known.of_units,
        "verdict": verdict,
        "more_seeds": more,
        "would_show": smallest_difference(known, known.num_seeds + more),
    }


def sentence(arm: str, versus: str, outcome: str, found: Mapping[str, Any]) -> str:
    """Of what `compare` gave."""
    by = f"{outcome} {found['mean']:+.3g}"
    if found["verdict"] != "not distinguishable":
        return f"{arm} is {found['verdict']} than {versus}: {by} ({found['low']:+.3g} to {found['high']:+.3g})"
    width, more = max(found["high"] - found["mean"], found["mean"] - found["low"]), found["more_seeds"]
    return (
        f"{arm} is not distinguishable from {versus}: {by} (+-{width:.2g}); {more} more seeds would show a difference of "
        f"{found['would_show']:.2g}"
    )


def by_group(
    arm_SN: Values, versus_SN: Values, groups_N: Sequence[str | None], *, lower_is_better: bool
) -> list[dict[str, Any]]:
    """As `compare`, of each group with at least two units, by name; no name is a group of its own, and the last."""
    rows = []
    for group in sorted(set(groups_N), key=lambda name: (name is None, _natural(name))):
        its_N = np.array([name == group for name in groups_N])
        if its_N.sum() > 1:
            found = compare(arm_SN[:, its_N], versus_SN[:, its_N], lower_is_better=lower_is_better)
            shown = {name: found[name] for name in ("mean", "low", "high", "verdict")}
            rows.append({"group": group, "units": int(its_N.sum()), **shown})
    return rows


def _natural(name: str | None) -> tuple[bool, int, str]:
    """2 before 10."""
    text = name or ""
    return (not text.isdecimal(), int(text) if text.isdecimal() else 0, text)


def pooled(spreads: Sequence[Spread]) -> Spread:
    """One for all comparisons: root mean squares. At least one."""
    of_seeds, of_units = (
        math.sqrt(float(np.mean([getattr(one, name) ** 2 for one in spreads]))) for name in ("of_seeds", "of_units")
    )
    return Spread(spreads[0].num_seeds, spreads[0].num_units, of_seeds, of_units)


def aligned_values(runs: Sequence[tuple[str, Mapping[str, float]]]) -> tuple[list[str], Values]:
    """Of runs, each with a value for each unit: units in order, and [S, N]. ValueError says which runs differ and by what."""
    first_name, first = runs[0]
    for name, values in runs[1:]:
        if values.keys() != first.keys():
            alone, missing = sorted(values.keys() - first.keys()), sorted(first.keys() - values.keys())
            raise ValueError(
                f"{first_name} has {len(first):,} and {name} {len(values):,}; {len(missing):,} are the first's alone and {len(alone):,} the "
                f"second's, for example {(missing + alone)[0]}"
            )
    units = sorted(first)
    return units, np.array([[values[unit] for unit in units] for _, values in runs])

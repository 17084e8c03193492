"""Scores of an evaluation: pass@k of each model and task with its interval, and what tuning changed, problem by problem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from raypipe.ops.pass_at_k import mean_interval, paired_bootstrap, pass_at_k

KS = (1, 10, 100)


def scores(rows: Iterable[Mapping[str, Any]], num_completions: int, seed: int) -> dict[str, Any]:
    """`rows`: model (base, tuned), task, problem_id, passed, in any order, `num_completions` of each problem.

    {task: {num_problems, base: {pass@1: {mean, low, high}, ...}, tuned: the same, difference: of pass@1, tuned - base}}; shares, not per cent.
    """
    passes: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for row in rows:
        passes[row["task"]][row["model"]][row["problem_id"]] += bool(row["passed"])
    return {task: _of_task(models, num_completions, seed) for task, models in passes.items()}


def _of_task(models: Mapping[str, Mapping[str, int]], num_completions: int, seed: int) -> dict[str, Any]:
    problems = sorted(models["base"])
    found: dict[str, Any] = {"num_problems": len(problems)}
    for model, counts in models.items():
        found[model] = {
            f"pass@{k}": _with_interval([pass_at_k(num_completions, counts[problem], k) for problem in problems])
            for k in KS
            if k <= num_completions
        }
    base, tuned = ([models[name][problem] / num_completions for problem in problems] for name in ("base", "tuned"))
    # With two problems more, one won and one lost (Bonett and Price 2012): else few that do not differ are told for sure
    _, low, high = paired_bootstrap([*tuned, 1, 0], [*base, 0, 1], seed=seed)
    mean = (sum(tuned) - sum(base)) / len(problems)
    return {**found, "difference": {"mean": mean, "low": low, "high": high}}


def _with_interval(values: list[float]) -> dict[str, float]:
    low, high = mean_interval(values)
    return {"mean": sum(values) / len(values), "low": low, "high": high}

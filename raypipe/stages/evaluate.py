"""Evaluate: runs what the models wrote, in the sandbox, and says whether it solves its problem. Off unless evaluate.execute is set.

Columns: model, task, problem_id, completion_index, completion, passed (null where nothing was run), reason (passed, wrong, error, time,
memory, syntax, not_run), seconds (that the code took to answer), evidence (of a failure), sandbox (which kind). The manifest's summary has
`scores` (see `ops.scores`) and how many completions ran in which kind of sandbox.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pyarrow as pa

from raypipe.config import Config
from raypipe.errors import DataError
from raypipe.ops.code_prompts import FORMS, program
from raypipe.ops.problems import PROBLEMS, Problem
from raypipe.ops.scores import scores
from raypipe.ops.warnings import of_evaluation
from raypipe.part import Table
from raypipe.parts import map_parts
from raypipe.resources import Pool
from raypipe.sandbox.plain import pack
from raypipe.sandbox.supervisor import find_sandbox
from raypipe.stage import Inputs, Result
from raypipe.store import Folder


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    completions, executed = inputs["generate"], config.evaluate.execute
    if not completions.parts:
        return Result()
    problems = Table(completions.folder / PROBLEMS, completions.parts)
    parts = map_parts(partial(Judge, config), [completions, problems], out, pool=Pool())
    rows = pa.concat_tables(
        Table(out, tuple(parts)).only(*COUNTED).read(part).replace_schema_metadata() for part in parts
    ).to_pylist()
    sandboxes = Counter(row["sandbox"] for row in rows if executed)
    found = scores(rows, config.evaluate.num_completions, config.seed) if executed else {}
    return Result(parts, {"scores": found, "sandboxes": dict(sandboxes), "warnings": of_evaluation(sandboxes)})


COUNTED = ("model", "task", "problem_id", "passed", "sandbox")


class Judge:
    def __init__(self, config: Config) -> None:
        rule = config.evaluate
        self.sandbox = find_sandbox(rule.execute_without_sandbox) if rule.execute else None

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        completions, problems = tables
        known = {problem.problem_id: problem for problem in map(Problem, problems.column("problem").to_pylist())}
        rows = [self._judged(row, known[row["problem_id"]]) for row in completions.to_pylist()]
        kind = self.sandbox.kind if self.sandbox else None
        return pa.table(
            {
                **{name: completions.column(name) for name in completions.column_names},
                "passed": pa.array([row["passed"] for row in rows], pa.bool_()),
                "reason": [row["reason"] for row in rows],
                "seconds": pa.array([row["seconds"] for row in rows], pa.float64()),
                "evidence": pa.array([row["evidence"] for row in rows], pa.string()),
                "sandbox": pa.array([kind] * len(rows), pa.string()),
            }
        )

    def _judged(self, row: dict[str, Any], problem: Problem) -> dict[str, Any]:
        if self.sandbox is None:
            return {"passed": None, "reason": "not_run", "seconds": None, "evidence": None}
        code = program(FORMS[row["model"]], problem, row["completion"])
        try:
            verdict = self.sandbox.judged(question(problem), code)
        except DataError as error:
            raise DataError(
                f"evaluate.tasks.{row['task']}: {problem.problem_id}: {error}. Mend its file, or leave it out"
            ) from error
        return {
            "passed": verdict.passed,
            "reason": verdict.reason or "passed",
            "seconds": verdict.seconds,
            "evidence": verdict.evidence or None,
        }


def question(problem: Problem) -> dict[str, Any]:
    """What the judge is told of a problem."""
    return {
        "prompt": problem.prompt,
        "canonical_solution": problem.canonical_solution,
        "entry_point": problem.entry_point,
        "test": problem.test,
        "inputs": pack(problem.inputs),
        "rule": problem.rule,
        "atol": problem.atol,
    }

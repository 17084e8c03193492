"""Verdicts of the evalplus package, in its own environment: `python by_evalplus.py humaneval|mbpp PROBLEMS.jsonl < programs > verdicts`.

`programs`: a line of JSON each, [problem_id, code]; `verdicts`: a list of "pass", "fail", "timeout". What the package would cache outside
is made anew.
"""

import contextlib
import json
import os
import sys
import types

sys.modules["datasets"] = types.SimpleNamespace(
    load_dataset=None
)  # the package imports it for a set that is not used here

kind, path = sys.argv[1:]
os.environ["HUMANEVAL_OVERRIDE_PATH" if kind == "humaneval" else "MBPP_OVERRIDE_PATH"] = path

from evalplus.data import get_human_eval_plus, get_mbpp_plus  # noqa: E402  it reads the environment
from evalplus.eval import untrusted_check  # noqa: E402
from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS  # noqa: E402
from evalplus.gen.util import trusted_exec  # noqa: E402

problems = get_human_eval_plus() if kind == "humaneval" else get_mbpp_plus()
known = {}


def expected(problem_id):
    """Inputs, outputs of the canonical solution, seconds of each."""
    if problem_id not in known:
        problem = problems[problem_id]
        inputs = [*problem["base_input"], *(problem["plus_input"] or [])]
        with contextlib.redirect_stdout(sys.stderr):
            found = trusted_exec(
                problem["prompt"] + problem["canonical_solution"], inputs, problem["entry_point"], record_time=True,
                output_not_none=problem["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS,
            )  # fmt: skip
        known[problem_id] = (inputs, *found)
    return known[problem_id]


def verdict(problem_id, code):
    problem, (inputs, outputs, seconds) = problems[problem_id], expected(problem_id)
    status, _ = untrusted_check(
        kind, code, inputs, problem["entry_point"], expected=outputs, atol=problem["atol"], ref_time=seconds, fast_check=True,
        min_time_limit=4.0,
    )  # fmt: skip
    return status


if __name__ == "__main__":
    json.dump([verdict(*json.loads(line)) for line in sys.stdin], sys.stdout)

"""Real problems: solutions pass all their tests, others fail, and the evalplus package says the same. benchmarks/verdicts.py has all of them."""

import pytest

from raypipe.ops.problems import read_problems
from tests.sandbox.mutants import altered, empty, evalplus, mutants, ours, solution

pytestmark = pytest.mark.slow
SETS = {"HumanEval": 2, "HumanEvalPlus": 6, "MbppPlus": 9}  # one problem in so many
ANYTHING = {"Mbpp/164"}  # any answer passes, by evalplus's rule


@pytest.fixture(scope="module", params=SETS)
def problems(request, shared):
    name = f"{request.param}.jsonl.gz"
    return read_problems(name, (shared / "data/eval" / name).read_bytes())[:: SETS[request.param]]


def test_solutions_pass(problems):
    failed = [
        (p.problem_id, v)
        for p, v in zip(problems, ours(problems, [solution(p) for p in problems]), strict=True)
        if not v.passed
    ]
    assert not failed


@pytest.mark.parametrize("make", [empty, altered])
def test_others_fail(problems, make):
    verdicts = ours(problems, [make(p) for p in problems])
    passed = [
        p.problem_id for p, v in zip(problems, verdicts, strict=True) if v.passed and p.problem_id not in ANYTHING
    ]
    assert not passed
    assert {v.reason for v in verdicts} <= {"wrong", "error", ""}


def test_evalplus_agrees(problems, tmp_path):
    if problems[0].test is not None:
        return  # HumanEval's own tests: evalplus has none of them
    pairs = [(p, code) for p in problems for code in [solution(p), empty(p), altered(p), *mutants(p, 2)]]
    asked, programs = [p for p, _ in pairs], [code for _, code in pairs]
    mine, theirs = ours(asked, programs), evalplus(asked, programs, tmp_path)
    differ = [
        (p.problem_id, code, v, said)
        for p, code, v, said in zip(asked, programs, mine, theirs, strict=True)
        if v.passed != (said == "pass")
    ]
    assert not differ
    assert len(set(theirs)) > 1

import gzip
import json

import pytest

from raypipe.errors import DataError
from raypipe.ops.problems import CONVERSIONS, Problem, read_problems

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
MBPP = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nWrite a function to find the shared elements.\n"""\n',
    "entry_point": "similar_elements",
    "canonical_solution": "\ndef similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",
    "base_input": [[[3, 4], [4, 5]]],
    "plus_input": [[[], [1]]],
    "atol": 0,
    "assertion": "assert True",
    "contract": "",
}


def lines(*records, **json_options):
    return "\n".join(json.dumps(record, **json_options) for record in records).encode()


def without(record, *names):
    return {name: value for name, value in record.items() if name not in names}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_both_layouts(pack):
    human, mbpp = read_problems("x", pack(lines(HUMANEVAL, MBPP) + b"\r\n\n"))
    assert (human.problem_id, human.kind, human.entry_point, human.atol, human.rule) == (
        "HumanEval/0", "function", "double", 0.0, ""
    )  # fmt: skip
    assert human.test == HUMANEVAL["test"] and human.inputs == []
    assert human.prompt + human.canonical_solution == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
    assert (mbpp.kind, mbpp.test, mbpp.rule) == ("text", None, "similar_elements")
    assert mbpp.inputs == [[(3, 4), (4, 5)], [(), (1,)]]


def test_inputs_are_what_runs_where_a_test_is_there_too():
    """HumanEval+ has both; its test holds all inputs once more, with a comparison of its own."""
    (problem,) = read_problems("x", lines(HUMANEVAL | {"base_input": [[1]], "plus_input": [[2]], "atol": 1e-6}))
    assert problem.test is None and problem.inputs == [[1], [2]] and problem.atol == 1e-6


def test_a_problem_travels_as_its_line():
    for problem in read_problems("x", lines(HUMANEVAL, MBPP)):
        again = Problem(problem.record)
        assert again == problem and repr(again.inputs) == repr(problem.inputs) and again.kind == problem.kind


def test_only_a_newline_ends_a_line():
    """JSON may hold U+2028 and U+0085 as they are; str.splitlines would cut a good file there."""
    record = HUMANEVAL | {"prompt": 'def double(x):\n    """Twice\u2028x\x85."""\n'}
    (problem,) = read_problems("x", lines(record, ensure_ascii=False))
    assert problem.prompt == record["prompt"]


def test_a_rule_holds_for_its_own_set_only():
    """A user's problem that happens to be called find_zero has one right answer, as any other."""
    inputs = {"base_input": [[[1, 2]]], "plus_input": [], "atol": 1e-4, "entry_point": "find_zero"}
    found = [HUMANEVAL | inputs | {"task_id": name} for name in ("HumanEval/32", "Mbpp/32", "mine/32")]
    assert [problem.rule for problem in read_problems("x", lines(*found))] == ["find_zero", "", ""]


@pytest.mark.parametrize(
    ("number", "json_inputs", "wanted"),
    [
        (2, [[1, 2], [3]], [(1, 2), (3,)]),
        (63, [[[1, 2], [3]]], [[(1, 2), (3,)]]),
        (75, [[[1, 2], [3]], 6], [[(1, 2), (3,)], 6]),
        (106, [[1], [2, 3]], [[1], (2, 3)]),
        (115, [[[1, 2], []]], [[{1, 2}, {}]]),
        (124, ["0", "1j"], [0.0, 1j]),
        (250, [[1, 2], 2], [(1, 2), 2]),
        (252, ["1j"], [1j]),
        (259, [[[1, 3], [4]], [[6], []]], [((1, 3), (4,)), ((6,), ())]),
        (278, [[1, [2, [3]]]], [(1, (2, [3]))]),
        (307, [["a", []], 1, 50], [("a", []), 1, 50]),
        (580, [[4, [7, [1]]], "a"], [(4, (7, (1,))), "a"]),
        (722, [{"a": [1, 2]}, 6.0, 70], [{"a": (1, 2)}, 6.0, 70]),
        (3, [[1, 2]], [[1, 2]]),
    ],
)
def test_what_json_lost_is_put_back(number, json_inputs, wanted):
    """A list where the problem means a tuple makes right programs fail: it has no hash, and [1] + (2,) is an error."""
    (problem,) = read_problems(
        "x", lines(MBPP | {"task_id": f"Mbpp/{number}", "base_input": [json_inputs], "plus_input": {}})
    )
    assert repr(problem.inputs) == repr([wanted])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(lines(HUMANEVAL))[:-9], "a.jsonl.gz: not readable"),
        (b"\x1f\x8bnonsense", "a.jsonl.gz: not readable"),
        (b"\xff", "a.jsonl.gz: not readable"),
        (b"", "no problems"),
        (b"\n \n", "no problems"),
        (lines(HUMANEVAL) + b"\nnonsense", "line 2: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b"[1]", "line 1: got list, wanted an object"),
        (lines(without(HUMANEVAL, "prompt")), "line 1: prompt is missing; there are canonical_solution, entry_point"),
        (lines(HUMANEVAL, {"task_id": 2, "text": "", "code": "", "test_list": []}), "line 2: task_id is of type int"),
        (lines(without(HUMANEVAL, "test")), "test is missing.*Wanted HumanEval's layout"),
        (lines(without(MBPP, "plus_input")), "plus_input is missing"),
        (lines(MBPP | {"atol": "0"}), "atol is of type str"),
        (lines(HUMANEVAL | {"test": "assert double(1) == 2"}), "test does not define check"),
        (lines(MBPP | {"task_id": "mine/1", "base_input": [1]}), "an input is of type int. Wanted a list of arguments"),
        (lines(MBPP | {"plus_input": {"a": 1}}), "an input is of type str"),
        (lines(MBPP | {"base_input": [3]}), "an input is of type int"),
        (lines(MBPP | {"base_input": [[1, 2]]}), "the inputs of Mbpp/2 are not laid out as MBPP"),
        (lines(MBPP | {"task_id": "Mbpp/124", "base_input": [["0"]]}), "the inputs of Mbpp/124"),
        (lines(HUMANEVAL, MBPP, HUMANEVAL), "line 3: HumanEval/0 is on line 1 too"),
    ],
)
def test_what_is_no_such_set_is_refused_by_file_and_line(data, said):
    """Found when a run begins; else each completion of that problem would count as wrong, or a worker fail after hours of generating."""
    with pytest.raises(DataError, match=said) as refused:
        read_problems("a.jsonl.gz", data)
    assert str(refused.value).startswith("a.jsonl.gz: ")


@pytest.mark.parametrize(
    ("name", "count", "kind", "atols"),
    [
        ("HumanEval", 164, "function", {0}),
        ("HumanEvalPlus", 164, "function", {0, 1e-6, 1e-4}),
        ("MbppPlus", 378, "text", {0, 1e-4}),
    ],
)
def test_the_real_files(shared, name, count, kind, atols):
    problems = read_problems(name, (shared / "data" / "eval" / f"{name}.jsonl.gz").read_bytes())
    assert len(problems) == count and {problem.kind for problem in problems} == {kind}
    assert {problem.atol for problem in problems} == atols
    assert all((problem.test is None) == bool(problem.inputs) for problem in problems)
    assert name != "MbppPlus" or len(CONVERSIONS.keys() & {problem.problem_id for problem in problems}) > 40

import json

import pytest

from raypipe.ops.code_prompts import BEGINNING, INSTRUCTIONS, instruction, program, said, stops
from raypipe.ops.problems import Problem, read_problems

PROMPT = 'from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef total(values: List[int]) -> int:\n    """Their sum."""\n'
IMPORTS = "from typing import List\ndef helper(x):\n    return x\n"
BODY = "    return sum(values)\n"
WHOLE = "def total(values: List[int]) -> int:\n    return sum(values)\n"
TEXT = '"""\nWrite a function to add the values of a list.\nassert total([1, 2]) == 3\n"""\n'
TEST = "def check(candidate):\n    assert candidate([1, 2]) == 3\n"


def problem(prompt):
    fields = {"task_id": "x/0", "prompt": prompt, "entry_point": "total", "canonical_solution": "", "test": TEST}
    return Problem(json.dumps(fields))


FUNCTION, WORDS = problem(PROMPT), problem(TEXT)


def passes(code):
    names = {}
    exec(code, names)
    exec(TEST, names)
    names["check"](names["total"])
    return True


def test_instructions():
    assert instruction(FUNCTION) == (
        f"Please complete the following Python function in a markdown style code block:\n```python\n{PROMPT.strip()}\n```"
    )
    assert instruction(WORDS) == (
        "Please write the Python function in a markdown style code block that complies with the following instruction.\n"
        + TEXT.strip()
    )
    assert instruction(problem('def total(x):\n    """Of {prompt} and {}."""\n')).count("{prompt}") == 1


COMPLETIONS = [
    (FUNCTION, BODY, PROMPT + BODY),
    (FUNCTION, BODY + "\ndef other():\n    return 1\n", PROMPT + BODY),
    (FUNCTION, BODY + "\n\nassert total([]) == 0\n", PROMPT + BODY + "\n"),
    (FUNCTION, BODY + '\nif __name__ == "__main__":\n    total([])', PROMPT + BODY),
    (FUNCTION, BODY + "\nprint(total([1]))", PROMPT + BODY),
    (FUNCTION, BODY + "\nimport os", PROMPT + BODY),
    (FUNCTION, BODY + "\nfrom os import path", PROMPT + BODY),
    (FUNCTION, BODY + "\nclass A: pass", PROMPT + BODY),
    (FUNCTION, BODY + "```\nThat is it", PROMPT + BODY[:-1]),
    (FUNCTION, "    def inner():\n        return sum(values)\n    print(1)\n    return inner()\n", None),
    (FUNCTION, WHOLE, IMPORTS + WHOLE),
    (WORDS, "def total(values):\n    return sum(values)\n", "def total(values):\n    return sum(values)\n"),
    (WORDS, "\nimport math\n\ndef add(a, b):\n    return a + b\n\ndef total(values):\n    return sum(values)\n", None),
    (WORDS, 'def total(values):\n    return sum(values)\n"""\nWrite', "def total(values):\n    return sum(values)"),
    (WORDS, "total = sum\nassert total([1]) == 1\n", "total = sum"),
]


@pytest.mark.parametrize(("asked", "completion", "wanted"), COMPLETIONS)
def test_programs_of_completions(asked, completion, wanted):
    """What goes on behind the answer is the model's next document: run, its prints and asserts would fail a right answer."""
    code = program("completion", asked, completion)
    assert wanted is None or code == wanted
    assert passes(code)


ANSWERS = [
    (FUNCTION, WHOLE, IMPORTS + WHOLE),
    (FUNCTION, WHOLE + "```\nThis adds them.\n```python\nprint(total([]))\n```", IMPORTS + WHOLE[:-1]),
    (FUNCTION, PROMPT + BODY + "\nassert total([]) == 1\n```", IMPORTS + PROMPT + BODY),
    (FUNCTION, BODY + "```", PROMPT + BODY[:-1]),
    (FUNCTION, "```python\n" + WHOLE + "```", IMPORTS + "\n" + WHOLE[:-1]),
    (
        FUNCTION,
        WHOLE + "\nclass A:\n    pass\n\ndef main():\n    total()\n",
        IMPORTS + WHOLE + "\nclass A:\n    pass\n",
    ),
    (FUNCTION, "import math\n" + WHOLE, IMPORTS + "import math\n" + WHOLE),
    (FUNCTION, "class Sum:\n    pass\n\n" + WHOLE, IMPORTS + "class Sum:\n    pass\n\n" + WHOLE),
    (WORDS, "import math\n\ndef total(values):\n    return int(math.fsum(values))\n```", None),
    (WORDS, "total = lambda values: sum(values)\n```", "total = lambda values: sum(values)"),
]


@pytest.mark.parametrize(("asked", "answer", "wanted"), ANSWERS)
def test_programs_of_answers(asked, answer, wanted):
    code = program("instruction", asked, answer)
    assert wanted is None or code == wanted
    assert passes(code)


def test_a_future_import_stays_first():
    """Behind the prompt's imports it is a syntax error, and a right answer counts as wrong."""
    future = "from __future__ import annotations\n"
    code = program("instruction", FUNCTION, f"{future}import math\n{WHOLE}```")
    assert code == f"{future}{IMPORTS}import math\n{WHOLE[:-1]}" and passes(code)


@pytest.mark.parametrize("form", ["completion", "instruction"])
@pytest.mark.parametrize("asked", [FUNCTION, WORDS], ids=["function", "text"])
@pytest.mark.parametrize(
    "text", ["def total(values:\n", "Sure! Here it is", "\0", "(" * 5000, "-" * 100_000 + "1", "return 1"]
)
def test_what_is_no_python_is_left_for_the_sandbox_to_refuse(form, asked, text):
    """It is parsed outside of the sandbox, so no text may raise or end the process here."""
    code = program(form, asked, text)
    assert text in code
    with pytest.raises((SyntaxError, ValueError, RecursionError, MemoryError)):
        compile(code, "x", "exec")


@pytest.mark.parametrize("form", ["completion", "instruction"])
def test_an_empty_answer_is_a_program_that_fails(form):
    """The prompt alone is a function that does nothing; of a text nothing is defined."""
    assert program(form, FUNCTION, "") == PROMPT
    assert "total" not in program(form, WORDS, "").replace(TEXT, "")


def test_stops():
    """A problem in words is completed by whole functions, with imports before them: those must not end it."""
    both = {"\nif __name__", "\ndef main(", "\nprint(", "\nassert", "\n```"}
    assert set(stops("instruction", "function")) == set(stops("instruction", "text")) == both
    assert set(stops("completion", "function")) == both | {"\ndef ", "\nclass ", "\nimport ", "\nfrom "}
    assert set(stops("completion", "text")) == both | {'\n"""'}


@pytest.mark.parametrize("form", ["completion", "instruction"])
def test_said_is_what_is_done(form):
    """Scores are compared by who reads them: with other prompts or stops they are other scores."""
    words = said(form)
    assert json.loads(json.dumps(words)) == words and words["form"] == form
    assert words["stops"] == {kind: list(stops(form, kind)) for kind in INSTRUCTIONS}
    assert (words.get("beginning"), words.get("instructions")) == (
        (BEGINNING, INSTRUCTIONS) if form == "instruction" else (None, None)
    )


@pytest.mark.parametrize("name", ["HumanEval", "HumanEvalPlus", "MbppPlus"])
def test_canonical_solutions_of_the_real_files_survive(shared, name):
    """As a completion, and as an answer of what is behind the prompt and of the whole function, with words behind."""
    for one in read_problems(name, (shared / "data" / "eval" / f"{name}.jsonl.gz").read_bytes()):
        whole = (one.prompt if one.kind == "function" else "") + one.canonical_solution
        for form, text in (
            ("completion", one.canonical_solution),
            ("instruction", one.canonical_solution.rstrip() + "\n```\nThis is it."),
            ("instruction", whole.rstrip() + "\n```\nThis is it."),
        ):
            names = {}
            code = program(form, one, text)
            exec(code, names)
            assert callable(names[one.entry_point]), (one.problem_id, form)
            assert one.canonical_solution.strip() in code, (one.problem_id, form)

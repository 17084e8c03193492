"""What a model is given of a problem, where its text ends, and which program that makes.

Two forms. `completion`, for a base model: it goes on behind the problem's own text, up to where a new piece of code would begin.
`instruction`, for one that was tuned to answer: the problem in words, by the template of its training, and the first line of a code block,
which it goes on with, as the paper's authors have it. `said` has both in words, for who reads the scores.

The program: of an instruction's answer the code block; of a completion all. Where that defines the function that is asked for, it is the
program, behind the imports of the problem's text; where not, it is taken for the rest of that text.
"""

from __future__ import annotations

import ast
import re
from typing import Any, Literal

from raypipe.ops.problems import Kind, Problem

Form = Literal["completion", "instruction"]
FORMS: dict[str, Form] = {"base": "completion", "tuned": "instruction"}  # of a run's models
BEGINNING = "```python\n"  # of an answer, given to the model
FENCE = "\n```"
INSTRUCTIONS: dict[Kind, str] = {
    "function": "Please complete the following Python function in a markdown style code block:\n```python\n{prompt}\n```",
    "text": "Please write the Python function in a markdown style code block that complies with the following instruction.\n{prompt}",
}
FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)  # has to be the first statement
ALWAYS = ("\nif __name__", "\ndef main(", "\nprint(", "\nassert", FENCE)
STOPS: dict[tuple[Form, Kind], tuple[str, ...]] = {
    ("completion", "function"): (*ALWAYS, "\ndef ", "\nclass ", "\nimport ", "\nfrom "),
    ("completion", "text"): (*ALWAYS, '\n"""'),
    ("instruction", "function"): ALWAYS,
    ("instruction", "text"): ALWAYS,
}


def instruction(problem: Problem) -> str:
    return INSTRUCTIONS[problem.kind].replace("{prompt}", problem.prompt.strip())


def stops(form: Form, kind: Kind) -> tuple[str, ...]:
    """Strings at which generating ends; what a model writes from there on is no part of its answer."""
    return STOPS[form, kind]


def program(form: Form, problem: Problem, completion: str) -> str:
    """The code that is run for a completion. Code that cannot be parsed is handed on as it is, to be judged so."""
    text = completion
    if form == "instruction" and text.lstrip().startswith("```"):  # a block of its own, though one was begun
        text = "\n" + text.lstrip().partition("\n")[2]
    ends = [place for stop in stops(form, problem.kind) if (place := text.find(stop)) >= 0]
    text = text[: min(ends, default=len(text))]
    if problem.entry_point in _defined(text):
        return "".join(FUTURE.findall(text)) + _imports(problem.prompt) + FUTURE.sub("", text)
    return problem.prompt + text if problem.kind == "function" else text


def _defined(text: str) -> set[str]:
    """Names at the top; none of what is no Python by itself, as a function's body is."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    return names | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _imports(prompt: str) -> str:
    """And helpers: all that stands before the last function of a problem's text."""
    try:
        tree = ast.parse(prompt)
    except SyntaxError:
        return ""
    return "".join(f"{ast.unparse(node)}\n" for node in tree.body[:-1])


def said(form: Form) -> dict[str, Any]:
    """In words and as they are: for a run's output."""
    given = {
        "completion": "the problem's own text",
        "instruction": "the training template around an instruction, then the first line of a code block",
    }
    texts = (
        {}
        if form == "completion"
        else {"instructions": {str(kind): text for kind, text in INSTRUCTIONS.items()}, "beginning": BEGINNING}
    )
    ends = {kind: list(stops(form, kind)) for kind in INSTRUCTIONS}
    return {"form": form, "given": given[form], **texts, "stops": ends}

"""Evaluation sets of code: JSONL, plain or gzipped, a problem a line, laid out as HumanEval's or as evalplus's HumanEval+ and MBPP+.

HumanEval has a `test` with `check(candidate)`. Evalplus has inputs, `base_input` and `plus_input`; what is expected of each is what the
canonical solution gives. JSON has neither tuples nor sets nor complex numbers, so MBPP+'s inputs are turned back by the number of the problem.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from raypipe.errors import DataError
from raypipe.sandbox.comparing import RULES

PROBLEMS = "_problems"  # folder of stage generate that holds them in parts
Kind = Literal["function", "text"]
COMMON = {"task_id": str, "prompt": str, "entry_point": str, "canonical_solution": str}
OF_INPUTS = {"base_input": list, "plus_input": (list, dict), "atol": (int, float)}  # one of MBPP+ has {} for no inputs


@dataclass(frozen=True)
class Problem:
    """`record`: a line of its file, from which all else follows."""

    record: str

    @cached_property
    def _fields(self) -> dict[str, Any]:
        return dict(json.loads(self.record))

    @property
    def problem_id(self) -> str:
        return str(self._fields["task_id"])

    @property
    def prompt(self) -> str:
        return str(self._fields["prompt"])

    @property
    def entry_point(self) -> str:
        return str(self._fields["entry_point"])

    @property
    def canonical_solution(self) -> str:
        """Behind the prompt: a body, or the whole function."""
        return str(self._fields["canonical_solution"])

    @property
    def kind(self) -> Kind:
        """`function`: the prompt begins it, as HumanEval's; `text`: it describes it, as MBPP's."""
        return "function" if f"def {self.entry_point}(" in self.prompt else "text"

    @property
    def test(self) -> str | None:
        """Code that defines `check(candidate)`; None where inputs are given."""
        return None if "base_input" in self._fields else str(self._fields["test"])

    @property
    def inputs(self) -> list[list[Any]]:
        """Lists of arguments, base and plus."""
        if self.test is not None:
            return []
        inputs = [*self._fields["base_input"], *(self._fields["plus_input"] or [])]
        convert = CONVERSIONS.get(self.problem_id)
        return [convert(arguments) for arguments in inputs] if convert else inputs

    @property
    def atol(self) -> float:
        return float(self._fields.get("atol", 0))

    @property
    def rule(self) -> str:
        """How answers are compared: a key of `comparing.RULES`, or nothing."""
        if self.test is not None or self.entry_point not in RULES:
            return ""
        known = "HumanEval/" if self.entry_point == "find_zero" else "Mbpp/"
        return self.entry_point if self.problem_id.startswith(known) else ""


def read_problems(where: str, data: bytes) -> list[Problem]:
    """DataError, naming `where` and the line, for what is no such set."""
    problems, seen = list[Problem](), dict[str, int]()
    for number, line in numbered_lines(where, data):
        problem = Problem(line)
        _check(f"{where}: line {number}", problem)
        if (before := seen.setdefault(problem.problem_id, number)) != number:
            raise DataError(
                f"{where}: line {number}: {problem.problem_id} is on line {before} too. Leave one of them out"
            )
        problems.append(problem)
    if not problems:
        raise DataError(f"{where}: no problems in it. Wanted a line of JSON for each")
    return problems


def numbered_lines(where: str, data: bytes) -> Iterator[tuple[int, str]]:
    """Lines of a set, from 1, without blank ones."""
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not readable as JSONL or JSONL.gz in UTF-8: {error}. Copy it anew") from error
    lines = enumerate(text.split("\n"), 1)  # JSON may hold U+2028, at which splitlines() cuts
    return ((number, line) for number, line in lines if line.strip())


def _check(where: str, problem: Problem) -> None:
    try:
        fields = json.loads(problem.record)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}. Wanted one problem a line") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}: got {type(fields).__name__}, wanted an object with the fields of a problem")
    wanted: dict[str, Any] = COMMON | (OF_INPUTS if "base_input" in fields else {"test": str})
    for name, kind in wanted.items():
        if not isinstance(fields.get(name), kind):
            got = (
                f"of type {type(fields[name]).__name__}"
                if name in fields
                else f"missing; there are {', '.join(sorted(fields))}"
            )
            raise DataError(
                f"{where}: {name} is {got}. Wanted HumanEval's layout (task_id, prompt, entry_point, canonical_solution, test), or evalplus's "
                "(base_input, plus_input, atol in place of test)"
            )
    if problem.test is None:
        _check_inputs(where, problem, [*fields["base_input"], *fields["plus_input"]])
    elif "def check(" not in problem.test:
        raise DataError(f"{where}: test does not define check. Wanted `def check(candidate)`, as HumanEval has it")


def _check_inputs(where: str, problem: Problem, given: list[Any]) -> None:
    for arguments in given:
        if not isinstance(arguments, list):
            raise DataError(
                f"{where}: an input is of type {type(arguments).__name__}. Wanted a list of arguments for each call"
            )
    try:
        _ = problem.inputs
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: the inputs of {problem.problem_id} are not laid out as MBPP+'s: {error}. Take evalplus's file, or another task_id"
        ) from error


def _tuples(depth: int) -> Callable[[Any], Any]:
    """A converter to a tuple; to a list of tuples with depth 1."""

    def convert(value: Any) -> Any:
        return tuple(value) if depth == 0 else [_tuples(depth - 1)(item) for item in value]

    return convert


def _deep(value: Any) -> Any:
    return tuple(map(_deep, value)) if isinstance(value, list) else value


def _two_deep(value: Any) -> Any:
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _sets(value: Any) -> Any:
    return [set(item) if item else {} for item in value]  # an empty one is a dictionary, as evalplus has it


def _values(value: Any) -> Any:
    return {key: tuple(item) for key, item in value.items()}


def _each(convert: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda arguments: [convert(argument) for argument in arguments]


def _at(place: int, convert: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda arguments: [convert(argument) if n == place else argument for n, argument in enumerate(arguments)]


_CONVERSIONS: list[tuple[Callable[[list[Any]], list[Any]], tuple[int, ...]]] = [
    (_each(_tuples(0)), (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809)),
    (_each(_tuples(1)), (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    (_at(0, _tuples(1)), (75, 413, 444, 753)),
    (_at(0, _tuples(0)), (250, 307, 405, 446, 617, 720, 763, 808)),
    (_at(1, _tuples(0)), (106, 750)),
    (_each(_two_deep), (259, 278, 401, 445)),
    (_each(_deep), (580, 615, 791)),
    (_at(0, _sets), (115,)),
    (_at(0, _values), (722,)),
    (lambda arguments: [float(arguments[0]), complex(arguments[1])], (124,)),
    (_each(complex), (252,)),
]  # fmt: skip
CONVERSIONS = {f"Mbpp/{number}": convert for convert, numbers in _CONVERSIONS for number in numbers}

"""Inside: holds a problem, and says whether the code in the solver's process solves it. The one process that is believed.

A problem of HumanEval's layout is its own `check(candidate)`, run here with a candidate that asks the solver. One of evalplus's
layout is a list of inputs: the canonical solution, run here, gives what is expected of each, and how long it may take.
"""

from __future__ import annotations

import copy
import reprlib
import time
from collections.abc import Mapping
from typing import Any

from .comparing import equal
from .plain import Gone, Pipe, TooLate, pack, packed, unpack

# CPU seconds, as machines are shared. The solver's own timer ends it; whoever switches that off, or sleeps, has WALL times as many seconds.
START_S = 6.0  # that the code may take to be run
CALL_S, TIMES_CANONICAL = 4.0, 4.0  # a call may take the longer of both
WALL = 5.0
TOTAL_S = 180.0  # seconds of all calls of a problem, beside WALL * TIMES_CANONICAL of the canonical solution's
REASONS = {"MemoryError": "memory", "SyntaxError": "syntax", "IndentationError": "syntax", "TabError": "syntax"}


class Failed(BaseException):
    """No `except Exception` of a problem's test may catch it."""

    def __init__(self, reason: str, evidence: str = "") -> None:
        super().__init__(reason, evidence)
        self.reason, self.evidence = reason, evidence


class Broken(Exception):
    """The problem's own code fails."""


class Candidate:
    """The function in the solver's process."""

    def __init__(self, solver: Pipe) -> None:
        self.solver, self.seconds, self.allowed = solver, 0.0, TOTAL_S

    def load(self, code: str, entry_point: str) -> None:
        self._ask({"code": code, "entry_point": entry_point, "cpu_s": START_S}, WALL * START_S)

    def __call__(self, *arguments: Any) -> Any:
        return self.call(arguments, CALL_S)

    def call(self, arguments: Any, cpu_s: float) -> Any:
        question = {"call": pack(list(arguments)), "cpu_s": cpu_s}
        answer = self._ask(question, min(WALL * cpu_s, self.allowed - self.seconds))
        try:
            return unpack(answer)
        except (ValueError, MemoryError) as error:
            raise Failed("error", f"no plain data: {error}") from error

    def _ask(self, question: Any, seconds: float) -> Any:
        started = time.monotonic()
        try:
            self.solver.send(question, seconds)
            answer = self.solver.receive(seconds)
        except TooLate:
            raise Failed("time", f"no answer in {seconds:.0f} s") from None
        except (Gone, MemoryError):
            raise Failed("died", "its process ended") from None
        finally:
            self.seconds += time.monotonic() - started
        if isinstance(answer, dict) and answer.keys() == {"value"}:
            return answer["value"]
        if isinstance(answer, dict) and answer.keys() == {"raised", "said"}:
            name = str(answer["raised"])[:100]
            raise Failed(REASONS.get(name, "error"), f"{name}: {answer['said']}"[:300])
        raise Failed("error", "no answer of the solver's")


def judge(problem: Mapping[str, Any], code: str, solver: Pipe) -> dict[str, Any]:
    """{passed, reason, evidence, seconds}; or {broken}, where the problem's own code fails."""
    candidate, reason, evidence = Candidate(solver), "", ""
    try:
        reference = _Reference(problem)
        candidate.load(code, problem["entry_point"])
        reference.check(candidate)
    except Broken as broken:
        return {"broken": str(broken)}
    except Failed as failed:
        reason, evidence = failed.reason, failed.evidence
    return {"passed": not reason, "reason": reason, "evidence": evidence, "seconds": round(candidate.seconds, 3)}


class _Reference:
    """The problem's own code. Broken where it fails."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem, self.names = problem, dict[str, Any]()
        self._run(problem["prompt"] + problem["canonical_solution"])
        if problem["test"] is not None:
            self._run(problem["test"])
        wanted = [problem["entry_point"], *(["check"] if problem["test"] is not None else [])]
        if missing := [name for name in wanted if not callable(self.names.get(name))]:
            raise Broken(f"it does not define {' and '.join(missing)}")
        self.solution = self.names[problem["entry_point"]]

    def _run(self, code: str) -> None:
        try:  # code of the file that the user evaluates with
            exec(compile(code, "problem", "exec", dont_inherit=True), self.names)
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}") from error

    def check(self, candidate: Candidate) -> None:
        """Failed unless the candidate passes."""
        if self.problem["test"] is not None:
            return self._by_test(candidate)
        inputs = unpack(self.problem["inputs"])
        for n, arguments in enumerate(inputs, 1):
            expected, seconds = self._expected(arguments)
            candidate.allowed += WALL * TIMES_CANONICAL * seconds
            got = candidate.call(arguments, max(CALL_S, TIMES_CANONICAL * seconds))
            if not equal(self.problem["rule"], arguments, got, expected, self.problem["atol"]):
                said = SHORT.repr(arguments), SHORT.repr(got), SHORT.repr(expected)
                raise Failed("wrong", "input {} of {}: {}: got {}, wanted {}".format(n, len(inputs), *said))
        return None

    def _by_test(self, candidate: Candidate) -> None:
        try:
            self.names["check"](candidate)
        except AssertionError as error:
            raise Failed("wrong", str(error)[:300]) from error
        except Exception as error:  # of a test that meets what it did not expect
            raise Failed("error", f"in the test: {type(error).__name__}: {error}"[:300]) from error

    def _expected(self, arguments: Any) -> tuple[Any, float]:
        """And the CPU seconds that it took."""
        started = time.process_time()
        try:  # as an answer comes, and in the same time
            expected = unpack(packed(self.solution(*copy.deepcopy(arguments))))
        except Exception as error:
            raise Broken(f"on {SHORT.repr(arguments)}: {type(error).__name__}: {error}") from error
        return expected, time.process_time() - started


SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 100

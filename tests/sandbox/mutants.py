"""Programs that should solve a problem, and some that should not."""

import ast
import copy
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raypipe.ops.problems import Problem
from raypipe.sandbox.supervisor import Sandbox, find_sandbox

PROJECT = Path(__file__).parents[2]
ALTERED = """

_solved = {name}
def _other(value):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float, complex)):
        return value * 2 + 1
    if isinstance(value, (str, list, tuple)):
        return value + type(value)("?")
    return None
def {name}(*arguments):
    return _other(_solved(*arguments))
"""


def solution(problem: Problem) -> str:
    return problem.prompt + problem.canonical_solution


def empty(problem: Problem) -> str:
    return (
        problem.prompt + "    pass\n"
        if problem.kind == "function"
        else f"def {problem.entry_point}(*arguments):\n    pass\n"
    )


def altered(problem: Problem) -> str:
    """Its answers are always others than the solution's."""
    return solution(problem) + ALTERED.format(name=problem.entry_point)


def mutants(problem: Problem, count: int) -> list[str]:
    """The solution with one place changed; some still solve the problem."""
    tree = ast.parse(solution(problem))
    places = [n for n, node in enumerate(ast.walk(tree)) if _changed(copy.deepcopy(node)) is not None]
    chosen = random.Random(problem.problem_id).sample(places, min(count, len(places)))
    return [ast.unparse(_with_change(tree, place)) for place in chosen]


def _with_change(tree: ast.AST, place: int) -> ast.AST:
    tree = copy.deepcopy(tree)
    _changed(list(ast.walk(tree))[place])
    return tree


def _changed(node: ast.AST) -> ast.AST | None:
    """In place; None for what has no mutation here."""
    if isinstance(node, ast.Compare):
        other = {
            ast.Lt: ast.LtE,
            ast.LtE: ast.Lt,
            ast.Gt: ast.GtE,
            ast.GtE: ast.Gt,
            ast.Eq: ast.NotEq,
            ast.NotEq: ast.Eq,
            ast.In: ast.NotIn,
        }
        if (kind := other.get(type(node.ops[0]))) is None:
            return None
        node.ops[0] = kind()
    elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)):
        node.op = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv}[
            type(node.op)
        ]()
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    else:
        return None
    return node


def ours(problems: list[Problem], programs: list[str], threads: int = 2) -> list:
    """Verdicts of this machine's best sandbox."""
    from raypipe.stages.evaluate import question

    sandbox: Sandbox = find_sandbox()
    with ThreadPoolExecutor(threads) as pool:
        return list(
            pool.map(lambda pair: sandbox.judged(question(pair[0]), pair[1]), zip(problems, programs, strict=True))
        )


def evalplus(problems: list[Problem], programs: list[str], folder: Path) -> list[str]:
    """Verdicts of the evalplus package: pass, fail, timeout."""
    kind = "humaneval" if problems[0].kind == "function" else "mbpp"
    (folder / "problems.jsonl").write_text("".join(f"{problem.record}\n" for problem in dict.fromkeys(problems)))
    lines = "".join(
        json.dumps([problem.problem_id, code]) + "\n" for problem, code in zip(problems, programs, strict=True)
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT / ".venv/evalplus"),
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder),
    }
    command = [sys.executable, str(Path(__file__).parent / "by_evalplus.py"), kind, str(folder / "problems.jsonl")]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)

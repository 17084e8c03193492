"""When an answer equals the expected one: evalplus's rules (0.3.1, `eval/__init__.py` and `_special_oracle.py`), on plain data.

An answer is right if it is `==` the expected one, or, where a problem has a tolerance or a number with a fraction is expected, if it has
the same type and each number lies within the tolerance. Some problems of MBPP have more than one right answer; RULES has theirs.

Evalplus differs in this: once a problem expected a float, it compares all that follow with tolerance too, integers by 1e-7 of their
size; numbers of numpy are numbers here, there of another type; and with a tolerance lists must have one length at every depth, where
there numpy broadcasts them, so that [[]] is as good as [4.2]. Of HumanEval/32 it fails every answer, as its rule for that problem
forgets to count the inputs that pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

RELATIVE = 1e-7  # tolerance relative to the expected number
FLOATS = 1e-6  # absolute, where floats are expected and none is given


def equal(rule: str, arguments: Sequence[Any], answer: Any, expected: Any, atol: float) -> bool:
    """`rule`: a key of RULES, or nothing. `atol`: absolute tolerance, 0 for none. What cannot be compared is not equal."""
    try:
        if rule:
            return RULES[rule](arguments, answer, expected, atol)
        return _equal(answer, expected, atol)
    except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):  # no length, no order, no hash
        return False


def _equal(answer: Any, expected: Any, atol: float) -> bool:
    if bool(answer == expected):
        return True
    atol = atol or (FLOATS if _are_floats(expected) else 0)
    return atol > 0 and type(answer) is type(expected) and _close(answer, expected, atol)


def _are_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(answer: Any, expected: Any, atol: float) -> bool:
    if isinstance(expected, (list, tuple)):
        return len(answer) == len(expected) and all(_close(a, e, atol) for a, e in zip(answer, expected, strict=True))
    return bool(answer == expected) or bool(abs(answer - expected) <= atol + RELATIVE * abs(expected) < math.inf)


def _as_sets(arguments: Any, answer: Any, expected: Any, atol: float) -> bool:
    return set(answer) == set(expected) or _equal(answer, expected, atol)


def _is_found(arguments: Any, answer: Any, expected: Any, atol: float) -> bool:
    """Of a search whose match object is no plain data: only whether there is one is compared."""
    found = answer if isinstance(answer, bool) else answer is not None
    return found == (expected if isinstance(expected, bool) else expected is not None)


def _is_root(arguments: Any, answer: Any, expected: Any, atol: float) -> bool:
    return bool(abs(sum(factor * math.pow(answer, n) for n, factor in enumerate(arguments[0]))) <= atol)


def _surface(arguments: Any, answer: Any, expected: Any, atol: float) -> bool:
    """Of a square pyramid; its height may be that of a face, as expected, or that above the base."""
    base, height = arguments
    slant = math.sqrt((base / 2) ** 2 + height**2)
    return _equal(answer, expected, atol) or abs(answer - round(base**2 + 2 * base * slant)) <= atol


def _digit_distances(arguments: Any, answer: Any, expected: Any, atol: float) -> bool:
    """Summed digit by digit, the shorter number filled up with zeros; or as expected."""
    width = max(len(str(number)) for number in arguments)
    digits = [map(int, str(number).zfill(width)) for number in arguments]
    return _equal(answer, expected, atol) or answer == sum(abs(a - b) for a, b in zip(*digits, strict=True))


def _anything(arguments: Any, answer: Any, expected: Any, atol: float) -> bool:
    return True


def _or_nothing(arguments: Any, answer: Any, expected: Any, atol: float) -> bool:
    return _equal(answer, expected, atol) or answer == 0


RULES: dict[str, Callable[[Any, Any, Any, float], bool]] = {  # by the name of the function
    **dict.fromkeys(("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"), _as_sets),
    **dict.fromkeys(("larg_nnum", "intersection_array", "find_dissimilar", "Diff"), _as_sets),
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), _is_found),
    "find_zero": _is_root,
    "surface_Area": _surface,
    "digit_distance_nums": _digit_distances,
    "are_equivalent": _anything,  # the problem does not say when two numbers are
    "sum_div": _or_nothing,
}

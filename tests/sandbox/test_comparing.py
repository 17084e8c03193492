import copy
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import raypipe.sandbox
from raypipe.sandbox.comparing import RULES, equal
from raypipe.sandbox.plain import Opaque

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(),
    st.binary(),
    st.fractions(),
    st.decimals(allow_nan=False),
    st.builds(range, st.integers(-9, 9)),
    st.frozensets(st.integers()),
    st.sets(st.text()),
)
PLAIN = st.recursive(
    ATOMS,
    lambda inner: st.one_of(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.text(), inner)),
    max_leaves=10,
)
ATOL = st.sampled_from([0.0, 1e-6, 1e-4])
ACCEPT_OBJECTS = {"are_equivalent", "check_str", "text_match_three", "text_starta_endb"}


@given(PLAIN, ATOL)
def test_data_equals_its_copy(value, atol):
    assert equal("", [], copy.deepcopy(value), value, atol)


@given(PLAIN, st.lists(ATOMS, max_size=3), ATOL, st.sampled_from(["", *sorted(RULES.keys() - ACCEPT_OBJECTS)]))
def test_what_is_no_plain_data_equals_nothing(value, around, atol, rule):
    """An answer that is an object says nothing; if it could pass, an object with an __eq__ of its own would."""
    assert not equal(rule, [3, 4], Opaque("x.Y"), value, atol)
    assert not equal(rule, [3, 4], [*around, Opaque("x.Y")], [*around, value], atol)


@given(st.lists(st.integers(-1000, 1000), min_size=1), st.data(), st.sampled_from([list, tuple]), ATOL)
def test_a_changed_element_is_unequal(values, data, kind, atol):
    n = data.draw(st.integers(0, len(values) - 1))
    changed = [*values[:n], values[n] + data.draw(st.sampled_from([-1, 1])), *values[n + 1 :]]
    assert not equal("", [], kind(changed), kind(values), atol)
    assert not equal("", [], kind(values[:n]), kind(values), atol)
    assert not equal("", [], [kind(changed)], [kind(values)], atol)


@given(st.floats(-1e9, 1e9), ATOL, st.sampled_from([-1, 1]), st.lists(st.floats(-1e9, 1e9), max_size=3))
def test_floats_are_equal_within_the_tolerance(expected, atol, sign, others):
    """1e-6 where the problem has none, and 1e-7 of the expected number; alone and in lists and tuples of floats."""
    allowed = (atol or 1e-6) + 1e-7 * abs(expected)
    for part, wanted in ((0.5, True), (2, False)):
        answer = expected + sign * part * allowed
        assume(abs(answer - expected) > 0)
        assert equal("", [], answer, expected, atol) is wanted
        assert equal("", [], [*others, answer], [*others, expected], atol) is wanted
        assert equal("", [], (answer, *others), (expected, *others), atol) is wanted


@pytest.mark.parametrize(
    ("answer", "expected", "atol", "wanted"),
    [
        (3, 3.0, 0, True),  # == decides first, of any types
        (True, 1, 0, True),
        (0, False, 0, True),
        ((1, 2), [1, 2], 0, False),
        ({1, 2}, [1, 2], 0, False),
        ("1", 1, 0, False),
        (None, 0, 0, False),
        ({"a": 1.0}, {"a": 1.0}, 0, True),
        ({"a": 1.0000001}, {"a": 1.0}, 1e-4, False),  # within a dict or set no tolerance
        ({1.0000001}, {1.0}, 1e-4, False),
        (3, 3.0000001, 0, False),  # within a tolerance only of the same type
        ([1.0000001], (1.0,), 0, False),
        ([1, 2.0000001], [1, 2.0], 0, False),  # not all are floats, and the problem has no tolerance
        ([1, 2.0000001], [1, 2.0], 1e-4, True),
        ([(0.5, 1.00001)], [(0.5, 1.0)], 1e-4, True),
        ([[]], [4.2], 0, False),
        ([[1.0, 1.0]], [[1.0]], 1e-4, False),
        (1 + 1e-5j, 1 + 0j, 1e-4, True),
        (1 + 1e-3j, 1 + 0j, 1e-4, False),
        (float("inf"), float("inf"), 0, True),
        ([float("inf"), 1.0000001], [float("inf"), 1.0], 0, True),
        (1e300, float("inf"), 0, False),
        (float("-inf"), float("inf"), 0, False),
        (float("nan"), float("nan"), 1e-4, False),
        (float("nan"), 1.0, 1e-4, False),
        (10**400, 1e300, 1e-4, False),
        (Decimal("0.5"), Fraction(1, 2), 0, True),
        (Fraction(1, 2), 0.5, 0, True),
    ],
)
def test_by_value(answer, expected, atol, wanted):
    assert equal("", [], answer, expected, atol) is wanted


SETS = [
    "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum", "intersection_array",
    "find_dissimilar", "Diff",
]  # fmt: skip
FOUND = ["check_str", "text_match_three", "text_starta_endb"]


@pytest.mark.parametrize("rule", SETS)
def test_problems_whose_answers_have_no_order(rule):
    """What the canonical solution gives depends on how its own set happens to be ordered."""
    assert equal(rule, [], [2, 1, 1], (1, 2), 0) and equal(rule, [], {1, 2}, [2, 1], 0)
    assert equal(rule, [], [2.0, 1.0000001], [2.0, 1.0], 0)  # in the expected order with tolerance, as evalplus has it
    assert not equal(rule, [], [1], [1, 2], 0) and not equal(rule, [], [1, 2, 3], [1, 2], 0)
    assert not equal(rule, [], None, [1], 0) and not equal(rule, [], [[1]], [1], 0)


@pytest.mark.parametrize("rule", FOUND)
def test_problems_that_ask_whether_something_is_found(rule):
    """The canonical solutions give a match object, which is no plain data, or None."""
    match = Opaque("re.Match")
    for found in (True, match, "annie", 0):
        assert equal(rule, ["annie"], found, match, 0) and not equal(rule, ["annie"], found, None, 0)
    for missing in (False, None):
        assert equal(rule, ["dawood"], missing, None, 0) and not equal(rule, ["dawood"], missing, match, 0)


@pytest.mark.parametrize(
    ("rule", "arguments", "answer", "expected", "atol", "wanted"),
    [
        ("find_zero", [[-6, 11, -6, 1]], 3.0, 1.0, 1e-4, True),  # of (x-1)(x-2)(x-3) any root
        ("find_zero", [[-6, 11, -6, 1]], 3.00001, 1.0, 1e-4, True),
        ("find_zero", [[-6, 11, -6, 1]], 3.001, 1.0, 1e-4, False),
        ("find_zero", [[-6, 11, -6, 1]], None, 1.0, 1e-4, False),
        ("find_zero", [[-6, 11, -6, 1]], float("nan"), 1.0, 1e-4, False),
        ("surface_Area", [3, 4], 33, 33, 0, True),  # the height of a face: 9 + 2 * 3 * 4
        ("surface_Area", [3, 4], 34, 33, 0, False),
        ("surface_Area", [6, 4], 96, 84, 0, True),  # the pyramid's own: 36 + 2 * 6 * 5
        ("surface_Area", [6, 4], 84, 84, 0, True),
        ("surface_Area", [6, 4], 90, 84, 0, False),
        ("surface_Area", [6, 4], "96", 84, 0, False),
        ("digit_distance_nums", [123, 6], 5, 5, 0, True),  # 1-6 alone
        ("digit_distance_nums", [123, 6], 6, 5, 0, True),  # 1-0, 2-0, 3-6
        ("digit_distance_nums", [123, 6], 7, 5, 0, False),
        ("digit_distance_nums", [-1, 6], 5, 5, 0, True),
        ("digit_distance_nums", [-1, 6], 6, 5, 0, False),
        ("are_equivalent", [36, 57], "anything", False, 0, True),
        ("sum_div", [8], 7, 7, 0, True),
        ("sum_div", [8], 0, 7, 0, True),
        ("sum_div", [8], 15, 7, 0, False),
    ],
)
def test_problems_with_more_than_one_right_answer(rule, arguments, answer, expected, atol, wanted):
    assert equal(rule, arguments, answer, expected, atol) is wanted


def test_every_rule_is_tried_here():
    others = {"find_zero", "surface_Area", "digit_distance_nums", "are_equivalent", "sum_div"}
    assert {*SETS, *FOUND, *others} == RULES.keys()


def test_it_needs_the_standard_library_alone():
    """It runs where nothing else is to be seen."""
    folder = Path(raypipe.sandbox.__file__).parents[1]
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import sandbox.comparing; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, cwd="/")

"""What text alone tells of a response."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.style import STYLES, distinct_ngrams, languages, shares, styles

PYTHON = "def f(x):\n    return [y * y for y in range(x) if y % 2]\n\n\nprint(f(10))\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PYTHON, set()),
        ("class Node:\n    pass\n", {"classes"}),
        ("public final class Node {\n}", {"classes"}),
        ("In class we learn that class is a word; the first-class kind", set()),
        ("def f(x):\n    if x < 0:\n        raise ValueError(x)\n", {"raises"}),
        ('throw new Error("no");', {"raises"}),
        ("They throw. You raise, I call.", set()),
        ('def f():\n    """Nothing."""\n', {"docstrings"}),
        ("/** Adds. */\nint add(int a, int b);", {"docstrings", "comments"}),
        ("x = 1  # one", {"comments"}),
        ("#include <stdio.h>\nint x = 7; // seven", {"comments"}),
        ("see https://example.org/#top", set()),
        ("SELECT 1; -- one", {"comments"}),
        ("def test_f():\n    assert f(1) == 1\n", {"tests"}),
        ("it('adds', () => {});", {"tests"}),
        ("I assert that it works.", set()),
    ],
)
def test_constructs_by_hand(text, found):
    """A pattern that sees a class in prose would tell a user that selection changed style where it did not."""
    (row,) = styles(pa.chunked_array([[text]])).to_pylist()
    assert {name for name, there in row.items() if there} == found


@given(st.lists(st.text(max_size=40), max_size=5))
def test_every_text_has_an_answer(texts):
    """A null, or a row too few, would shift every figure after it."""
    table = styles(pa.chunked_array([pa.array(texts, pa.string())]))
    assert table.column_names == list(STYLES) and len(table) == len(texts)
    assert all(column.null_count == 0 for column in table.columns)


def test_languages_from_fences_and_without():
    """A fence's tag is what the author says; it is believed, and other names for a language are one."""
    texts = [
        f"Sure:\n```py\n{PYTHON}```\nDone.", f"```\n{PYTHON}```", PYTHON, "```C++\nint x;\n```",
        "SELECT country, SUM(sales) FROM orders GROUP BY country;", "A neural network is a system made up of connected layers of units.",
    ]  # fmt: skip
    assert languages(texts) == ["python", "python", "python", "cpp", "sql", "txt"]
    assert shares(["b", "a", "b", "c"]) == {"b": 0.5, "a": 0.25, "c": 0.25} and shares([]) == {}


def test_distinct_ngrams_by_hand():
    """a b a b c: pairs ab ba ab bc, three of four; the other group has two pairs only, so of both the first two count."""
    assert distinct_ngrams({"x": ["a b a b c"]}, 2) == {"x": 0.75}
    assert distinct_ngrams({"x": ["a b a b c"], "y": ["z z z"]}, 2) == {"x": 1.0, "y": 0.5}
    assert distinct_ngrams({"x": ["f(x)"], "y": [""]}, 2) == {"x": 1.0, "y": None}
    assert distinct_ngrams({"x": ["f(x)"]}, 1) == {"x": 1.0}


@given(st.lists(st.text("ab ", max_size=12), max_size=6), st.integers(1, 3))
def test_distinct_ngrams_do_not_cross_texts(texts, n):
    """Against the plain definition: an n-gram over two samples is of neither."""
    grams = [tuple(t.split()[i : i + n]) for t in texts for i in range(len(t.split()) - n + 1)]
    wanted = len(set(grams)) / len(grams) if grams else None
    assert distinct_ngrams({"x": texts}, n) == {"x": wanted}

"""What of an evaluation set is in the samples, and which words say so."""

import gzip
import json

import pyarrow as pa
import pytest

from raypipe.errors import DataError
from raypipe.ops.leaks import find_leaks, grams_of
from tests.ops.test_minhash import words_of

SET = b"""{"task_id": "A/0", "prompt": "one two three four", "test": "five six seven eight"}

{"task_id": "A/1", "text": "two three four five", "code": "x"}
"""


def leaks(texts, words=3, **sets):
    return find_leaks(pa.array(texts, pa.string()), grams_of(sets or {"a": SET}, words))


def test_the_first_words_that_are_in_a_set():
    """Of problems that share the words the first one is named; tests and short texts name nobody."""
    assert leaks(["ONE, two\nthree!", "zero two three four", "three four five", "five six seven", "two three", "+"]) == [
        "A/0: ONE, two three", "A/0: two three four", "A/1: three four five", None, None, None
    ]  # fmt: skip


def test_a_text_ends_where_it_ends():
    """Two texts side by side are not one: a leak that nobody wrote."""
    assert leaks(["one two", "three four", "two three", "four"]) == [None] * 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "a: line 1: not JSON"),
        (b"\n[1]", "a: line 2: list, wanted an object"),
        (b"\xff", "a: not readable as JSONL"),
        (gzip.compress(SET)[:-9], "a: not readable as JSONL"),
        (b'{"prompt": "one two"}', "no text of a has 3 words. Lower clean.ngram_words"),
        (b'{"prompt": "1 2 3 4"}', "no text of a has 3 words"),
        (b"", "no text of a has 3 words"),
    ],
)
def test_what_is_no_set(data, said):
    """A set in which nothing can be looked for would pass every sample."""
    with pytest.raises(DataError, match=said):
        grams_of({"a": data}, 3)


def test_every_problem_finds_itself(shared):
    """Real sets: each prompt and each solution that is long enough is a leak of its own problem, or of an earlier one with the same words."""
    for name in ("HumanEvalPlus", "MbppPlus"):
        data = (shared / "data" / "eval" / f"{name}.jsonl.gz").read_bytes()
        rows = [json.loads(line) for line in gzip.decompress(data).splitlines()]
        found = leaks([row["prompt"] for row in rows], 13, **{name: data})
        named = sum(
            said is not None and said.startswith(f"{row['task_id']}: ") for row, said in zip(rows, found, strict=True)
        )
        long = [len(words_of(row["prompt"])) >= 13 for row in rows]
        assert [said is not None for said in found] == long and named > 0.95 * sum(long) > 300 * (name == "MbppPlus")

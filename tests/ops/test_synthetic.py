"""The synthetic lake is the yardstick of every count in the other tests, so its own numbers are counted here."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.ops import synthetic, synthetic_tasks
from raypipe.ops.synthetic import CHARS_PER_TOKEN, CHUNK_SAMPLES, chunk_lines, count_rows, num_chunks

NAME = re.compile(r"\b[a-z]+(?:_[a-z]+){3}\b|\b[A-Za-z][a-z]+(?:[A-Z][a-z]+){3}\b")
HOLE = re.compile(rf"(?<![A-Z])(?:{'|'.join(synthetic_tasks.HOLES)})(?![A-Z])|%\(")
few_examples = settings(max_examples=12)
seeds = st.integers(0, 2**32)


def lake(num_samples: int, seed: int) -> list[bytes]:
    chunks = range(num_chunks(num_samples))
    return [line for chunk in chunks for line in chunk_lines(chunk, seed=seed, num_samples=num_samples)[0]]


def malformed_kind(line: bytes) -> str | None:
    """Decided from the row alone, by rules written apart from the generator's."""
    try:
        row: Any = json.loads(line)
    except ValueError:
        return "truncated_json" if line.startswith(b"{") else "not_json"
    if isinstance(row, list):
        return "json_array"
    if not isinstance(row["instruction"], str):
        return "number_instruction"
    kinds: dict[Any, str] = {"missing": "missing_response", None: "null_response", "": "empty_response"}
    response = row.get("response", "missing")
    return "blank_response" if response and not response.strip() else kinds.get(response)


@cache
def rows() -> list[dict[str, str]]:
    """The well-formed rows of a lake of 3,000 samples, exact duplicates among them."""
    return [json.loads(line) for line in lake(3000, seed=7) if malformed_kind(line) is None]


@cache
def samples() -> list[dict[str, str]]:
    return list({(row["instruction"], row["response"]): row for row in rows()}.values())


def name_of(instruction: str) -> str:
    [name] = NAME.findall(instruction)
    return str(name)


@few_examples
@given(seed=seeds, chunk=st.integers(0, 9_999))
def test_a_chunk_depends_on_its_arguments_alone(seed: int, chunk: int) -> None:
    """Otherwise two tasks that write the same file after a kill write different lakes, and no resume test means much."""
    again = chunk_lines(chunk, seed=seed, num_samples=10_000_000)
    assert chunk_lines(chunk, seed=seed, num_samples=10_000_000) == again
    assert chunk_lines(chunk, seed=seed + 1, num_samples=10_000_000)[0] != again[0]


@few_examples
@given(seed=seeds, small=st.integers(CHUNK_SAMPLES, 5000), growth=st.integers(0, 10_000_000))
def test_growth_keeps_full_chunks(seed: int, small: int, growth: int) -> None:
    """Otherwise a lake made larger rewrites its old files, and nothing of an earlier run can be reused."""
    chunk = small // CHUNK_SAMPLES - 1
    old, new = (chunk_lines(chunk, seed=seed, num_samples=size) for size in (small, small + growth))
    assert old == new


@few_examples
@given(seed=seeds, num_samples=st.integers(1, 3500))
def test_totals_are_the_sums_of_chunks_and_what_counting_finds(seed: int, num_samples: int) -> None:
    """Otherwise the expected counts of ingest and clean are wrong, and a pipeline that loses rows may pass."""
    total: Counter[str] = Counter()
    for chunk in range(num_chunks(num_samples)):
        total.update(chunk_lines(chunk, seed=seed, num_samples=num_samples)[1])
    lines = lake(num_samples, seed)
    found = Counter(malformed_kind(line) for line in lines)
    num_good, expected = found.pop(None), count_rows(num_samples)
    assert {kind: total[kind] for kind in expected} == expected
    assert len(lines) == expected["rows"] == num_samples + expected["exact_duplicates"] + expected["malformed"]
    assert num_good == num_samples + expected["exact_duplicates"]
    assert {f"malformed_{kind}": count for kind, count in found.items()} == {
        kind: count for kind, count in expected.items() if kind.startswith("malformed_") and count
    }


def test_shares_worked_by_hand() -> None:
    """1,000 samples: 3 % and 4 % among them, 2 % and 0.5 % on top; 100: at least one of each; 1: nothing but itself."""
    thousand, hundred, one = (count_rows(size) for size in (1000, 100, 1))
    kinds = ("rows", "near_duplicates", "mismatched", "exact_duplicates", "malformed")
    assert [thousand[kind] for kind in kinds] == [1025, 30, 40, 20, 5]
    assert [hundred[kind] for kind in kinds] == [103, 3, 4, 2, 1]
    assert [one[kind] for kind in kinds] == [1, 0, 0, 0, 0]
    assert count_rows(10_000_000)["rows"] == 10_250_000


def test_samples_are_unique_and_exact_duplicates_come_later() -> None:
    """Otherwise exact deduplication removes more than the known number and the count of duplicates is a guess."""
    first: dict[tuple[str, str], int] = {}
    for place, row in enumerate(rows()):
        first.setdefault((row["instruction"], row["response"]), place)
    assert len(first) == 3000
    assert len(rows()) == 3060
    assert max(Counter((row["instruction"], row["response"]) for row in rows()).values()) == 2


def test_names_are_a_bijection_of_ten_million_indices() -> None:
    """Otherwise samples of a large lake collide, where no test can afford to look."""
    assert synthetic.NUM_NAMES >= 10_000_000
    assert math.gcd(synthetic._STRIDE, synthetic.NUM_NAMES) == 1
    for choices in synthetic_tasks.NAME_WORDS:
        assert len(set(choices)) == len(choices)
        assert all(re.fullmatch("[a-z]+", word) for word in choices)


def test_far_chunks_share_no_name() -> None:
    """Otherwise only neighbours are unique, and a lake of 10 M samples has fewer."""
    names = Counter(
        name_of(json.loads(line)["instruction"]).replace("_", "").lower()
        for chunk in (0, 4_999, 9_999)
        for line in set(chunk_lines(chunk, seed=3, num_samples=10_000_000)[0])
        if malformed_kind(line) is None
    )
    assert len(names) == 3 * (CHUNK_SAMPLES - count_rows(CHUNK_SAMPLES)["near_duplicates"])


def test_near_duplicates_keep_the_name_and_almost_all_words() -> None:
    """Otherwise near-duplicate removal has nothing to find, or finds what no threshold could."""
    by_name: dict[str, list[set[str]]] = {}
    for row in samples():
        words = set(f"{row['instruction']} {row['response']}".split())
        by_name.setdefault(name_of(row["instruction"]), []).append(words)
    pairs = [group for group in by_name.values() if len(group) > 1]
    assert len(pairs) == count_rows(3000)["near_duplicates"]
    assert all(len(group) == 2 for group in pairs)
    similarities = [len(a & b) / len(a | b) for a, b in pairs]
    assert min(similarities) > 0.5
    assert np.median(similarities) > 0.9


def test_responses_answer_their_instruction_but_for_the_known_number() -> None:
    """Otherwise the instruction does not help to predict the response, and IFD says nothing, or is never 1 or more."""
    unrelated = [row for row in samples() if name_of(row["instruction"]) not in row["response"]]
    assert len(unrelated) == count_rows(3000)["mismatched"]


def test_python_responses_parse() -> None:
    """Otherwise the model learns broken code, and evaluation of the demo fails for no fault of its own."""
    python = [row["response"] for row in samples() if row["language"] == "python"]
    assert len(python) > 1500
    for response in python:
        ast.parse(response)


def test_no_hole_stays_open() -> None:
    """Otherwise a misspelt template puts NAME or %(NAME)s into the training text."""
    for row in samples():
        assert not HOLE.search(row["instruction"] + "\n" + row["response"]), row


def test_response_lengths_have_a_long_tail() -> None:
    """Otherwise packing, batching by length and the bias of selection towards long answers have nothing to work on."""
    tokens = np.array([len(row["response"]) for row in samples()]) / CHARS_PER_TOKEN
    assert 105 < tokens.mean() < 145
    assert 70 < np.median(tokens) < 95
    assert np.quantile(tokens, 0.99) > 450
    assert tokens.max() < 1600


def test_families_are_many_and_skewed() -> None:
    """Otherwise clusters are all of one size, and per-cluster quotas are never tested by a small one."""
    counts = Counter(row["family"] for row in samples())
    assert len(counts) >= 40
    assert counts.most_common(1)[0][1] > 10 * min(counts.values())
    assert len({row["language"] for row in samples()}) >= 10


@pytest.mark.parametrize(("chunk", "num_samples"), [(-1, 1000), (1, 1000), (0, 0), (0, 10**9)])
def test_what_cannot_be_made_is_refused(chunk: int, num_samples: int) -> None:
    """Otherwise a script that is off by one writes empty files, or a lake with duplicates nobody counted."""
    with pytest.raises(ValueError, match=r"outside a lake|only .* names"):
        chunk_lines(chunk, seed=0, num_samples=num_samples)

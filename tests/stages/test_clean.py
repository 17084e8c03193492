import tempfile
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.ops.leaks import grams_of
from raypipe.ops.text import sample_id
from raypipe.part import Table, commit_part, figures_of
from raypipe.sources import Clean
from raypipe.stages import clean
from raypipe.stages.clean import Bucket, Look, Mark, SortIds, find_duplicates, find_near
from raypipe.store import Folder


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=5), st.sampled_from([1, 2, 5]))
def test_later_rows_of_an_id_name_its_first(parts, num_buckets):
    """One missed duplicate is trained on twice; one first row marked loses a sample. Any cut into parts and buckets agrees."""
    ids = [pa.table({"sample_id": pa.array([sample_id(str(n), "") for n in part], pa.string())}) for part in parts]
    with tempfile.TemporaryDirectory() as root:
        names = [f"part-{place:07d}" for place in range(len(parts))]
        for name, table in zip(names, ids, strict=True):
            commit_part(Folder(root), name, SortIds()([table]), counts={})
        edges = [2**64 * n // num_buckets for n in range(num_buckets + 1)]
        buckets = [Bucket([0], low, high) for low, high in pairwise(edges)]
        found = {
            tuple(row)
            for bucket in buckets
            for row in find_duplicates(bucket, Table(Folder(root), tuple(names))).T.tolist()
        }
    seen, wanted = {}, set()
    for place, part in enumerate(parts):
        for row, value in enumerate(part):
            if value in seen:
                wanted.add((place, row, *seen[value]))
            else:
                seen[value] = (place, row)
    assert found == wanted


def test_mark_has_the_same_columns_without_rows():
    """A part whose rows were all rejected must read together with the others."""
    empty = [
        pa.table({"sample_id": pa.array([], pa.string())}),
        pa.table({"row": pa.array([], pa.int32()), "first": pa.array([], pa.string())}),
    ]
    full = [pa.table({"sample_id": ["a", "b"]}), pa.table({"row": pa.array([1], pa.int32()), "first": ["part-0 0"]})]
    mark = Mark(["duplicate"])
    assert mark(empty).schema == mark(full).schema
    assert mark(full).to_pylist() == [
        {"sample_id": "a", "status": "ok", "evidence": None},
        {"sample_id": "b", "status": "duplicate", "evidence": "part-0 0"},
    ]


def test_the_first_status_that_applies():
    """A leak that is also a copy of another row is counted once."""
    ids = pa.table({"sample_id": list("abcd"), "lang": list("wxyz")})
    duplicates = pa.table({"row": pa.array([1], pa.int32()), "first": ["part-0 0"]})
    leaks = pa.table({"leak": [None, "response, HumanEval/3: a b", "instruction, HumanEval/4: c d", None]})
    near = pa.table({"row": pa.array([1, 2, 3], pa.int32()), "first": ["part-0 0"] * 3})
    marked = Mark(["duplicate", "contaminated", "near_duplicate"])([ids, duplicates, leaks, near])
    assert marked.column("status").to_pylist() == ["ok", "duplicate", "contaminated", "near_duplicate"]
    assert marked.column("evidence").to_pylist() == [None, "part-0 0", "instruction, HumanEval/4: c d", "part-0 0"]
    assert marked.column("lang").to_pylist() == list("wxyz")


SENTENCES = st.lists(
    st.sampled_from(["sort a list of numbers", "read the file", "return the sum", "of two words", "print it", "+"]),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(SENTENCES.map(" ".join), max_size=6), min_size=1, max_size=4),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 4]),
)
def test_later_rows_near_to_an_earlier_one(parts, num_ranges, bands_together):
    """Equal words are always near; nothing is near to a later row; any cut into parts and buckets agrees."""
    rule = Clean(near_duplicate_similarity=0.9)
    with tempfile.TemporaryDirectory() as root:
        names = tuple(f"part-{place:07d}" for place in range(len(parts)))
        for name, texts in zip(names, parts, strict=True):
            table = pa.table(
                {"instruction": pa.array(texts, pa.string()), "response": pa.array(["x y z"] * len(texts), pa.string())}
            )
            commit_part(Folder(root), name, Look(rule, None)([table]), counts={})
        bands = range(128 // clean.rows_a_band(0.9))
        edges = [2**64 * n // num_ranges for n in range(num_ranges + 1)]
        buckets = [
            Bucket(bands[n : n + bands_together], low, high)
            for n in range(0, len(bands), bands_together)
            for low, high in pairwise(edges)
        ]
        found = [
            row
            for bucket in buckets
            for row in find_near(bucket, Table(Folder(root), names), similarity=0.9).T.tolist()
        ]
    rows = [(place, row) for place, texts in enumerate(parts) for row in range(len(texts))]
    assert all(tuple(pair[2:]) < tuple(pair[:2]) for pair in found)
    later = {tuple(pair[:2]) for pair in found}
    equal = [
        at for n, at in enumerate(rows) if any(parts[p][r].split() == parts[at[0]][at[1]].split() for p, r in rows[:n])
    ]
    assert later >= set(equal)


def test_leaks_say_where_and_what():
    """A removal that nobody can look at is believed or not."""
    sets = {
        "he": b'{"task_id": "HumanEval/0", "prompt": "Check if two numbers are close", "test": "the sum of all numbers here"}'
    }
    sets["numbers"] = b'{"id": 7, "question": "[1, 2, 3, 4, 5, 6]"}\n'
    look = Look(Clean(decontaminate=("he",), ngram_words=5), grams_of(sets, 5))
    table = pa.table(
        {
            "instruction": ["check IF two,numbers are far", "the sum of all numbers", "x"],
            "response": ["y", "z", "if two numbers are close!"],
        }
    )
    assert look([table]).column("leak").to_pylist() == [
        "instruction, HumanEval/0: check IF two,numbers are", None, "response, HumanEval/0: if two numbers are close"
    ]  # fmt: skip


@pytest.mark.parametrize("rule", ["count", "drop"])
def test_secrets_are_counted_by_kind_and_never_shown(rule):
    """A report that shows the key it warns of has leaked it once more."""
    texts = ["mail a.b@example.org", "mail c.d@example.org", "see 8.8.8.8 or e@example.org", "x"]
    table = pa.table({"instruction": texts, "response": ["y"] * 4})
    looked = Look(Clean(secrets=rule), None)([table])
    marked = Mark(["secret"], drops_secrets=rule == "drop")([pa.table({"sample_id": list("abcd")}), looked])
    assert figures_of(marked) == {"secrets: E-mail address": 3, "secrets: Public IP (ipv4)": 1}
    kinds = ["E-mail address", "E-mail address", "E-mail address, Public IP (ipv4)", None]
    assert marked.column("evidence").to_pylist() == (kinds if rule == "drop" else [None] * 4)
    assert marked.column("status").to_pylist() == (["secret"] * 3 if rule == "drop" else ["ok"] * 3) + ["ok"]
    assert not any(text.split()[1] in str(made.to_pydict()) for text in texts[:3] for made in (looked, marked))

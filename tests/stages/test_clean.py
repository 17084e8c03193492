import tempfile
from itertools import pairwise

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.ops.text import sample_id
from raypipe.part import Table, commit_part
from raypipe.stages.clean import Mark, SortIds, find_duplicates
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
        buckets = list(pairwise(edges))
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
    assert Mark()(empty).schema == Mark()(full).schema
    assert Mark()(full).to_pylist() == [
        {"sample_id": "a", "status": "ok", "evidence": None},
        {"sample_id": "b", "status": "duplicate", "evidence": "part-0 0"},
    ]

"""Rows to look at: parts spread over the lake, and the same rows found again in other tables."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.part import Table, commit_part
from raypipe.sampled import gathered, rows_at, spread
from raypipe.store import Folder


@given(st.integers(1, 400), st.integers(1, 10_000), st.integers(1, 5000))
def test_parts_are_spread_evenly(num_parts, rows_each, most):
    """Neighbours are alike: a sample of the lake's beginning would describe its beginning."""
    parts = [str(n) for n in range(num_parts)]
    chosen = [int(part) for part in spread(parts, num_parts * rows_each, most)]
    assert chosen == sorted(set(chosen)) and 1 <= len(chosen) <= num_parts
    assert len(chosen) == num_parts or len(chosen) * rows_each <= max(most, rows_each)
    gaps = np.diff([-1, *chosen, num_parts])
    assert gaps[1:-1].max(initial=1) - gaps[1:-1].min(initial=num_parts) <= 1
    assert gaps.max() <= 2 * num_parts / len(chosen)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_rows_are_found_again(tmp_path_factory, sizes, random):
    """A text beside another sample's score would mislead whoever reads the report."""
    folder, parts = Folder(str(tmp_path_factory.mktemp("t"))), []
    for number, size in enumerate(sizes):
        parts.append(f"part-{number:07d}.parquet")
        for name in ("a", "b"):
            values = [f"{name} {number} {row}" for row in range(size)]
            commit_part(folder / name, parts[-1], pa.table({name: pa.array(values, pa.string())}), counts={})
    one, other = (Table(folder / name, tuple(parts)) for name in ("a", "b"))
    odd = gathered([one], parts, lambda rows: rows.filter(np.arange(len(rows)) % 2 == 1))
    assert odd["a"].to_pylist() == [f"a {p} {row}" for p, size in enumerate(sizes) for row in range(1, size, 2)]
    order = random.sample(range(len(odd)), len(odd))
    mixed = odd.take(pa.array(order, pa.int64()))
    assert rows_at(other, parts, mixed)["b"].to_pylist() == [f"b{text[1:]}" for text in mixed["a"].to_pylist()]

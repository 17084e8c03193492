"""Semantic duplicates: by all pairs, in any cut into parts and tasks, and out of the selection."""

import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import semantic
from raypipe.config import Select
from raypipe.errors import DataError
from raypipe.ops import near_vectors as vectors
from raypipe.ops.near_vectors import near_vectors
from raypipe.ops.selection import view
from raypipe.pairs import first_each
from raypipe.part import Table, commit_part
from raypipe.semantic import Add, find_repeats, mark_repeats
from raypipe.store import Folder
from tests.ops.test_selection import tables

VECTORS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=12)  # (cluster, direction)
ANGLES = np.array([0.0, 0.2, 0.45, 1.5, 1.55, 3.0])


def by_hand(rows, similarity):
    """(later, first) of all rows, one pair at a time."""
    found = []
    for later, (cluster, direction) in enumerate(rows):
        near = [
            first
            for first in range(later)
            if rows[first][0] == cluster and np.cos(ANGLES[direction] - ANGLES[rows[first][1]]) >= similarity
        ]
        found += [(later, near[0])] if near else []
    return found


def unit(rows):
    angles = ANGLES[[direction for _, direction in rows]]
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@given(VECTORS, st.integers(1, 40))
def test_rows_near_to_an_earlier_one(rows, products):
    """A pair missed at the edge of a block is trained on twice; a first row that is dropped too loses a sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "PRODUCTS", products)
        later, first = near_vectors(unit(rows).reshape(-1, 2), 0.95)
    assert list(zip(later.tolist(), first.tolist(), strict=True)) == by_hand(
        [(0, direction) for _, direction in rows], 0.95
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(VECTORS, min_size=1, max_size=4), st.sampled_from([1, 4, 100]))
def test_within_clusters_over_all_parts(parts, task_rows):
    """Any cut into parts and tasks agrees, and rows without an embedding are in no pair."""
    names = tuple(f"part-{place:07d}" for place in range(len(parts)))
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "TASK_ROWS", task_rows)
        embed, clusters = Table(Folder(f"{root}/embed"), names), Table(Folder(f"{root}/cluster"), names)
        for name, rows in zip(names, parts, strict=True):
            padded = [*unit(rows).astype(np.float16).tolist(), None]
            commit_part(
                embed.folder, name, pa.table({"embedding": pa.array(padded, pa.list_(pa.float16(), 2))}), counts={}
            )
            ids = pa.array([cluster for cluster, _ in rows] + [None], pa.int32())
            commit_part(clusters.folder, name, pa.table({"cluster_id": ids}), counts={})
        sizes = np.bincount([cluster for rows in parts for cluster, _ in rows], minlength=3).tolist()
        found = [
            find_repeats(ids, embed=embed, clusters=clusters, similarity=0.95) for ids in semantic._together(sizes)
        ]
    places = [(place, row) for place, rows in enumerate(parts) for row in range(len(rows))]
    wanted = [
        (*places[later], *places[first]) for later, first in by_hand([row for rows in parts for row in rows], 0.95)
    ]
    assert first_each(np.concatenate(found, axis=1)).T.tolist() == [list(pair) for pair in wanted]


def test_a_cluster_whose_pairs_are_too_many():
    """A run that hangs for days looks like one that works."""
    with pytest.raises(DataError, match=r"a cluster holds 300,000 samples.*Raise cluster.num_clusters"):
        mark_repeats(Table(Folder("x"), ()), Table(Folder("y"), ()), [5, 300_000], 0.9, Folder("z"))


def test_what_repeats_is_never_selected():
    """Before the held-out split, as a held-out sample that is in training too measures nothing; and it counts in no cluster."""
    rows = [(n, "ok", "ok", 0.5, 10, 0, "x", "1") for n in range(6)]
    clean, cluster, score = tables(rows)
    repeats = pa.table({"row": pa.array([1, 4], pa.int32()), "first": ["part-0 0", "part-0 2"]})
    seen = view([clean, Add()([cluster, repeats]), score], Select(held_out_fraction=0.0), seed=0)
    assert seen.left_by().tolist() == [True, False, True, True, False, True]
    assert seen.left_by("no_cluster").tolist() == seen.left_by().tolist() and seen.drops[1][1] == "semantic_duplicate"

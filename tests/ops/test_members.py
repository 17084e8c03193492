"""Clusters that are given: centres and distances against plain loops."""

from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.distances import silhouette
from raypipe.ops.kmeans import assign
from raypipe.ops.members import FAR, Gather, Members, distances


def part(rows):
    """rows: (embedding of two numbers or None, cluster or None)."""
    vectors = pa.array([row[0] for row in rows], pa.list_(pa.float16(), 2))
    return [pa.table({"embedding": vectors}), pa.table({"cluster_id": pa.array([row[1] for row in rows], pa.int32())})]


ROW = st.tuples(
    st.none() | st.lists(st.integers(-3, 3).map(np.float16), min_size=2, max_size=2), st.none() | st.integers(0, 4)
)


@given(st.lists(st.lists(ROW, max_size=8), min_size=1, max_size=4))
def test_centres_are_means_of_members_whatever_the_parts(parts):
    """A cluster whose highest id is in another part, or whose rows lack an embedding, must count right."""
    found = reduce(add, [Gather("euclidean")(part(rows)) for rows in parts])
    members = {}
    for vector, cluster in (row for rows in parts for row in rows):
        if vector is not None and cluster is not None:
            members.setdefault(cluster, []).append(vector)
    assert found.counts_K.tolist() == [len(members.get(k, [])) for k in range(max(members, default=-1) + 1)]
    for k, centre in enumerate(found.centers("euclidean")):
        assert np.allclose(centre, np.mean(np.array(members[k], np.float64), axis=0) if k in members else FAR)


def test_cosine_centres_have_unit_length_and_empty_ones_draw_nothing():
    """As frozen centres of a later run, a centre of no sample at zero would be the nearest of all rows that are far from the others."""
    centers_KD = Members(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([5, 0])).centers("cosine")
    assert centers_KD[0].tolist() == [np.float32(0.6), np.float32(0.8)]
    away = np.array([[-0.6, -0.8], [0.8, -0.6], [-65504, -65504], [65504, 65504]], np.float32)
    assert assign(away, centers_KD).cluster_id.tolist() == [0] * 4


def test_distances_to_the_own_and_the_nearest_other():
    """By hand, on a line: a row may lie nearer to another centre, and then its silhouette is below 0; an empty cluster is none to be near."""
    centers_KD = np.array([[1.0, 0.0], [5.0, 0.0], [FAR, FAR]], np.float32)
    found = distances(np.array([[2.0, 0.0], [4.0, 0.0]], np.float32), np.array([0, 0]), centers_KD)
    assert (
        found.cluster_id.tolist() == [0, 0]
        and found.sq_distance.tolist() == [1, 9]
        and found.sq_second.tolist() == [9, 1]
    )
    assert np.allclose(silhouette(found), [1 - 1 / 3, 1 / 3 - 1])
    alone = distances(np.ones((1, 2), np.float32), np.array([0]), centers_KD[:1])
    assert np.isinf(alone.sq_second).all() and silhouette(alone).tolist() == [0]

from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from raypipe.ops import kmeans
from raypipe.ops.text import sample_id
from raypipe.stages.embed import embedding_column


def table(x_ND, name="", missing=()):
    there = np.array([n not in missing for n in range(len(x_ND))])
    ids = [sample_id(f"{name}{n}", "") for n in range(len(x_ND))]
    return pa.table({"sample_id": ids, "embedding": embedding_column(x_ND[there].astype(np.float16), there)})


def blobs(rng, num_rows=600, dimensions=8, num_blobs=5):
    centres = rng.normal(size=(num_blobs, dimensions)) * 4
    return centres[rng.integers(num_blobs, size=num_rows)] + rng.normal(size=(num_rows, dimensions))


def fold_over(parts):
    return lambda function: reduce(add, (function([part]) for part in parts))


def fit(parts, num_rows, num_clusters, metric="euclidean", seed=0):
    fold = fold_over(parts)
    state = kmeans.start(fold, num_rows, num_clusters, metric=metric, seed=seed)
    for _ in range(kmeans.MAX_ROUNDS):
        state = kmeans.advance(fold, state, metric=metric, seed=seed)
        if state.done:
            break
    return state.centers_KD


def inertia(x_ND, centers_KD):
    return ((x_ND[:, None] - centers_KD[None]) ** 2).sum(2).min(1).sum()


def test_step_by_hand():
    """Rows 0, 2 and 10 under centres 1 and 9: means 1 and 10, inertia 1 + 1 + 1."""
    x = np.array([[0.0], [2.0], [10.0]], np.float32)
    found = kmeans.statistics(x, np.array([[1.0], [9.0]], np.float32))
    assert found.counts_K.tolist() == [2, 1] and found.inertia == 3
    assert kmeans.move(np.array([[1.0], [9.0]], np.float32), found, "euclidean").tolist() == [[1.0], [10.0]]


def test_empty_cluster_keeps_its_centre():
    found = kmeans.statistics(np.zeros((3, 1), np.float32), np.array([[0.0], [50.0]], np.float32))
    assert kmeans.move(np.array([[0.0], [50.0]], np.float32), found, "euclidean")[1] == 50


@settings(max_examples=30)
@given(st.integers(0, 1000), st.lists(st.integers(0, 199), max_size=4), st.sampled_from(["cosine", "euclidean"]))
def test_same_bits_under_any_sharding(seed, cuts, metric):
    """With other bits for another number of actors, a resumed fit would give other clusters."""
    rng = np.random.default_rng(seed)
    x = kmeans.rows_of(table(blobs(rng, 200)), metric)
    centers = x[:4]
    whole = kmeans.statistics(x, centers)
    edges = [0, *sorted(cuts), len(x)]
    parts = reduce(add, (kmeans.statistics(x[a:b], centers) for a, b in pairwise(edges)))
    assert whole.sums_KD.tobytes() == parts.sums_KD.tobytes()
    assert whole.counts_K.tolist() == parts.counts_K.tolist() and whole.inertia == parts.inertia


def test_close_to_lloyd_from_the_same_start():
    """Mini-batches are there for speed: the objective must not suffer (1 %)."""
    x = blobs(np.random.default_rng(1), 4000).astype(np.float16).astype(np.float32)
    parts = [table(x[n::4], str(n)) for n in range(4)]
    rows = np.concatenate([kmeans.rows_of(part, "euclidean") for part in parts])
    start = kmeans.start(fold_over(parts), 4000, 8, metric="euclidean", seed=0).centers_KD
    lloyd = KMeans(8, init=start, n_init=1).fit(rows)
    assert inertia(rows, fit(parts, 4000, 8)) <= 1.01 * lloyd.inertia_


def test_order_of_parts_and_missing_rows_do_not_matter():
    """Actors answer in any order; duplicates have no embedding."""
    x = blobs(np.random.default_rng(2), 300)
    parts = [table(x[:100], "a", missing={3, 4}), table(x[100:], "b")]
    assert fit(parts, 298, 3).tobytes() == fit(parts[::-1], 298, 3).tobytes()


def test_parts_without_a_row_for_the_batch():
    """A part of duplicates only has no embedding; a small part may have no row in a small batch."""
    x = blobs(np.random.default_rng(6), 3000)
    tiny = [table(x[n : n + 2], f"t{n}") for n in range(0, 60, 2)]
    parts = [*tiny, table(x[60:62], "gone", missing={0, 1}), table(x[62:], "rest")]
    state = kmeans.start(fold_over(parts), 2998, 2, metric="cosine", seed=0)
    assert state.share < 0.2 and kmeans.advance(fold_over(parts), state, metric="cosine", seed=0).inertia > 0
    assert fit(parts, 2998, 2, metric="cosine").shape == (2, 8)


def test_cosine_centres_have_unit_length():
    x = blobs(np.random.default_rng(3), 500)
    centers = fit([table(x)], 500, 5, metric="cosine")
    assert np.linalg.norm(centers, axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_one_cluster_is_the_mean():
    x = blobs(np.random.default_rng(4), 300).astype(np.float16).astype(np.float32)
    assert fit([table(x)], 300, 1)[0] == pytest.approx(x.mean(0), abs=1e-3)


def test_assign_equals_brute_force_and_mutates_nothing():
    rng = np.random.default_rng(5)
    x, centers = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(7, 6)).astype(np.float32)
    before = x.copy(), centers.copy()
    nearest, distance = kmeans.assign(x, centers)
    full = ((x[:, None] - centers[None]) ** 2).sum(2)
    assert np.array_equal(nearest, full.argmin(1)) and distance == pytest.approx(full.min(1), abs=1e-5)
    assert np.array_equal(before[0], x) and np.array_equal(before[1], centers)

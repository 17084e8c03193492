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
from raypipe.ops.distances import silhouette
from raypipe.ops.text import sample_id
from raypipe.stages.embed import embedding_column

METRICS = ["cosine", "euclidean"]


def table(x_ND, name="", missing=()):
    there = np.array([n not in missing for n in range(len(x_ND))])
    ids = [sample_id(f"{name}{n}", "") for n in range(len(x_ND))]
    return pa.table({"sample_id": ids, "embedding": embedding_column(x_ND[there].astype(np.float16), there)})


def blobs(rng, num_rows=600, dimensions=8, num_blobs=5):
    centres = rng.normal(size=(num_blobs, dimensions)) * 4
    return centres[rng.integers(num_blobs, size=num_rows)] + rng.normal(size=(num_rows, dimensions))


def rows(rng, num_rows=200):
    return kmeans.on_grid(blobs(rng, num_rows).astype(np.float32))


def fold_over(parts, fit):
    return lambda function: reduce(add, (function(fit.drawn([[part]])) for part in parts))


def centers_of(parts, fit):
    fold = fold_over(parts, fit)
    state = fit.start(fold)
    for _ in range(kmeans.MAX_ROUNDS):
        state = fit.advance(fold, state)
        if state.done:
            break
    return state.centers_KD


def inertia(x_ND, centers_KD):
    return float(kmeans.nearest(x_ND, centers_KD).sq_distance.astype(float).mean())


def same(one, other):
    """Sums and counts to the bit; distances as a matrix product of another shape rounds them."""
    exact = np.array_equal(one.sums_KD, other.sums_KD) and np.array_equal(one.counts_K, other.counts_K)
    return exact and np.allclose(one.sse_K, other.sse_K, rtol=1e-5, atol=1e-3)


def test_step_by_hand():
    """Rows 0, 2 and 10 under centres 1 and 9: means 1 and 10, squared distances 1 + 1 and 1."""
    x, centers = np.array([[0.0], [2.0], [10.0]], np.float32), np.array([[1.0], [9.0]], np.float32)
    found = kmeans.statistics(x, centers)
    assert found.counts_K.tolist() == [2, 1] and found.sse_K.tolist() == [2, 1] and found.inertia == 1
    assert kmeans.move(centers, found, "euclidean").tolist() == [[1.0], [10.0]]
    assert kmeans.assign(x, centers).sq_second.tolist() == [81, 49, 81]
    assert silhouette(kmeans.assign(x, centers)).tolist() == pytest.approx([1 - 1 / 9, 1 - 1 / 7, 1 - 1 / 9])


def test_noise_by_hand():
    """Two rows 2 apart: standard error 1 (their sum of squares is 2, over 2 x 1); the centre moved by 4, the other not at all."""
    found = kmeans.Statistics(np.zeros((3, 1)), np.array([2, 2, 2]), np.array([2.0, 2.0, 2.0]))
    before, after = np.zeros((3, 1), np.float32), np.array([[4.0], [0.5], [0.0]], np.float32)
    assert kmeans.noise(before, after, found) == 2.0
    assert kmeans.noise(before, before, found) == np.inf


def test_relaxed_by_hand():
    """A centre goes 1.3 times as far as its mean; one that did not move stays; for cosine on the unit circle."""
    before, after = np.float32([[0, 0], [3, 4]]), np.float32([[10, -20], [3, 4]])
    assert kmeans.relaxed(before, after, "euclidean") == pytest.approx(np.array([[13, -26], [3, 4]]))
    before, after = np.float32([[1, 0]]), np.float32([[0, 1]])
    length = np.hypot(0.3, 1.3)
    assert kmeans.relaxed(before, after, "cosine") == pytest.approx(np.array([[-0.3 / length, 1.3 / length]]))


def test_empty_cluster_keeps_its_centre():
    found = kmeans.statistics(np.zeros((3, 1), np.float32), np.array([[0.0], [50.0]], np.float32))
    assert kmeans.move(np.array([[0.0], [50.0]], np.float32), found, "euclidean")[1] == 50


@settings(max_examples=30)
@given(st.integers(0, 1000), st.lists(st.integers(0, 199), max_size=4), st.sampled_from(METRICS))
def test_statistics_of_shards_add_up(seed, cuts, metric):
    """Sums that depend on how rows are shared out would make the clusters depend on the number of actors."""
    x = kmeans.rows_of(table(blobs(np.random.default_rng(seed), 200)), metric)
    edges = [0, *sorted(cuts), len(x)]
    assert same(
        kmeans.statistics(x, x[:4]), reduce(add, (kmeans.statistics(x[a:b], x[:4]) for a, b in pairwise(edges)))
    )


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_order_of_rows_and_weights(seed):
    """The order of rows changes no sum; a row that is there twice counts as two."""
    rng = np.random.default_rng(seed)
    x = rows(rng)
    found, order = kmeans.statistics(x, x[:4]), rng.permutation(len(x))
    assert same(found, kmeans.statistics(x[order], x[:4]))
    assert same(found + found, kmeans.statistics(np.repeat(x, 2, 0), x[:4]))
    assert same(found + kmeans.statistics(x[:1], x[:4]), kmeans.statistics(np.concatenate([x, x[:1]]), x[:4]))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from(METRICS))
def test_inertia_never_rises_under_full_batches(seed, num_clusters, metric):
    """A step that makes it worse is a wrong step. Half a grid of distances a row is rounding."""
    x = kmeans.rows_of(table(blobs(np.random.default_rng(seed), 300)), metric)
    centers, before = x[:num_clusters], np.inf
    for _ in range(8):
        found = kmeans.statistics(x, centers)
        assert found.inertia <= before + 1e-5 * max(found.inertia, 1)
        centers, before = kmeans.move(centers, found, metric), found.inertia


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(1, 7))
def test_the_code_of_gpus_gives_the_same_statistics(seed, num_clusters):
    """On a CPU here: actors with a GPU run this, and no test of ours has one."""
    x = rows(np.random.default_rng(seed), 300)
    here, there = kmeans.statistics(x, x[:num_clusters]), kmeans.torch_statistics(x, x[:num_clusters], "cpu")
    assert here.counts_K.tolist() == there.counts_K.tolist() and np.array_equal(here.sums_KD, there.sums_KD)
    assert there.sse_K == pytest.approx(here.sse_K, rel=1e-5, abs=1e-3)


def test_many_blocks_are_one(monkeypatch):
    rng = np.random.default_rng(8)
    x = rows(rng, 500)
    whole = kmeans.statistics(x, x[:5]), kmeans.assign(x, x[:5])
    monkeypatch.setattr(kmeans, "BLOCK", {"cpu": 64, "cuda": 64})
    assert same(kmeans.statistics(x, x[:5]), whole[0])
    assert np.array_equal(kmeans.assign(x, x[:5]).sq_second, whole[1].sq_second)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_clusters", [1, 8, 40])
def test_close_to_lloyd_from_the_same_start(metric, num_clusters):
    """Batches are there for speed: the objective must not suffer (1 %). More rows than a last batch holds."""
    x = blobs(np.random.default_rng(1), 120_000, 16, 30) + 0.5
    parts = [table(x[n::4], str(n)) for n in range(4)]
    all_rows = np.concatenate([kmeans.rows_of(part, metric) for part in parts])
    fit = kmeans.Fit(len(x), num_clusters, metric, seed=0)
    assert fit.end_share < 1
    start = fit.start(fold_over(parts, fit)).centers_KD
    lloyd = KMeans(num_clusters, init=start, n_init=1).fit(all_rows).cluster_centers_.astype(np.float32)
    lloyd = kmeans.unit_rows(lloyd) if metric == "cosine" else lloyd
    ratio = inertia(all_rows, centers_of(parts, fit)) / inertia(all_rows, lloyd)
    print(f"{metric}, {num_clusters} clusters: {ratio:.4f} of Lloyd's inertia")
    assert ratio <= 1.01


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_parts_and_missing_rows_do_not_matter(metric):
    """Actors answer in any order; duplicates have no embedding."""
    x = blobs(np.random.default_rng(2), 300)
    parts, fit = [table(x[:100], "a", missing={3, 4}), table(x[100:], "b")], kmeans.Fit(298, 3, metric, seed=0)
    assert centers_of(parts, fit).tobytes() == centers_of(parts[::-1], fit).tobytes()


def test_parts_without_a_row_for_the_batch():
    """A part of duplicates only has no embedding; a small part may have no row in a small batch."""
    x = blobs(np.random.default_rng(6), 30_000)
    tiny = [table(x[n : n + 2], f"t{n}") for n in range(0, 60, 2)]
    parts = [*tiny, table(x[60:62], "gone", missing={0, 1}), table(x[62:], "rest")]
    fit = kmeans.Fit(29_998, 2, "cosine", seed=0)
    state = fit.start(fold := fold_over(parts, fit))
    assert state.share < 0.1 and fit.advance(fold, state).share >= state.share
    assert centers_of(parts, fit).shape == (2, 8)


def test_as_many_clusters_as_rows_and_rows_that_are_all_the_same():
    """Neither a crash nor an endless loop: a fit of what cannot be told apart ends, with empty clusters."""
    x = blobs(np.random.default_rng(7), 30)
    fit = kmeans.Fit(30, 30, "euclidean", seed=0)
    assert inertia(kmeans.rows_of(table(x), "euclidean"), centers_of([table(x)], fit)) < 1e-3
    same_row = table(np.ones((30, 8)))
    found = kmeans.statistics(
        kmeans.rows_of(same_row, "cosine"), centers_of([same_row], kmeans.Fit(30, 3, "cosine", seed=0))
    )
    assert found.counts_K.tolist() == [30, 0, 0] and found.inertia < 1e-5


def test_cosine_centres_have_unit_length():
    x = blobs(np.random.default_rng(3), 500)
    centers = centers_of([table(x)], kmeans.Fit(500, 5, "cosine", seed=0))
    assert np.linalg.norm(centers, axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_one_cluster_is_the_mean():
    x = blobs(np.random.default_rng(4), 300).astype(np.float16).astype(np.float32)
    assert centers_of([table(x)], kmeans.Fit(300, 1, "euclidean", seed=0))[0] == pytest.approx(x.mean(0), abs=1e-3)


def test_assign_equals_brute_force_and_mutates_nothing():
    rng = np.random.default_rng(5)
    x, centers = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(7, 6)).astype(np.float32)
    before = x.copy(), centers.copy()
    found = kmeans.assign(x, centers)
    kmeans.statistics(x, centers)
    full = ((x[:, None] - centers[None]) ** 2).sum(2)
    assert np.array_equal(found.cluster_id, full.argmin(1)) and found.sq_distance == pytest.approx(
        full.min(1), abs=1e-5
    )
    assert found.sq_second == pytest.approx(np.sort(full, 1)[:, 1], abs=1e-5)
    assert np.array_equal(before[0], x) and np.array_equal(before[1], centers)
    assert np.isinf(kmeans.assign(x, centers[:1]).sq_second).all()
    assert silhouette(kmeans.assign(x, centers[:1])).tolist() == [0.0] * 50

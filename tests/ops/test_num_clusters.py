import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score, calinski_harabasz_score
from sklearn.mixture import GaussianMixture

from raypipe.ops import kmeans, num_clusters
from tests.ops.test_kmeans import blobs, rows

NUMBERS = ("inertia", "silhouette", "calinski_harabasz", "bic", "smallest", "largest")


def quality(x_ND, centers_KD):
    return num_clusters.quality(x_ND, kmeans.assign(x_ND, centers_KD), len(centers_KD))


def same(one, other):
    return [getattr(one, name) for name in NUMBERS] == pytest.approx(
        [getattr(other, name) for name in NUMBERS], rel=1e-4
    )


def swept(x_ND, ks, metric="euclidean"):
    found = []
    for k in ks:
        fits = [kmeans.assign(x_ND, num_clusters.fit(x_ND, k, metric, seed)) for seed in (0, 1, 2)]
        qualities = [num_clusters.quality(x_ND, fit, k) for fit in fits]
        found.append(num_clusters.row(k, qualities, [fit.cluster_id for fit in fits]))
    return found


def row(k, inertia=1.0, silhouette=0.1, calinski_harabasz=1.0, bic=1.0, stability=0.5):
    values = {"inertia": inertia, "silhouette": silhouette, "calinski_harabasz": calinski_harabasz, "bic": bic}
    values["stability"] = stability
    spread = {name: value and {"mean": value, "low": value, "high": value} for name, value in values.items()}
    return {"k": k, **spread, "smallest": 0.1, "largest": 0.5}


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 8))
def test_neither_the_order_of_rows_nor_the_names_of_clusters_matter(seed, k):
    """A criterion that follows from how parts or clusters are numbered would choose another k on every cluster of machines."""
    rng = np.random.default_rng(seed)
    x = rows(rng)
    found = quality(x, x[:k])
    assert same(found, quality(x[rng.permutation(len(x))], x[:k]))
    assert same(found, quality(x, x[:k][rng.permutation(k)]))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.permutations(range(5)))
def test_equal_clusterings_agree_whatever_their_names(ids, names):
    """Another seed numbers the same clusters in another way: that is no instability."""
    named = np.asarray(ids), np.asarray(names)[ids]
    assert num_clusters.agreements(named) == [1.0]


def test_agreement_is_of_every_pair_and_near_0_by_chance():
    one, two, three = np.random.default_rng(0).integers(5, size=(3, 5000))
    found = num_clusters.agreements([one, two, three])
    assert found == [adjusted_rand_score(*pair) for pair in ((one, two), (one, three), (two, three))]
    assert np.abs(found).max() < 0.01


def test_by_hand():
    """Rows 0, 2, 10, 12 under centres 1 and 11: means 1, 11 and 6 of all, so 4 within and 4 * 25 between.

    Silhouettes 1 - 1/11 and 1 - 1/9 twice each. BIC: variance 4/4 = 1, shares 1/2: log-likelihood 4 log(1/2) - 2 log(2 pi) - 2;
    p = 2 means + 1 share + 1 variance.
    """
    x, centers = np.array([[0], [2], [10], [12]], np.float32), np.array([[1], [11]], np.float32)
    found = quality(x, centers)
    assert found.inertia == 1 and (found.smallest, found.largest) == (0.5, 0.5)
    assert num_clusters.squares(x, np.array([0, 0, 1, 1]), 2)[:2] == (4, 100)
    assert found.silhouette == pytest.approx((1 - 1 / 11 + 1 - 1 / 9) / 2)
    assert found.calinski_harabasz == pytest.approx((100 / 1) / (4 / 2))
    assert found.bic == pytest.approx(4 * np.log(4) - 2 * (4 * np.log(0.5) - 2 * np.log(2 * np.pi) - 2))


@pytest.mark.parametrize("k", [2, 5, 9])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_agrees_with_plain_implementations(k, metric):
    """Each criterion as its paper writes it, row by row, on clusters of uneven size."""
    x = kmeans.on_grid(blobs(np.random.default_rng(k), 400).astype(np.float32))
    x = kmeans.on_grid(kmeans.unit_rows(x)) if metric == "cosine" else x
    centers = num_clusters.fit(x, k, metric, 0)
    distance = np.linalg.norm(x[:, None].astype(float) - centers[None], axis=2)
    ids, ordered = distance.argmin(1), np.sort(distance, 1)
    found = quality(x, centers)
    assert found.inertia == pytest.approx((ordered[:, 0] ** 2).mean(), rel=1e-4)
    assert found.silhouette == pytest.approx((1 - ordered[:, 0] / ordered[:, 1]).mean(), rel=1e-4)
    assert found.calinski_harabasz == pytest.approx(calinski_harabasz_score(x.astype(float), ids), rel=1e-6)
    means = np.stack([x[ids == c].mean(0, dtype=float) for c in range(k)])
    variance = ((x - means[ids]) ** 2).mean()
    likelihood = sum(
        np.log((ids == c).mean()) * (ids == c).sum()
        + multivariate_normal(means[c], variance).logpdf(x[ids == c].astype(float)).sum()
        for c in range(k)
    )
    assert found.bic == pytest.approx((k * x.shape[1] + k - 1 + 1) * np.log(len(x)) - 2 * likelihood, rel=1e-6)


def test_bic_of_one_cluster_is_that_of_a_mixture_of_one():
    """There the model is scikit-learn's, number of parameters and all."""
    x = rows(np.random.default_rng(3), 300)
    mixture = GaussianMixture(1, covariance_type="spherical", reg_covar=0).fit(x.astype(float))
    found = quality(x, x[:1])
    assert found.bic == pytest.approx(mixture.bic(x.astype(float)), rel=1e-9)
    assert (found.silhouette, found.calinski_harabasz) == (None, None)


def test_bic_of_clusters_far_apart_is_nearly_that_of_a_mixture():
    """Rows that could be of one cluster only: there the mixture of spheres with a variance each has K - 1 parameters more."""
    rng = np.random.default_rng(4)
    x = kmeans.on_grid((100 * np.eye(4, 6)[np.arange(800) % 4] + rng.normal(size=(800, 6))).astype(np.float32))
    mixture = GaussianMixture(4, covariance_type="spherical", means_init=100 * np.eye(4, 6)).fit(x.astype(float))
    wanted = mixture.bic(x.astype(float)) - 3 * np.log(800)
    assert quality(x, (100 * np.eye(4, 6)).astype(np.float32)).bic == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_every_criterion_finds_what_was_planted(metric):
    """Where there is a true k, and it is plain, all five must say so: else none says anything about real data."""
    rng, planted = np.random.default_rng(5), 6
    x = 4 * np.eye(planted, 16)[np.arange(1800) % planted] + 0.3 * rng.normal(size=(1800, 16))
    x = kmeans.on_grid((kmeans.unit_rows(x) if metric == "cosine" else x).astype(np.float32))
    found = swept(x, [2, 3, 6, 12, 24], metric)
    chosen = num_clusters.choices(found)
    assert chosen == dict.fromkeys(num_clusters.NAMES, planted)
    said = num_clusters.verdict(found, chosen)
    assert said[0].startswith("the criteria agree on k = 6: the elbow of inertia, silhouette") and len(said) == 2
    json.dumps(found, allow_nan=False)


def test_noise_of_one_kind_has_no_clusters():
    """Its elbow is faint or nowhere, its BIC wants one cluster, and no seed finds another's clusters."""
    x = kmeans.on_grid(np.random.default_rng(6).normal(size=(1500, 16)).astype(np.float32))
    found = swept(x, [1, 4, 16])
    chosen, said = num_clusters.choices(found), num_clusters.verdict(found, num_clusters.choices(found))
    assert chosen["bic"] == 1 and all(row["stability"]["mean"] < 0.5 for row in found[1:])
    assert chosen["inertia"] is None or any("faint" in words for words in said)
    assert found[0]["stability"] is None and found[0]["silhouette"] is None


def test_elbow_by_hand():
    """Over log k the chord from (1, 10) to (16, 2) is 8 at 2, 6 at 4 and 4 at 8; 3 lies farthest below, at 4: 3/8 of the fall."""
    ks = [1, 2, 4, 8, 16]
    assert num_clusters.elbow(ks, [10, 6, 3, 2.5, 2]) == 4
    assert num_clusters.below_chord(ks, [10, 6, 3, 2.5, 2]).tolist() == [0, 0.25, 0.375, 0.1875, 0]
    assert num_clusters.elbow(ks, [10, 5, 3, 2.5, 2]) == 2  # 3 below at both: fewer clusters
    assert num_clusters.elbow(ks, [10, 8, 6, 4, 2]) is None
    assert num_clusters.elbow(ks, [10, 9.5, 9, 8, 2]) is None
    assert num_clusters.elbow([5, 10, 20], [1, 1, 1]) is None
    assert num_clusters.elbow([5, 10], [2, 1]) is None


@settings(max_examples=50)
@given(
    st.lists(st.floats(0.1, 1), min_size=3, max_size=8),
    st.floats(0.01, 100),
    st.integers(2, 50),
)
def test_elbow_does_not_mind_units(falls, scale, first):
    """Embeddings of another length have the same elbow; so have twice as many clusters everywhere."""
    ks = [2**n for n in range(len(falls))]
    inertias = np.round(10 - np.cumsum(falls), 3)
    found = num_clusters.below_chord(ks, inertias)
    assert num_clusters.below_chord(ks, scale * inertias) == pytest.approx(found, abs=1e-8)
    assert num_clusters.below_chord([first * k for k in ks], inertias) == pytest.approx(found, abs=1e-8)


def test_rows_that_are_all_the_same_and_as_many_clusters_as_rows():
    """A logarithm of nothing would be an infinitely good BIC, and the largest k the best for ever."""
    x = np.ones((30, 8), np.float32)
    found = quality(x, np.concatenate([x[:1], x[:1] + 50]))
    assert (found.silhouette, found.calinski_harabasz, found.bic) == (None, None, None)
    assert (found.smallest, found.largest) == (0, 1)
    x = rows(np.random.default_rng(7), 30)
    found = quality(x, x)
    assert (found.calinski_harabasz, found.bic) == (None, None) and found.silhouette > 0.99
    known = num_clusters.choices([row(2, bic=None), row(4, bic=7.0), row(8, bic=None)])
    assert known["bic"] == 4


def test_ties():
    """Two k that are equally good: fewer clusters, but the finer of two that every seed finds."""
    chosen = num_clusters.choices([row(2, stability=1.0), row(4, stability=1.0), row(8)])
    assert chosen == {"inertia": None, "silhouette": 2, "calinski_harabasz": 2, "bic": 2, "stability": 4}


def test_disagreement_is_said_in_words():
    """The one thing that a table of five choices does not say by itself: that none of them is the answer."""
    found = [row(5, 9.0, 0.3, 9.0, 3.0, None), row(20, 4.0, 0.2, 8.0, 2.0, None), row(80, 3.0, 0.2, 7.0, 1.0, None)]
    said = num_clusters.verdict(found, num_clusters.choices(found))
    assert said[0] == (
        "the criteria disagree: the elbow of inertia chooses 20; silhouette and Calinski-Harabasz choose 5; BIC chooses 80; "
        "no one of them is to be trusted alone"
    )
    assert said[1] == "nothing can be said by stability"
    assert said[2].startswith("5 is the smallest k that was tried") and said[3].startswith("80 is the largest k")
    assert said[-1].endswith("keep the paper's 10, the default, which was not tried here")


def test_the_paper_s_number_is_the_default():
    """The words name it."""
    from raypipe.config import Cluster

    assert Cluster().num_clusters == num_clusters.PAPER_CLUSTERS


def test_a_fit_can_be_stopped_between_rounds():
    """Ctrl-C in a sweep over thousands of clusters."""

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        num_clusters.fit(rows(np.random.default_rng(8)), 3, "euclidean", 0, stop)

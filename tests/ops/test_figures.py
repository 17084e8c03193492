import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.ops.figures import FINE, QUANTITIES, Exemplar, Measure, median_of, nearest_few, project
from raypipe.ops.text import sample_id

ROW = st.tuples(
    st.integers(0, 2),
    st.floats(0, 4, width=32),
    st.floats(-200, 0),
    st.integers(1, 200),
    st.sampled_from(["selected", "below_cut", "held_out", None]),
)


def tables(rows, name):
    """Score, cluster and select of a part; reason None stands for a duplicate."""
    scored = [row[4] is not None for row in rows]
    ids = pa.array([sample_id(f"{name}{n}", "") for n in range(len(rows))], pa.string())
    nll = [100.0 if ok else None for ok in scored]
    score = pa.table(
        {
            "sample_id": ids,
            "num_instruction_tokens": pa.array([5] * len(rows), pa.int32()),
            "num_response_tokens": pa.array([row[3] for row in rows], pa.int32()),
            "nll_conditional": pa.array(
                [100 + row[2] if ok else None for row, ok in zip(rows, scored, strict=True)], pa.float64()
            ),
            "nll_unconditional": pa.array(nll, pa.float64()),
            "ifd": pa.array(
                [float(np.exp(row[2] / row[3])) if ok else None for row, ok in zip(rows, scored, strict=True)],
                pa.float64(),
            ),
        }
    ).replace_schema_metadata({"part": name})
    cluster = pa.table(
        {
            "cluster_id": pa.array([row[0] if ok else None for row, ok in zip(rows, scored, strict=True)], pa.int32()),
            "sq_distance": pa.array(
                [row[1] if ok else None for row, ok in zip(rows, scored, strict=True)], pa.float32()
            ),
        }
    )
    return [score, cluster, pa.table({"reason": pa.array([row[4] or "duplicate" for row in rows], pa.string())})]


@settings(max_examples=40)
@given(st.lists(ROW, max_size=30), st.lists(ROW, max_size=30))
def test_parts_add_up_to_the_whole(one, two):
    """The report of a lake must not depend on how it was cut into parts."""
    measure = Measure(3, 4)
    apart = measure(tables(one, "a")) + measure(tables(two, "b"))
    for name in QUANTITIES:
        assert apart.counts[name][0].sum() == sum(row[4] is not None for row in one + two)
        assert apart.counts[name][1].sum() == sum(row[4] == "selected" for row in one + two)
        shown = apart.histogram(name)
        assert (
            sum(shown["all"]) == apart.counts[name][0].sum() and sum(shown["selected"]) == apart.counts[name][1].sum()
        )
    candidates = {
        (k, kept): sorted(
            np.float32(row[1]) for row in one + two if row[0] == k and row[4] == ("selected" if kept else "below_cut")
        )
        for k in range(3)
        for kept in (True, False)
    }
    for (k, kept), distances in candidates.items():
        found = [e.sq_distance for e in apart.nearest if e.cluster_id == k and e.selected == kept]
        assert found == distances[:2]


def test_median_by_hand():
    """Lengths 3, 5 and 5: the bins are one token wide, so the median is exact."""
    counts = np.histogram([3, 5, 5], FINE["response_tokens"])[0]
    assert median_of(counts, FINE["response_tokens"]) == 5
    assert median_of(np.zeros(3, np.int64), np.arange(4)) is None


def test_kept_exemplars_come_first_and_zero_hides_all():
    base = Exemplar(0.5, "a", "p", 0, 0, "below_cut", 0.5, 2.0, 4.0, 7)
    kept = dataclasses.replace(base, sample_id="b", reason="selected", sq_distance=0.9)
    assert [e.sample_id for e in nearest_few([base, kept], 2)] == ["b", "a"]
    assert nearest_few([base, kept], 0) == ()


def test_beyond_an_axis_counts_in_its_last_bar():
    found = Measure(1, 0)(tables([(0, 0.0, 0.0, 1, "below_cut")], "a"))
    assert found.histogram("ifd")["edges"][0] <= 1 <= found.histogram("ifd")["edges"][-1]
    assert found.counts["perplexity_unconditional"][0][-1] == 1  # e^100
    assert found.medians("ifd")["all"] == pytest.approx(1, abs=1e-3)


def test_map_of_few_rows_still_has_two_axes():
    """One sample, or one dimension, has no second component: the report of a tiny run must not end in an error."""
    for shape in [(0, 3), (1, 3), (2, 3), (5, 1), (5, 3)]:
        xy, explained = project(np.random.default_rng(0).normal(size=shape).astype(np.float32), 0)
        assert xy.shape == (shape[0], 2) and np.isfinite(xy).all() and np.isfinite(explained), shape


def test_a_scored_row_without_a_cluster_is_in_no_cluster():
    """Its embedding was not among the user's rows: it counts among the scored, and is shown in no cluster."""
    score, cluster, select = tables([(0, 0.5, -1.0, 3, "below_cut"), (0, 0.5, -1.0, 3, "below_cut")], "a")
    cluster = cluster.set_column(0, "cluster_id", pa.array([0, None], pa.int32()))
    found = Measure(1, 2)([score, cluster, select])
    assert found.counts["ifd"][0].sum() == 2 and found.ifd_KB.sum() == 1 and len(found.nearest) == 1

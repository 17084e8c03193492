import dataclasses
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.config import Select
from raypipe.ops.selection import CountKeys, GatherCut, Mark, cuts, num_kept, ordered_bits, quotas, score_of
from raypipe.ops.text import draw, id_words, is_held_out, sample_id


def tables(rows):
    """rows: (name, clean status, score status, ifd, tokens, cluster). Truncated ones are scored on what fits."""
    name, clean, status, ifd, tokens, cluster = zip(*rows, strict=True) if rows else [()] * 6
    ids = pa.array([sample_id(str(n), "") for n in name], pa.string())
    ok = [c == "ok" for c in clean]
    scored = [c and s in ("ok", "truncated") for c, s in zip(ok, status, strict=True)]
    return [
        pa.table({"sample_id": ids, "status": pa.array(clean, pa.string())}),
        pa.table({"cluster_id": pa.array([k if o else None for k, o in zip(cluster, ok, strict=True)], pa.int32())}),
        pa.table(
            {
                "status": pa.array([s if o else c for s, o, c in zip(status, ok, clean, strict=True)], pa.string()),
                "ifd": pa.array([v if o else None for v, o in zip(ifd, scored, strict=True)], pa.float64()),
                "num_response_tokens": pa.array(tokens, pa.int32()),
            }
        ),
    ]


def select(parts, config, seed=0):
    """As the stage does it, without Ray: two folds and a map."""
    quota = quotas(reduce(add, map(CountKeys(config, seed), parts)), config.keep_fraction)
    candidates = reduce(add, map(GatherCut(config, seed, quota), parts))
    mark = Mark(config, seed, cuts(quota, candidates))
    return [row for part in parts for row in mark(part).to_pylist()]


def brute_force(parts, config, seed=0):
    """Sort and cut, a row at a time: the paper's rule and its baselines as plainly as they can be written."""
    rows = []
    for clean, cluster, score in parts:
        words = id_words(clean["sample_id"])
        for n in range(len(clean)):
            rows.append(
                {
                    "id": clean["sample_id"][n].as_py(),
                    "clean": clean["status"][n].as_py(),
                    "held_out": bool(is_held_out(words[n : n + 1], config.held_out_fraction)[0]),
                    "score": score["status"][n].as_py(),
                    "ifd": score["ifd"][n].as_py(),
                    "tokens": score["num_response_tokens"][n].as_py(),
                    "cluster": cluster["cluster_id"][n].as_py(),
                    "draw": int(draw(words[n : n + 1], seed)[0]),
                }
            )
    key = {"paper": "ifd", "global_ifd": "ifd", "random": "draw", "cluster_random": "draw", "longest": "tokens"}
    by_cluster = config.strategy in ("paper", "cluster_random")
    groups = {}
    for row in rows:
        if row["clean"] != "ok":
            row["reason"] = row["clean"]
        elif row["held_out"]:
            row["reason"] = "held_out"
        elif row["ifd"] is None:
            row["reason"] = row["score"]
        elif row["ifd"] >= config.max_ifd:
            row["reason"] = "ifd_too_high"
        else:
            row["reason"] = "below_cut"
            groups.setdefault(row["cluster"] if by_cluster else 0, []).append(row)
    for members in groups.values():
        members.sort(key=lambda row: (-row[key[config.strategy]], row["id"]))
        for row in members[: num_kept(config.keep_fraction, len(members))]:
            row["reason"] = "selected"
    return [row["reason"] for row in rows]


ROW = st.tuples(
    st.integers(0, 10**6),
    st.sampled_from(["ok", "ok", "ok", "duplicate"]),
    st.sampled_from(["ok", "ok", "truncated", "non_finite"]),
    st.one_of(st.sampled_from([0.25, 0.5, 0.5000001, 1.0]), st.floats(0, 2)),
    st.integers(1, 5),
    st.integers(0, 2),
)


@given(
    st.lists(ROW, min_size=1, max_size=60, unique_by=lambda row: row[0]),
    st.sampled_from(["paper", "global_ifd", "random", "cluster_random", "longest"]),
    st.sampled_from([0.1, 0.4, 0.7, 1.0]),
    st.integers(1, 5),
)
def test_equals_sort_and_cut_for_any_data_parts_and_ties(rows, strategy, keep_fraction, num_parts):
    """A cut that is off by one row, or depends on how the lake is cut into parts, is no longer the paper's rule."""
    config = Select(strategy=strategy, keep_fraction=keep_fraction, held_out_fraction=0.2)
    parts = [tables(rows[n::num_parts]) for n in range(num_parts)]
    got = [row["reason"] for row in select(parts, config)]
    assert got == brute_force(parts, config)
    assert [row["selected"] for row in select(parts, config)] == [reason == "selected" for reason in got]


def test_paper_rule_by_hand():
    """40 % of a cluster's survivors, by IFD from the top: 5 survivors give 2; IFD 1.0 is no survivor."""
    ifd = [0.9, 0.8, 0.7, 0.6, 0.5, 1.0]
    part = tables([(n, "ok", "ok", value, 1, 0) for n, value in enumerate(ifd)])
    reasons = [row["reason"] for row in select([part], Select(held_out_fraction=0))]
    assert reasons == ["selected", "selected", "below_cut", "below_cut", "below_cut", "ifd_too_high"]


def test_counts_come_from_exact_decimals():
    """int(90 * 0.7) is 62 in floating point."""
    assert num_kept(0.7, 90) == 63
    assert num_kept(0.29, 100) == 29
    assert num_kept(1.0, 7) == 7


@given(st.lists(st.floats(allow_nan=False), min_size=2))
def test_ordered_bits_keep_the_order(values):
    bits = ordered_bits(np.array(values) + 0.0)  # -0.0 becomes 0.0
    assert np.array_equal(np.argsort(bits, kind="stable"), np.argsort(np.array(values) + 0.0, kind="stable"))
    assert [score_of(int(b)) for b in bits] == [v + 0.0 for v in values]


def test_strategies_keep_equal_numbers():
    """A baseline of another size compares sizes, not choices."""
    rng = np.random.default_rng(0)
    part = tables([(n, "ok", "ok", float(rng.random()), 1 + n % 7, n % 3) for n in range(300)])
    base = Select(keep_fraction=0.4, held_out_fraction=0)
    kept = {
        name: sum(row["selected"] for row in select([part], base.model_copy(update={"strategy": name})))
        for name in ("paper", "random", "cluster_random", "global_ifd", "longest")
    }
    assert set(kept.values()) == {120}


def test_cut_is_none_where_nothing_is_kept():
    part = tables([(0, "ok", "ok", 0.5, 1, 0)])
    config = Select(keep_fraction=0.4, held_out_fraction=0)
    assert [row["reason"] for row in select([part], config)] == ["below_cut"]
    quota = quotas(CountKeys(config, 0)(part), 0.4)
    assert dataclasses.astuple(quota[0])[:2] == (1, 0)


def test_needs_a_known_strategy():
    with pytest.raises(ValueError, match="strategy"):
        Select.model_validate_json('{"strategy": "best"}')

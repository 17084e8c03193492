"""What a selection is made of, against plain loops."""

import math

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.config import Select
from raypipe.ops.composition import CANDIDATES, by_cluster, entropy, groups, of_texts, overall
from raypipe.ops.style import STYLES
from raypipe.ops.text import sample_id
from tests.ops.test_selection import brute_force, tables

ROWS = st.lists(
    st.tuples(st.sampled_from(CANDIDATES), st.integers(0, 2), st.integers(0, 9), st.integers(0, 9), st.booleans()),
    max_size=30,
)


def table(rows):
    reason, cluster, response, instruction, styled = zip(*rows, strict=True) if rows else [()] * 5
    return pa.table(
        {
            "sample_id": pa.array([sample_id(str(n), "") for n in range(len(rows))], pa.string()),
            "reason": pa.array(reason, pa.string()),
            "cluster_id": pa.array(cluster, pa.int32()),
            "num_response_tokens": pa.array(response, pa.int32()),
            "num_instruction_tokens": pa.array(instruction, pa.int32()),
            **{name: pa.array(styled, pa.bool_()) for name in STYLES},
        }
    )


@settings(max_examples=60)
@given(ROWS, st.integers(0, 5))
def test_groups_and_their_figures(rows, seed):
    """A mean over the wrong rows would tell a user that selection moved what it did not."""
    made = table(rows)
    masks = groups(made, seed)
    kept = [n for n, row in enumerate(rows) if row[0] == "selected"]
    assert np.flatnonzero(masks["kept"]).tolist() == kept
    assert np.flatnonzero(masks["dropped"]).tolist() == [n for n in range(len(rows)) if n not in kept]
    chance = [rows[n] for n in np.flatnonzero(masks["random"])]
    assert len(chance) == len(kept) and {row[0] for row in chance} <= {"selected", "below_cut"}
    for mask in masks.values():
        mine = [rows[n] for n in np.flatnonzero(mask)]
        found, of_clusters = overall(made, mask), by_cluster(made, mask, 3)
        assert found["samples"] == len(mine) == sum(cluster["samples"] for cluster in of_clusters)
        if mine:
            assert found["response_tokens"]["median"] == np.median([row[2] for row in mine])
            assert math.isclose(found["instruction_tokens"]["mean"], np.mean([row[3] for row in mine]), abs_tol=1e-9)
            assert math.isclose(found["tests"], np.mean([row[4] for row in mine]), abs_tol=1e-9)
        for k, cluster in enumerate(of_clusters):
            here = [row[2] for row in mine if row[1] == k]
            assert (
                cluster["response_tokens"] is None
                if not here
                else math.isclose(cluster["response_tokens"], np.mean(here))
            )


def test_chance_is_what_strategy_random_keeps():
    """The comparison promises just that: the same samples, drawn with the run's own seed."""
    rng = np.random.default_rng(0)
    rows = [
        (str(n), "ok", "ok", float(rng.random()), int(rng.integers(1, 9)), int(rng.integers(3)), None, None)
        for n in range(200)
    ]
    part = tables(rows)
    rule = {"held_out_fraction": 0.0, "keep_fraction": 0.25}
    paper, random = (brute_force([part], Select(strategy=name, **rule), 7) for name in ("global_ifd", "random"))
    made = pa.table({"sample_id": part[0].column("sample_id"), "reason": paper})
    assert np.flatnonzero(groups(made, 7)["random"]).tolist() == [
        n for n, reason in enumerate(random) if reason == "selected"
    ]


@given(st.lists(st.integers(0, 50), max_size=8))
def test_entropy_against_its_definition(counts):
    shares = [c / sum(counts) for c in counts if c]
    assert math.isclose(entropy(np.array(counts, np.int64)), -sum(p * math.log2(p) for p in shares), abs_tol=1e-9)


def test_texts_are_counted_in_their_group():
    texts = ["```py\nx = 1\n```", "```rust\nlet x = 1;\n```", "```py\ny = 2\n```"]
    masks = {
        "kept": np.array([True, False, True]),
        "dropped": np.array([False, True, False]),
        "random": np.zeros(3, bool),
    }
    found = of_texts(texts, masks)
    assert found["kept"]["languages"] == {"python": 1.0} and found["dropped"]["languages"] == {"rust": 1.0}
    assert found["random"] == {"languages": {}, "distinct_ngrams": {"1": None, "2": None, "3": None}}
    assert found["kept"]["distinct_ngrams"]["1"] > 0

import dataclasses
from fractions import Fraction
from functools import partial, reduce
from operator import add

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.config import Select
from raypipe.ops import cuts as cutting
from raypipe.ops.cuts import find_cuts
from raypipe.ops.selection import Gather, mark, num_kept, ordered_bits, quotas, score_of, shares
from raypipe.ops.text import draw, id_words, is_held_out, sample_id

STRATEGIES = ("paper", "global_ifd", "random", "cluster_random", "longest", "column")


def tables(rows):
    """rows: (name, clean status, score status, ifd, tokens, cluster, lang, quality). Truncated ones are scored on what fits."""
    name, clean, status, ifd, tokens, cluster, lang, quality = zip(*rows, strict=True) if rows else [()] * 8
    ids = pa.array([sample_id(str(n), "") for n in name], pa.string())
    ok = [c == "ok" for c in clean]
    scored = [c and s in ("ok", "truncated") for c, s in zip(ok, status, strict=True)]
    carried = {"lang": pa.array(lang, pa.string()), "quality": pa.array(quality, pa.string())}
    return [
        pa.table({"sample_id": ids, "status": pa.array(clean, pa.string()), **carried}),
        pa.table({"cluster_id": pa.array([k if o else None for k, o in zip(cluster, ok, strict=True)], pa.int32())}),
        pa.table(
            {
                "status": pa.array([s if o else c for s, o, c in zip(status, ok, clean, strict=True)], pa.string()),
                "ifd": pa.array([v if o else None for v, o in zip(ifd, scored, strict=True)], pa.float64()),
                "num_instruction_tokens": pa.array([3 * t for t in tokens], pa.int32()),
                "num_response_tokens": pa.array(tokens, pa.int32()),
            }
        ),
    ]


def row(n, ifd=0.5, tokens=1, cluster=0, lang=None, quality=None):
    return (n, "ok", "ok", ifd, tokens, cluster, lang, quality)


def cuts_of(parts, config, seed=0):
    """As the stage finds them, without Ray: folds over sets of parts."""
    rows = [Gather(config, seed)(some) for some in parts]
    return find_cuts(lambda function: reduce(add, map(function, rows)), partial(quotas, config), config.num_tokens)


def select(parts, config, seed=0):
    """Rows of all parts; every part is a set."""
    cuts = cuts_of([[part] for part in parts], config, seed)
    return [made for part in parts for made in mark(part, config, seed, cuts)[0].to_pylist()]


def brute_force(parts, config, seed=0):
    """Sort and cut, a row at a time: the paper's rule and its baselines as plainly as they can be written."""
    rows = []
    for clean, cluster, score in parts:
        words = id_words(clean["sample_id"])
        for n in range(len(clean)):
            quality = clean["quality"][n].as_py()
            rows.append(
                {
                    "id": clean["sample_id"][n].as_py(),
                    "clean": clean["status"][n].as_py(),
                    "lang": clean["lang"][n].as_py() or "",
                    "quality": float(quality) if quality not in (None, "none") else None,
                    "held_out": bool(is_held_out(clean["sample_id"][n : n + 1], config.held_out_fraction)[0]),
                    "score": score["status"][n].as_py(),
                    "ifd": score["ifd"][n].as_py(),
                    "response": score["num_response_tokens"][n].as_py(),
                    "tokens": score["num_response_tokens"][n].as_py() + score["num_instruction_tokens"][n].as_py(),
                    "cluster": cluster["cluster_id"][n].as_py(),
                    "draw": int(draw(words[n : n + 1], seed)[0]),
                }
            )
    names = ("ifd", "ifd", "draw", "draw", "response", "quality")
    key = dict(zip(STRATEGIES, names, strict=True))[config.strategy]
    groups, counted = {}, {}
    for one in rows:
        cluster = one["cluster"] if config.strategy in ("paper", "cluster_random") else 0
        group = (cluster, one["lang"] if config.per else "")
        if one["clean"] != "ok":
            one["reason"] = one["clean"]
            continue
        if one["held_out"]:
            one["reason"] = "held_out"
            continue
        counted[group] = counted.get(group, 0) + 1
        if one["ifd"] is None:
            one["reason"] = one["score"]
        elif one["ifd"] >= config.max_ifd:
            one["reason"] = "ifd_too_high"
        elif one["ifd"] < config.min_ifd:
            one["reason"] = "ifd_too_low"
        elif config.strategy == "column" and one["quality"] is None:
            one["reason"] = "no_column_value"
        else:
            one["reason"] = "below_cut"
            groups.setdefault(group, []).append(one)
    names = sorted(groups)
    for name in names:
        groups[name].sort(key=lambda one: (-one[key], one["id"]))
    sizes = [len(groups[name]) for name in names]
    if config.num_tokens is not None:
        keep = by_tokens([[one["tokens"] for one in groups[name]] for name in names], config.num_tokens)
    elif config.num_samples is not None:
        keep = largest_remainder(min(config.num_samples, sum(sizes)), sizes)
    else:
        of = sizes if config.fraction_of == "survivors" else [counted[name] for name in names]
        keep = [min(size, num_kept(config.keep_fraction, base)) for size, base in zip(sizes, of, strict=True)]
    for name, count in zip(names, keep, strict=True):
        for one in groups[name][:count]:
            one["reason"] = "selected"
    return [one["reason"] for one in rows]


def largest_remainder(total, weights):
    exact = [Fraction(total * weight, sum(weights)) for weight in weights]
    found = [int(share) for share in exact]
    for n in sorted(range(len(weights)), key=lambda n: (found[n] - exact[n], n))[: total - sum(found)]:
        found[n] += 1
    return found


def by_tokens(groups, budget):
    """Longest beginnings within each group's share; then one more for the largest remainders, while the budget lasts."""
    whole, keep, left = sum(map(sum, groups)), [], []
    for tokens in groups:
        share, count = budget * sum(tokens) // whole, 0
        while count < len(tokens) and sum(tokens[: count + 1]) <= share:
            count += 1
        keep.append(count)
        left.append(share - sum(tokens[:count]))
    for n in sorted(range(len(groups)), key=lambda n: (-left[n], n)):
        more = groups[n][keep[n] : keep[n] + 1]
        if more and sum(sum(tokens[:count]) for tokens, count in zip(groups, keep, strict=True)) + more[0] <= budget:
            keep[n] += 1
    return keep


ROW = st.tuples(
    st.integers(0, 10**6),
    st.sampled_from(["ok", "ok", "ok", "duplicate"]),
    st.sampled_from(["ok", "ok", "truncated", "non_finite"]),
    st.one_of(st.sampled_from([0.25, 0.5, 0.5000001, 1.0]), st.floats(0, 2)),
    st.integers(1, 5),
    st.integers(0, 2),
    st.sampled_from([None, "python", "rust"]),
    st.one_of(st.sampled_from([None, "none", "-0.0", "0", "3"]), st.floats(-1e300, 1e300).map(str)),
)
SIZES = st.one_of(
    st.builds(
        dict, keep_fraction=st.sampled_from([0.1, 0.4, 0.7, 1.0]), fraction_of=st.sampled_from(["survivors", "cluster"])
    ),
    st.builds(dict, num_samples=st.integers(1, 70)),
    st.builds(dict, num_tokens=st.integers(1, 700)),
)


@given(
    st.lists(ROW, min_size=1, max_size=60, unique_by=lambda row: row[0]),
    st.sampled_from(STRATEGIES),
    SIZES,
    st.sampled_from([None, "lang"]),
    st.sampled_from([0.0, 0.3]),
    st.integers(1, 5),
    st.sampled_from([0, 3, 100_000]),
)
def test_equals_sort_and_cut_for_any_data_parts_and_ties(rows, strategy, sizes, per, min_ifd, num_parts, gather_rows):
    """A cut that is off by one row, or depends on how the lake is cut into parts, is no longer the rule that was asked for."""
    column = "quality" if strategy == "column" else None
    config = Select(strategy=strategy, column=column, per=per, min_ifd=min_ifd, held_out_fraction=0.2, **sizes)
    parts = [tables(rows[n::num_parts]) for n in range(num_parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cutting, "GATHER_ROWS", gather_rows
        )  # few, so that the cut is found by bits, down to those of ids
        made = select(parts, config)
    got = [one["reason"] for one in made]
    assert got == brute_force(parts, config)
    assert [one["selected"] for one in made] == [reason == "selected" for reason in got]


def test_paper_rule_by_hand():
    """40 % of a cluster's survivors, by IFD from the top: 5 survivors give 2; IFD 1.0 is no survivor."""
    part = tables([row(n, value) for n, value in enumerate([0.9, 0.8, 0.7, 0.6, 0.5, 1.0])])
    reasons = [one["reason"] for one in select([part], Select(held_out_fraction=0))]
    assert reasons == ["selected", "selected", "below_cut", "below_cut", "below_cut", "ifd_too_high"]


def test_a_fraction_of_the_cluster_by_hand():
    """Of 6 samples 4 have an IFD in the band: 50 % are 3 of the cluster, 2 of the survivors, and 90 % are all that survive."""
    part = tables([row(n, value) for n, value in enumerate([0.9, 0.8, 0.7, 0.6, 0.1, 1.2])])
    base = {"held_out_fraction": 0, "min_ifd": 0.2}
    for fraction, of, wanted in ((0.5, "cluster", 3), (0.5, "survivors", 2), (0.9, "cluster", 4)):
        config = Select(keep_fraction=fraction, fraction_of=of, **base)
        assert sum(one["selected"] for one in select([part], config)) == wanted


def test_budgets_by_hand():
    """Clusters of 5, 3 and 2: seven samples are 3.5, 2.1 and 1.4, so 4, 2, 1. Twenty tokens of 40 are 10, 6 and 4 in samples of 4."""
    part = tables([row(n, 0.9 - n / 100, 1, cluster) for n, cluster in enumerate([0] * 5 + [1] * 3 + [2] * 2)])
    for config, wanted in (
        (Select(num_samples=7, held_out_fraction=0), [4, 2, 1]),
        (
            Select(num_tokens=20, held_out_fraction=0),
            [3, 1, 1],
        ),  # 2, 1, 1 within the shares; 4 tokens left, most of them the first's
    ):
        found = cuts_of([[part]], config)
        assert [cut.keep for cut in found.values()] == wanted
        made = select([part], config)
        assert [sum(one["selected"] for one in made[a:b]) for a, b in ((0, 5), (5, 8), (8, 10))] == wanted
        assert mark(part, config, 0, found)[1].tolist() == [4] * sum(wanted)


@given(st.integers(0, 1000), st.lists(st.integers(1, 10**15), min_size=1, max_size=20))
def test_shares_are_by_largest_remainder(total, weights):
    found = shares(total, weights)
    assert sum(found) == total and found == largest_remainder(total, weights)


def test_quotas_in_each_value_of_a_column():
    """Without `per` a language with low scores would lose all its samples."""
    rows = [row(n, 0.9 - n / 1000, lang="python" if n < 50 else "rust") for n in range(100)]
    one_group, each = (Select(per=per, held_out_fraction=0) for per in (None, "lang"))
    kept = [[made["selected"] for made in select([tables(rows)], config)] for config in (one_group, each)]
    assert [sum(kept[0][:50]), sum(kept[0][50:])] == [40, 0] and [sum(kept[1][:50]), sum(kept[1][50:])] == [20, 20]


def test_ten_thousand_equal_scores_are_cut_by_id(monkeypatch):
    """A flat score puts every row into one bucket at every level; the state must not grow with the lake then either."""
    monkeypatch.setattr(cutting, "GATHER_ROWS", 50)
    rows = Gather(config := Select(held_out_fraction=0), 0)([tables([row(n) for n in range(10_000)])])
    picked = []

    def fold(function):
        found = function(rows)
        if isinstance(found, cutting.Inside):
            picked.append(len(found.group_N))
        return found

    (cut,) = find_cuts(fold, partial(quotas, config)).values()
    assert cut.keep == 4000 and picked[0] <= 50
    assert cutting.is_at_least(rows, [cut.at_least]).sum() == 4000


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
    part = tables([row(n, float(rng.random()), 1 + n % 7, n % 3, quality=str(n)) for n in range(300)])
    kept = {
        name: sum(
            one["selected"]
            for one in select(
                [part], Select(strategy=name, column="quality" if name == "column" else None, held_out_fraction=0)
            )
        )
        for name in STRATEGIES
    }
    assert set(kept.values()) == {120}


def test_a_group_too_small_for_its_fraction_keeps_nothing():
    part = tables([row(0)])
    config = Select(keep_fraction=0.4, held_out_fraction=0)
    assert [one["reason"] for one in select([part], config)] == ["below_cut"]
    (cut,) = cuts_of([[part]], config).values()
    assert dataclasses.astuple(cut)[:3] == (1, 1, 0)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"strategy": "best"}, "strategy"),
        ({"strategy": "column"}, "go together"),
        ({"column": "quality"}, "go together"),
        (
            {"num_samples": 5, "num_tokens": 5},
            "got num_samples and num_tokens of keep_fraction, num_samples, num_tokens, wanted one",
        ),
        ({"num_samples": 5, "keep_fraction": 0.4}, "got keep_fraction and num_samples of"),
        ({"keep_fraction": None}, "got none of"),
        ({"num_tokens": 5, "fraction_of": "cluster"}, "leave it out with num_tokens"),
        ({"min_ifd": 1.0}, "no IFD is at least"),
    ],
)
def test_contradictions_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        Select(**keys)


def test_a_budget_takes_the_place_of_the_default_fraction():
    """Also when a recorded config, with every key, is read again."""
    config = Select(num_tokens=5)
    assert config.keep_fraction is None and Select.model_validate_json(config.model_dump_json()) == config

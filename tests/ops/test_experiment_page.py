"""The page of an experiment: every difference is drawn with its interval, nothing breaks out, and missing figures do not break it."""

import numpy as np

from raypipe.ops.experiment import by_group, compare, mean_with_interval, sentence
from raypipe.ops.experiment_page import COLOURS, charts, render
from raypipe.ops.style import STYLES
from tests.ops.test_report_page import HOSTILE, PLOTLY, Page

DRIFT = {"median_response_tokens": 80.0, **dict.fromkeys(STYLES, 0.25)}


def make_results(name="night", group="rust", moved=0.2):
    rng = np.random.default_rng(0)
    values = {arm: rng.normal(1, 0.01, (3, 9)) for arm in ("random@0.4", "paper@0.4")}
    values["full"] = values["random@0.4"] + moved + rng.normal(0, 0.001, (3, 9))
    pairs = []
    for arm in ("paper@0.4", "full"):
        found = compare(values[arm], values["random@0.4"], lower_is_better=True)
        groups = by_group(values[arm], values["random@0.4"], [group] * 5 + [None] * 4, lower_is_better=True)
        said = sentence(arm, "random@0.4", "held-out loss", found)
        pairs.append({"arm": arm, "versus": "random@0.4", **found, "sentence": said, "by": {"language": groups}})
    trained = {
        "samples": 900.0,
        "target_tokens": 81_234.0,
        "steps": 60.0,
        "epochs": 2.5,
        "train_s": 90.0,
        "peak_memory_bytes": 2.5e9,
    }
    arms = [
        {
            "arm": arm, "runs": [f"{name}-{arm}-s{seed}" for seed in (1, 2, 3)], "kept": 360.0, **trained, "padding": None, "tokens_per_s": 812.0,
            "outcome": {**mean_with_interval(its), "by_seed": its.mean(1).tolist()}, "drift": DRIFT,
        }
        for arm, its in values.items()
    ]  # fmt: skip
    runs = {
        run: {"select": "select-0123456789ab", "train": "train-0123456789ab"} for arm in arms for run in arm["runs"]
    }
    return {
        "name": name, "created": "2026-11-28T05:00:00Z", "version": "0.1.0", "root": "/runs/x", "recipe": {"runs": runs},
        "outcome": "held_out_loss", "lower_is_better": True, "num_units": 9, "power": {"num_seeds": 3}, "all_scored": DRIFT, "arms": arms,
        "comparisons": pairs,
    }  # fmt: skip


def test_each_difference_is_a_dot_with_its_interval():
    """What the reader takes home; red means worse."""
    results = make_results()
    drawn = charts(results)["differences"]
    seeds, *dots = drawn["data"]
    assert len(seeds["x"]) == 6 and len(dots) == 2
    for dot, pair in zip(dots, results["comparisons"], strict=True):
        assert dot["x"] == [pair["mean"]] and dot["y"] == [f"{pair['arm']} \u2212 random@0.4"]
        assert dot["x"][0] + dot["error_x"]["array"][0] == pair["high"]
        assert abs(dot["x"][0] - dot["error_x"]["arrayminus"][0] - pair["low"]) < 1e-12
        assert dot["marker"]["color"] == COLOURS[pair["verdict"]]
    assert results["comparisons"][1]["verdict"] == "worse"
    assert drawn["layout"]["shapes"][0]["x0"] == 0 and "lower is better" in drawn["layout"]["xaxis"]["title"]["text"]
    assert len(charts(results)["outcomes"]["data"]) == 4


def test_everything_is_inside_and_nothing_breaks_out():
    """Values of a carried column are text from outside."""
    results = make_results(HOSTILE, HOSTILE)
    text = render(results)
    page = Page(text)
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3 and not any(tag == "img" for tag, _ in page.tags)
    assert "https://" not in text.replace(PLOTLY, "") and "Undefined" not in page.text()
    assert "full is worse than random@0.4" in page.text() and "81,234" in page.text()
    assert page.text().count("not distinguishable") >= 1

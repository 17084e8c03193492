"""The page of a sweep: nothing breaks out of it, and a criterion without numbers does not break it."""

import numpy as np
import pytest

from raypipe.ops import num_clusters
from raypipe.ops.sweep_page import charts, render
from tests.ops.test_num_clusters import row
from tests.ops.test_report_page import HOSTILE, PLOTLY, Page


def make_sweep(rows=None, name="nightly"):
    """As sweep.py makes it; every number made up."""
    ks = [5, 10, 20, 40, 80]
    rows = rows or [
        row(k, 5 / (n + 1), 0.2 - 0.01 * n, 900.0 / k, -1e6 + 1e4 * abs(k - 20), 0.9) for n, k in enumerate(ks)
    ]
    chosen = num_clusters.choices(rows)
    return {
        "name": name, "version": "0.1.0", "created": "2026-11-27T05:00:00Z", "root": "/runs/x", "metric": "cosine", "num_samples": 75_197,
        "recipe": {"embed": "embed-0123456789ab"}, "ks": [row["k"] for row in rows], "seeds": [42, 43, 44], "sample_rows": 50_000,
        "choices": chosen, "verdict": num_clusters.verdict(rows, chosen), "rows": rows,
    }  # fmt: skip


def test_what_is_chosen_is_marked_once_in_each_chart_and_column():
    """The mark is what a reader takes home."""
    sweep = make_sweep()
    drawn = Page(render(sweep)).charts()
    for name, k in sweep["choices"].items():
        marks = [trace for trace in drawn[name]["data"] if trace.get("text") == [f"k = {k}"]]
        assert len(marks) == 1 and marks[0]["x"] == [k]
        assert drawn[name]["layout"]["xaxis"]["type"] == "log"
    page = Page(render(sweep))
    assert sum(attributes.get("class") == "num chosen" for _, attributes in page.tags) == len(sweep["choices"])
    assert "no one of them is to be trusted alone" in page.text() and "75,197 samples" in page.text()


def test_everything_is_inside_and_nothing_breaks_out():
    """A run's name is text from outside, like all of the lake."""
    page = Page(text := render(make_sweep(name=HOSTILE)))
    assert text.count(PLOTLY) == 1 and "default-src 'none'" in text
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert len(scripts) == 3 and not any("src" in attributes for attributes in scripts)
    assert not [tag for tag, _ in page.tags if tag == "img"] and HOSTILE.split("\u2028")[0] in "".join(page.texts)


def test_criteria_without_numbers():
    """Of one cluster most are undefined: an empty chart, not a broken page."""
    rows = [row(k, silhouette=None, calinski_harabasz=None, bic=None, stability=None) for k in (1, 2)]
    text = Page(render(make_sweep(rows))).text()
    assert "No criterion can choose between these k" in text
    assert "Nothing can be said by the elbow of inertia, silhouette, Calinski-Harabasz, BIC and stability" in text


@pytest.mark.parametrize("num", [2, 5, 60])
def test_numbers_below_the_axis_have_room(num):
    """Sixty numbers over each other are none."""
    ticks = charts(make_sweep([row(k) for k in range(2, 2 + num)]))["bic"]["layout"]["xaxis"]["tickvals"]
    assert ticks[0] == 2 and np.diff(np.log(ticks)).min() >= 0.07 * np.log((1 + num) / 2) and len(ticks) >= min(num, 5)

"""The page of several runs: nothing breaks out of it, and a run that keeps nothing does not break it."""

from raypipe.ops.comparison_page import FIGURES, charts, render
from raypipe.ops.style import STYLES
from tests.ops.test_report_page import HOSTILE, PLOTLY, Page


def row(run, kept, share=0.25, median=100.0):
    return {
        "run": run, "kept": kept, "of_rows": 5000, "tokens": None if kept is None else 150.0 * kept, "samples": kept or 3000,
        "response_tokens": {"mean": 130.0, "median": median}, "instruction_tokens": {"mean": 50.0, "median": 40.0},
        "cluster_entropy": 3.0, **dict.fromkeys(STYLES, share),
    }  # fmt: skip


def make_comparison(name="night"):
    rows = [row(None, None, 0.2, 80.0), *(row(f"{name}@{n / 10}", 500 * n, 0.5 - n / 20) for n in range(1, 7))]
    return {
        "created": "2026-11-27T05:00:00Z", "version": "0.1.0", "root": "/runs/x", "num_rows": 5000, "measured_rows": 4000, "rows": rows,
        "recipe": {"runs": {run["run"]: ["select-0123456789ab", "abc"] for run in rows[1:]}},
    }  # fmt: skip


def test_each_run_has_a_bar_and_all_have_a_line():
    """By hand: 2 to the power of 3 bits are 8 clusters; the dotted line is what all scored samples have."""
    drawn = charts(make_comparison()["rows"])
    assert drawn.keys() == FIGURES.keys()
    bars, line = drawn["length"]["data"]
    assert (bars["x"], bars["y"], line["y"]) == ([f"0.{n}" for n in range(1, 7)], [100.0] * 6, [80.0] * 6)
    assert drawn["clusters"]["data"][0]["y"] == [8] * 6
    assert drawn["samples"]["data"][0]["y"] == [500 * n for n in range(1, 7)] and len(drawn["samples"]["data"]) == 1


def test_everything_is_inside_and_nothing_breaks_out():
    """A run's name is text from outside."""
    comparison = make_comparison(HOSTILE) | {"root": HOSTILE, "version": HOSTILE}
    comparison["rows"][1] |= {"response_tokens": None, "classes": None, "kept": 0, "tokens": 0.0}
    text = render(comparison)
    page = Page(text)
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3 and not any(tag == "img" for tag, _ in page.tags)
    assert "https://" not in text.replace(PLOTLY, "") and "Undefined" not in page.text()
    assert "measured on 4,000 rows, those of parts spread evenly over the lake" in page.text()

"""The page of an experiment: what `raypipe ablate` found, as a plain dict, to the text of one self-contained `index.html`.

A dot and an interval for each difference, with the line of no difference; beside it the outcome of each arm. Style, safety and what draws
the charts are those of the report's page.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from raypipe.ops.pages import Chart, fill
from raypipe.ops.style import STYLES

COLOURS = {"better": "--kept", "worse": "--drop", "not distinguishable": "--muted"}
OUTCOMES = {"held_out_loss": "held-out loss", "pass_at_1": "pass@1"}
UNITS = {"held_out_loss": "nats a token", "pass_at_1": "share of the problems"}


def render(results: Mapping[str, Any]) -> str:
    """The page, as text to be written in UTF-8. The same dict gives the same text."""
    outcome = results["outcome"]
    return fill(
        "experiment.html.j2",
        charts=charts(results),
        results=results,
        styles=list(STYLES),
        outcome=OUTCOMES[outcome],
        unit=UNITS[outcome],
    )


def charts(results: Mapping[str, Any]) -> dict[str, Chart]:
    pairs = [{**pair, "label": f"{pair['arm']} \u2212 {pair['versus']}"} for pair in results["comparisons"]]
    arms = [{**arm["outcome"], "label": arm["arm"], "verdict": "better"} for arm in results["arms"]]
    unit = UNITS[results["outcome"]]
    differences = interval_chart(
        pairs, f"difference, {unit}; lower is better" if results["lower_is_better"] else f"difference, {unit}"
    )
    line = {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "--ink", "dash": "dot", "width": 1},
    }
    differences["layout"]["shapes"] = [line]
    return {"differences": differences, "outcomes": interval_chart(arms, f"{OUTCOMES[results['outcome']]}, {unit}")}


def interval_chart(rows: Sequence[Mapping[str, Any]], unit: str) -> Chart:
    """From the top: a dot for the mean, a bar for its interval, small dots for seeds."""
    labels = [html.escape(row["label"], quote=False) for row in rows]
    seeds = [(value, label) for row, label in zip(rows, labels, strict=True) for value in row["by_seed"]]
    dots: Chart = {
        "type": "scatter",
        "mode": "markers",
        "x": [value for value, _ in seeds],
        "y": [label for _, label in seeds],
        "marker": {"color": "--all", "size": 6},
        "hovertemplate": "a seed: %{x:.4~g}<extra></extra>",
    }
    data = [dots]
    for row, label in zip(rows, labels, strict=True):
        colour = COLOURS[row["verdict"]]
        bar = {
            "type": "data",
            "symmetric": False,
            "array": [row["high"] - row["mean"]],
            "arrayminus": [row["mean"] - row["low"]],
        }
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [row["mean"]],
                "y": [label],
                "marker": {"color": colour, "size": 11},
                "error_x": bar | {"color": colour, "thickness": 2},
                "hovertemplate": f"{row['mean']:.4g} ({row['low']:.4g} to {row['high']:.4g})<extra></extra>",
            }
        )
    axes = {
        "xaxis": {"title": {"text": unit}},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": labels[::-1], "showgrid": False},
    }
    return {"data": data, "layout": {**axes, "showlegend": False, "margin": {"t": 16}}, "height": 110 + 42 * len(rows)}

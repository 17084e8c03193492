"""The page of several runs side by side: what each keeps, as a plain dict, to the text of one self-contained `index.html`.

Small multiples: a chart for each figure, a bar for each run, and as a dotted line what all scored samples have; style, safety and what
draws them are those of the report's page.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raypipe.ops.pages import Chart, fill, is_number
from raypipe.ops.style import STYLES

Row = Mapping[str, Any]
FIGURES: dict[str, tuple[str, str, str, Callable[[Row], float | None]]] = {  # title, unit, format, and how to find it
    "samples": ("Samples", "kept", ",", lambda row: row["kept"]),
    "tokens": ("Tokens", "of what is kept", ".3~s", lambda row: row["tokens"]),
    "clusters": (
        "Clusters",
        "as many equal ones would be filled as evenly",
        ".1f",
        lambda row: 2 ** row["cluster_entropy"],
    ),
    "length": ("Length", "median tokens of a response", ",", lambda row: (row["response_tokens"] or {}).get("median")),
    **{
        name: (name.capitalize(), "share of the responses", ".1%", lambda row, name=name: row[name])  # type: ignore[misc]
        for name in STYLES
    },
}


def render(comparison: Mapping[str, Any]) -> str:
    """The page, as text to be written in UTF-8. The same dict gives the same text."""
    rows = comparison["rows"]
    return fill(
        "comparison.html.j2",
        charts=charts(rows),
        comparison=comparison,
        rows=rows,
        figures=FIGURES,
        styles=list(STYLES),
    )


def charts(rows: Sequence[Row]) -> dict[str, Chart]:
    return {name: figure_chart(rows, name) for name in FIGURES}


def figure_chart(rows: Sequence[Row], name: str) -> Chart:
    _, unit, shown, value = FIGURES[name]
    labels = [
        html.escape(row["run"].partition("@")[2] or row["run"], quote=False) for row in rows if row["run"] is not None
    ]
    values = [value(row) for row in rows if row["run"] is not None]
    bars = {
        "type": "bar",
        "x": labels,
        "y": values,
        "marker": {"color": "--kept"},
        "hovertemplate": f"%{{x}}: %{{y:{shown}}}<extra></extra>",
    }
    data: list[Chart] = [bars]
    everything = next((value(row) for row in rows if row["run"] is None), None)
    if is_number(everything):
        line = {
            "type": "scatter",
            "mode": "lines",
            "x": labels,
            "y": [everything] * len(labels),
            "line": {"color": "--ink", "dash": "dot", "width": 2},
        }
        data.append(line | {"name": "all scored", "hovertemplate": f"all scored: %{{y:{shown}}}<extra></extra>"})
    axes = {
        "xaxis": {"type": "category", "showgrid": False},
        "yaxis": {"title": {"text": unit}, "tickformat": shown, "rangemode": "tozero"},
    }
    return {"data": data, "layout": {**axes, "showlegend": False, "margin": {"t": 16}, "bargap": 0.35}, "height": 300}

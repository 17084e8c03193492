"""The page of `raypipe sweep-k`: what a sweep found, as a plain dict, to the text of one self-contained `index.html`.

Small multiples: a chart for each criterion over k on a log axis, with the spread over seeds and the k that it chooses; style,
safety and what draws them are those of the report's page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raypipe.ops.pages import Chart, fill, short

LEAST_APART = 0.07  # of the axis, between two ticks with a number
TITLES = {  # and what the reader needs to know below each
    "inertia": (
        "Inertia",
        "mean squared distance",
        "To the nearest centre: it falls with every k. Marked is its elbow, farthest below the dotted chord; other k at the ends, another elbow.",
    ),
    "silhouette": ("Silhouette", "simplified silhouette, \u22121 to 1", "High is good: rows lie nearer to their own centre than to the next."),
    "calinski_harabasz": ("Calinski-Harabasz", "ratio, no unit", "High is good: squares between clusters over squares within them."),
    "bic": ("BIC", "nats \u00d7 2", "Low is good: spherical Gaussians of one shared variance, with a price for each centre."),
    "stability": ("Stability", "adjusted Rand index, 0 is chance", "High is good: other seeds find the same clusters."),
}  # fmt: skip


def render(sweep: Mapping[str, Any]) -> str:
    """The page, as text to be written in UTF-8. The same dict gives the same text."""
    return fill("sweep.html.j2", charts=charts(sweep), sweep=sweep, titles=TITLES)


def charts(sweep: Mapping[str, Any]) -> dict[str, Chart]:
    rows, chosen = sweep["rows"], sweep["choices"]
    drawn = {name: criterion_chart(rows, name, chosen.get(name)) for name in TITLES}
    return {**drawn, "sizes": sizes_chart(rows)}


def criterion_chart(rows: Sequence[Mapping[str, Any]], name: str, chosen: int | None) -> Chart:
    """The mean over seeds as a line, lowest to highest as bars, the chosen k as a diamond with its number."""
    known = [row for row in rows if row[name] is not None]
    ks, means = [row["k"] for row in known], [row[name]["mean"] for row in known]
    up, down = ([abs(row[name][end] - row[name]["mean"]) for row in known] for end in ("high", "low"))
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": "--muted", "thickness": 1.2}
    shown = "%{y:,.4~g}" if name == "bic" else "%{y:,.4~r}"
    line = _points(ks, means, {"color": "--kept", "size": 7}, f"k = %{{x:,}}: {shown}<extra></extra>")
    data = [line | {"mode": "lines+markers", "error_y": bars, "line": {"color": "--kept", "width": 1.5}}]
    if chosen is not None and chosen in ks:
        mark = _points([chosen], [means[ks.index(chosen)]], {"color": "--drop", "size": 13, "symbol": "diamond"}, "")
        under = "bottom" if name in ("inertia", "bic") else "top"  # away from the line
        beside = (
            "right"
            if chosen == rows[0]["k"]
            else "left"
            if chosen == rows[-1]["k"]
            else "left"
            if under == "bottom"
            else "center"
        )
        label = {"text": [f"k = {chosen:,}"], "textposition": f"{under} {beside}", "textfont": {"color": "--drop"}}
        data.append(mark | label | {"mode": "markers+text", "hoverinfo": "skip"})
        if name == "inertia":
            chord = {"mode": "lines", "hoverinfo": "skip", "line": {"color": "--all", "width": 1.5, "dash": "dot"}}
            data.insert(0, {"type": "scatter", "x": [ks[0], ks[-1]], "y": [means[0], means[-1]], **chord})
    across: Chart = {"title": {"text": TITLES[name][1]}, "tickformat": "~s" if name == "bic" else "~r"}
    ends = [row[name][end] for row in known for end in ("low", "high")]
    if ends:
        room = 0.16 * (max(ends) - min(ends) or abs(max(ends)) or 1)
        across["range"] = [min(ends) - room, max(ends) + room]
    return _chart(rows, data, across)


def sizes_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Shares of the rows in the largest and the smallest cluster, and what equal clusters would have."""
    data, ks = [], [row["k"] for row in rows]
    equal = [1 / k for k in ks]
    for name, colour, shares in (
        ("largest", "--drop", [row["largest"] for row in rows]),
        ("equal", "--all", equal),
        ("smallest", "--kept", [row["smallest"] or None for row in rows]),
    ):
        line = _points(ks, shares, {"color": colour, "size": 7}, f"k = %{{x:,}}, {name}: %{{y:.3%}}<extra></extra>")
        dash = "dot" if name == "equal" else "solid"
        data.append(
            line | {"mode": "lines+markers", "name": name, "line": {"color": colour, "width": 1.5, "dash": dash}}
        )
    shares = [share for trace in data for share in trace["y"] if share]
    ticks = [10.0**power for power in range(math.floor(math.log10(min(shares))), 1)]
    texts = [f"{short(100 * tick)}\u00a0%" for tick in ticks]
    across = {"title": {"text": "share of the rows"}, "type": "log", "tickvals": ticks, "ticktext": texts}
    return _chart(rows, data, across, legend=True)


def _chart(rows: Sequence[Mapping[str, Any]], data: list[Chart], up: Chart, *, legend: bool = False) -> Chart:
    ends = [math.log10(rows[0]["k"]), math.log10(rows[-1]["k"])]
    room = 0.06 * (ends[1] - ends[0])
    ticks = _apart([row["k"] for row in rows])
    across = {"type": "log", "title": {"text": "k, clusters"}, "range": [ends[0] - room, ends[1] + room]}
    across |= {"tickvals": ticks, "ticktext": [f"{k:,}" for k in ticks]}
    return {
        "data": data,
        "layout": {"xaxis": across, "yaxis": up, "showlegend": legend, "margin": {"t": 36 if legend else 16}},
        "height": 320,
    }


def _apart(ks: Sequence[int]) -> list[int]:
    """Those with room for their number on a log axis, from the first on."""
    kept = [ks[0]]
    for k in ks[1:]:
        if math.log(k / kept[-1]) >= LEAST_APART * math.log(ks[-1] / ks[0]):
            kept.append(k)
    return kept


def _points(ks: Sequence[int], values: Sequence[float | None], marker: Chart, hint: str) -> Chart:
    trace: Chart = {"type": "scatter", "x": ks, "y": values, "marker": marker, "cliponaxis": False}
    return trace | ({"hovertemplate": hint} if hint else {})

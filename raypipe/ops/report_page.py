"""The report's page: a plain dict in, the text of one self-contained `index.html` out.

A customer opens the page from a mail or a bucket, perhaps years later and off line. So everything is inside: style,
numbers, texts and Plotly's JavaScript, and a content security policy keeps the browser from asking anything outside.
Words and style are in the template; here are the charts, as plain dicts (Plotly's JSON) that the browser draws as SVG.
A colour is the name of a CSS variable (`--kept`), so one chart serves light, dark and paper. All text comes from the
lake and is hostile until escaped: Jinja does it in HTML, `tojson` in scripts, `_label` in charts (Plotly reads `<b>`).

Every key of the dict but `name` may be missing or None: its section, chart, sentence or cell is then left out.

Cost: 4.8 MB for Plotly's JavaScript, some 100 bytes a point of the map, the exemplars' texts; under a second.
"""

import html
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from raypipe.ops.composition import LANGUAGE_TEXTS
from raypipe.ops.pages import MINUS, Chart, count, fill, fixed, is_number, percent, seconds, short
from raypipe.ops.selection import SELECTED
from raypipe.ops.style import STYLES

Bar = tuple[str, float, float, str]  # label, start, length, text

NUM_COLOURS = 10  # --c0 .. --c9 in the template, told apart by colour-blind readers; beyond, the symbol changes
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")

GROUPS = {"kept": ("--kept", "circle"), "dropped": ("--drop", "x-thin"), "random": ("--muted", "circle-open")}
NUM_LANGUAGES = 9
LANGUAGE_NAMES = {"txt": "prose", "cs": "c#", "cpp": "c++", "unknown": "not told"}  # for what magika calls them
HINT_CHARACTERS = 180  # of an instruction, at a point of the map

AXES = {
    "ifd": "IFD (a ratio, no unit)",
    "perplexity_conditional": "PPL(response | instruction), no unit",
    "perplexity_unconditional": "PPL(response), no unit",
    "response_tokens": "tokens in the response",
    "instruction_tokens": "tokens in the instruction",
}


def render(report: dict[str, Any]) -> str:
    """The page, as text to be written in UTF-8. The same dict gives the same text."""
    samples = report.get("samples") or []
    values = {"report": report, "samples": samples, "styles": list(STYLES), "num_colours": NUM_COLOURS}
    values["language_texts"] = LANGUAGE_TEXTS
    return fill("report.html.j2", charts=charts(report), **values)


def charts(report: dict[str, Any]) -> dict[str, Chart]:
    """By the id of the element that a chart is drawn into; only those whose numbers are there."""
    drawn: dict[str, Chart] = {}
    histograms, medians = report.get("histograms") or {}, report.get("medians") or {}
    for name, axis in AXES.items():
        if _has(histograms.get(name), "edges", "all"):
            limit = report.get("max_ifd") if name == "ifd" else None
            lengths = medians.get(name) if name.endswith("_tokens") else None
            drawn[name] = histogram_chart(histograms[name], axis, _marks(limit, lengths or {}))
    flow = report.get("flow") or []
    if flow and all(is_number(step.get(key)) for step in flow for key in ("rows_in", "rows_out")):
        drawn["flow"] = flow_chart(flow)
    groups = (report.get("composition") or {}).get("groups") or {}
    if groups := {name: figures for name, figures in groups.items() if figures}:
        drawn["styles"] = shares_chart(
            {name: {key: figures.get(key) for key in STYLES} for name, figures in groups.items()}
        )
        drawn["languages"] = shares_chart(_languages(groups))
    if any(is_number(sample.get("x")) for sample in report.get("samples") or []):
        drawn["map"] = map_chart(report["samples"])
    if _has(report.get("training"), "step", "loss"):
        drawn["training"] = training_chart(report["training"])
    if any(step.get("wall_s") for step in report.get("time") or []):
        drawn["time"] = time_chart(report["time"])
    return drawn


def flow_chart(flow: Sequence[dict[str, Any]]) -> Chart:
    """A waterfall from top to bottom: what is left after each stage, and between, each reason at the place it takes."""
    first = flow[0]["rows_in"]
    stays: list[Bar] = [("rows read", 0, first, count(first))]
    leaves: list[Bar] = []
    order = ["rows read"]
    for step in flow:
        left = step["rows_in"]
        for reason, num in sorted((step.get("reasons") or {}).items(), key=lambda item: (-item[1], item[0])):
            left -= num
            order.append(_label(f"{step['stage']}: {reason}"))
            leaves.append((order[-1], left, num, f"{MINUS}{count(num)} ({percent(num / max(step['rows_in'], 1))})"))
        order.append(_label(f"after {step['stage']}"))
        stays.append((order[-1], 0, step["rows_out"], count(step["rows_out"])))
    layout = {"barmode": "overlay", "bargap": 0.25, "xaxis": _axis("rows", range=[0, first * 1.25 or 1])}
    layout["yaxis"] = _rows(len(order)) | {"categoryorder": "array", "categoryarray": order}
    stay, leave = _bars("rows that go on", "--kept", stays), _bars("rows that leave", "--drop", leaves)
    return {"data": [stay, leave], "layout": layout, "height": 90 + 25 * len(order)}


def histogram_chart(histogram: dict[str, Any], axis: str, marks: Sequence[tuple[float, str, str]]) -> Chart:
    """Bars between the given edges, kept before all. `marks` are vertical lines: (x, text, colour), at most two."""
    edges = [float(edge) for edge in histogram["edges"]]
    everything, kept = histogram["all"], histogram.get("selected")
    widths = [right - left for left, right in pairwise(edges)]
    is_log = median(widths) > 2 * min(widths) and edges[1] > 0  # a wide last bin alone is not a log scale
    if is_log and edges[0] <= 0:  # the first bin starts at 0, which a log axis has no place for
        edges[0] = widths[0] = edges[1] / 2
    hints = [
        f"{short(left)} to {short(right)}<br>all: {count(num)}"
        for (left, right), num in zip(pairwise(edges), everything, strict=True)
    ]
    bars = {"type": "bar", "x": edges[:-1], "width": widths, "offset": 0}
    more = {"hovertext": hints, "hovertemplate": "%{hovertext}<extra></extra>"}
    data: list[dict[str, Any]] = [bars | more | {"name": "all scored", "y": everything, "marker": {"color": "--all"}}]
    if kept:
        more["hovertext"] = [f"{hint}<br>kept: {count(num)}" for hint, num in zip(hints, kept, strict=True)]
        data[0] |= more
        data.append(bars | {"name": "kept", "y": kept, "marker": {"color": "--kept"}, "hoverinfo": "skip"})
    top = max(*everything, 1)
    data += [_mark(mark, top, "left" if i == 0 and len(marks) > 1 else "right") for i, mark in enumerate(marks)]
    ends = (edges[0], max([edges[-1], *(x for x, _, _ in marks)]))
    across = _log_ticks(*ends) if is_log else {"range": ends}
    up = _axis("samples", tickformat=",", range=[0, top * (1.28 if marks else 1.06)])
    layout = {"barmode": "overlay", "hovermode": "x", "xaxis": _axis(axis, showgrid=False, **across), "yaxis": up}
    return {"data": data, "layout": layout, "height": 340}


def shares_chart(groups: Mapping[str, Mapping[str, float | None]]) -> Chart:
    """A row for each key, a dot for each group: what lies apart is what selection moved."""
    keys = list(dict.fromkeys(key for shares in groups.values() for key in shares))
    data = []
    for name, shares in groups.items():
        colour, symbol = GROUPS.get(name, ("--muted", "circle"))
        known = [key for key in keys if is_number(shares.get(key))]
        trace: Chart = {"type": "scatter", "mode": "markers", "name": _label(name), "y": [_label(key) for key in known]}
        trace |= {
            "x": [shares[key] for key in known],
            "hovertemplate": "%{y}: %{x:.1%}<extra>" + _label(name) + "</extra>",
        }
        data.append(
            trace | {"marker": {"color": colour, "symbol": symbol, "size": 12, "line": {"width": 2, "color": colour}}}
        )
    up = {"range": [len(keys) - 0.5, -0.5], "categoryorder": "array", "categoryarray": [_label(key) for key in keys]}
    across = _axis("share of the responses", tickformat=".0%", rangemode="tozero")
    return {"data": data, "layout": {"xaxis": across, "yaxis": up}, "height": 130 + 34 * len(keys)}


def _languages(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The commonest few over all groups; the rest together."""
    found = {name: figures.get("languages") or {} for name, figures in groups.items()}
    total: Counter[str] = Counter()
    for shares in found.values():
        total.update(shares)
    common = [name for name, _ in total.most_common(NUM_LANGUAGES)]
    return {
        name: {LANGUAGE_NAMES.get(key, key): shares.get(key, 0.0) for key in common}
        | {"others": sum(share for key, share in shares.items() if key not in common)}
        for name, shares in found.items()
        if shares
    }


def map_chart(samples: Sequence[dict[str, Any]]) -> Chart:
    """Two traces a cluster, one legend entry: kept ones filled, dropped ones open and faint (drawn first). A point's `customdata` is
    its place among the samples; `meta` of a trace says what the page's filter asks."""
    members: dict[tuple[bool, int], list[int]] = {}
    for place, sample in enumerate(samples):
        if is_number(sample.get("x")):
            members.setdefault((sample["reason"] == SELECTED, sample["cluster_id"]), []).append(place)
    data = []
    for (is_kept, cluster), places in sorted(members.items()):
        symbol = SYMBOLS[cluster // NUM_COLOURS % len(SYMBOLS)] + ("" if is_kept else "-open")
        trace: Chart = {"type": "scatter", "mode": "markers", "name": f"cluster {cluster}", "legendgroup": str(cluster)}
        trace |= {axis: [samples[place][axis] for place in places] for axis in ("x", "y")}
        trace |= {"customdata": places, "meta": {"cluster": cluster, "kept": is_kept}}
        trace["text"] = [_hint(samples[place]) for place in places]
        trace["hovertemplate"] = f"cluster {cluster}, {'kept' if is_kept else 'not kept'}<br>%{{text}}<extra></extra>"
        trace["marker"] = {"color": f"--c{cluster % NUM_COLOURS}", "size": 7, "symbol": symbol}
        trace["marker"]["opacity"] = 0.85 if is_kept else 0.5
        data.append(trace | {"showlegend": is_kept or (True, cluster) not in members, "legendrank": cluster})
    legend = {"y": -0.14, "yanchor": "top", "itemsizing": "constant"}
    num = len({cluster for _, cluster in members})
    layout = {"dragmode": "zoom", "legend": legend, "showlegend": num <= 40, "margin": {"t": 16}}
    for axis, which in (("x", "first"), ("y", "second")):
        ends = [edge(value for trace in data for value in trace[axis]) for edge in (min, max)]
        room = 0.04 * (ends[1] - ends[0]) or 1  # a fixed range, so that a filter does not move what is left
        title = f"{which} principal component (no unit)"
        layout[f"{axis}axis"] = _axis(title, zeroline=False, range=[ends[0] - room, ends[1] + room])
    return {"data": data, "layout": layout, "height": 590 + 3 * min(num, 40)}


def _hint(sample: Mapping[str, Any]) -> str:
    """What is shown at a point: numbers, and the begin of the instruction where the report holds texts."""
    numbers = f"IFD {fixed(sample.get('ifd'))}, {count(sample.get('response_tokens'))} tokens"
    text = " ".join((sample.get("instruction") or sample["sample_id"])[:HINT_CHARACTERS].split())
    return "<br>".join([numbers, *map(_label, textwrap.wrap(text, 60))])


def training_chart(training: dict[str, Any]) -> Chart:
    """Loss by step, held-out points on it; the learning rate, where known, in a strip below that shares the steps."""
    data = [_line("training batches", training["step"], training["loss"], {"color": "--kept", "width": 1.5})]
    layout: dict[str, Any] = {"xaxis": _axis("optimiser step"), "yaxis": _axis("loss (nats per token)")}
    held_out = training.get("held_out")
    if held_out:
        steps, losses = ([point[key] for point in held_out] for key in ("step", "loss"))
        dots = _line("held out", steps, losses, {"color": "--drop", "width": 1.5, "dash": "dot"})
        data.append(dots | {"mode": "lines+markers", "marker": {"size": 9, "symbol": "diamond"}})
    if training.get("learning_rate"):
        rate = _line("learning rate", training["step"], training["learning_rate"], {"color": "--muted", "width": 1.5})
        data.append(
            rate | {"yaxis": "y2", "showlegend": False, "hovertemplate": "step %{x:,}: %{y:.2e}<extra></extra>"}
        )
        layout["xaxis"]["anchor"], layout["yaxis"]["domain"] = "y2", [0.34, 1]
        layout["yaxis2"] = _axis(
            "learning rate", domain=[0, 0.25], tickformat="", exponentformat="e", nticks=4, rangemode="tozero"
        )
    return {"data": data, "layout": layout, "height": 500}


def time_chart(times: Sequence[dict[str, Any]]) -> Chart:
    """Wall and actor time side by side for each stage, in the unit that suits the longest."""
    longest = max(step.get(key) or 0 for step in times for key in ("wall_s", "actor_s"))
    unit, divisor = ("seconds", 1) if longest < 300 else ("minutes", 60) if longest < 10800 else ("hours", 3600)
    data = []
    for key, name, colour in (("wall_s", "wall time", "--kept"), ("actor_s", "actor time (sum over actors)", "--all")):
        known = [step for step in times if step.get(key) is not None]
        data.append(_bars(name, colour, [(_label(s["stage"]), 0, s[key] / divisor, seconds(s[key])) for s in known]))
    layout = {"barmode": "group", "bargap": 0.3, "yaxis": _rows(len(times))}
    layout["xaxis"] = _axis(unit, range=[0, longest / divisor * 1.15])
    return {"data": data, "layout": layout, "height": 100 + 42 * len(times)}


def _bars(name: str, colour: str, bars: Sequence[Bar]) -> Chart:
    """Horizontal bars; the outline keeps a very short one visible."""
    labels, starts, lengths, texts = zip(*bars, strict=True) if bars else ((), (), (), ())
    trace: Chart = {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": labels,
        "base": starts,
        "x": lengths,
        "text": texts,
    }
    trace |= {"textposition": "outside", "cliponaxis": False, "hovertemplate": "%{y}: %{text}<extra></extra>"}
    return trace | {"marker": {"color": colour, "line": {"color": colour, "width": 1}}}


def _line(name: str, x: Sequence[float], y: Sequence[float], line: dict[str, Any]) -> dict[str, Any]:
    hint = f"step %{{x:,}}: %{{y:.3f}}<extra>{name}</extra>"
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line, "hovertemplate": hint}


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "tickformat": ",", **more}


def _rows(num: int) -> dict[str, Any]:
    """The axis of `num` horizontal bars, the first on top."""
    return {"range": [num - 0.4, -0.6], "showgrid": False}


def _marks(limit: float | None, medians: dict[str, Any]) -> list[tuple[float, str, str]]:
    """Vertical lines of a histogram, left to right: the limit, or the two medians."""
    marks = [] if limit is None else [(limit, f"limit {limit:g}", "--drop")]
    for key, name in (("all", "all"), ("selected", "kept")):
        if medians.get(key) is not None:
            marks.append((medians[key], f"median<br>{name}: {short(medians[key])}", "--ink"))
    return sorted(marks)


def _mark(mark: tuple[float, str, str], top: float, side: str) -> dict[str, Any]:
    """A line is a trace, not a shape: shapes and annotations disagree about what x means on a log axis."""
    x, text, colour = mark
    apart = "\u00a0" + text.replace("<br>", "\u00a0<br>\u00a0") + "\u00a0"
    trace: Chart = {"type": "scatter", "mode": "lines+text", "x": [x, x], "y": [0, top * 1.06], "text": ["", apart]}
    trace |= {"textposition": f"top {side}", "textfont": {"color": colour}, "hoverinfo": "skip", "showlegend": False}
    return trace | {"line": {"color": colour, "width": 2, "dash": "dash"}}


def _log_ticks(left: float, right: float) -> dict[str, Any]:
    """Ticks at 1, 2, 5 of each decade (only at 1 over more than three), written out."""
    low, high = math.log10(left), math.log10(right)
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": [short(tick) for tick in ticks]}


def _label(text: object) -> str:
    return html.escape(str(text), quote=False)


def _has(value: Any, *keys: str) -> bool:
    return bool(value) and all(value.get(key) for key in keys)

"""The report's page: nothing from outside, nothing breaks out, nothing missing breaks it."""

import copy
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from raypipe.ops import pages, report_page
from raypipe.ops.style import STYLES

PLOTLY = get_plotlyjs()
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 {{ 7 * 7 }} <!-- & \"'"


class Page(HTMLParser):
    """Collects tags with their attributes, and what stands in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.texts: list[str] = []
        assert text.count(PLOTLY) <= 1
        self.feed(text.replace(PLOTLY, ""))  # 4.8 MB that take long to read
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.raw if self.cdata_elem else self.texts).append(data)

    def charts(self) -> dict[str, Any]:
        """As the browser parses it, by the id of its element."""
        found: dict[str, Any] = json.loads(next(text for text in self.raw if text.startswith('{"')))
        return found

    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def histogram(values: NDArray[Any], kept: NDArray[np.bool_], edges: NDArray[Any]) -> dict[str, list[float]]:
    all_counts, kept_counts = (np.histogram(part, edges)[0] for part in (values, values[kept]))
    return {"edges": edges.tolist(), "all": all_counts.tolist(), "selected": kept_counts.tolist()}


def sample(rng: np.random.Generator, place: int, cluster: int, kept: bool, ifd: float) -> dict[str, Any]:
    response = f"def merge(intervals):\n    # variant {place}, {'long ' * 40}\n    return sorted(intervals)\n"
    return {
        "sample_id": rng.bytes(16).hex(), "instruction": f"Write a function that merges intervals ({place}).",
        "response": response * (1 + place % 3), "ifd": ifd, "ppl_conditional": 3.1, "ppl_unconditional": 3.9,
        "reason": "selected" if kept else "below_cut", "cluster_id": cluster, "response_tokens": 30 + place % 50,
    }  # fmt: skip


def group(rng: np.random.Generator, num: int) -> dict[str, Any]:
    share = rng.uniform(0.05, 0.4, 5).tolist()
    return {
        "samples": num, "response_tokens": {"mean": 120.5, "median": 100.0}, "instruction_tokens": {"mean": 60.1, "median": 50.0},
        **dict(zip(STYLES, share, strict=True)), "cluster_entropy": 3.1, "languages": {"python": 0.7, "txt": 0.2, "cpp": 0.1},
        "distinct_ngrams": {"1": 0.1, "2": 0.4, "3": 0.6},
    }  # fmt: skip


def make_report(num_clusters: int = 10, num_exemplars: int = 3) -> dict[str, Any]:
    """What a run over 3,075 rows would report; every number drawn, none measured."""
    rng = np.random.default_rng(42)
    num = 2990
    ppl_without = rng.lognormal(1.6, 0.7, num) + 1
    ifd = np.clip(rng.normal(0.72, 0.17, num), 0.05, 1.98)
    tokens = np.clip(rng.lognormal(4.6 + 1.5 * (ifd - 0.7), 0.8), 1, 4000).astype(int)
    prompts = np.clip(rng.lognormal(3.8, 0.6, num), 3, 2000).astype(int)
    clusters = rng.integers(0, num_clusters, num)
    cuts = {c: np.quantile(ifd[(clusters == c) & (ifd < 1)], 0.6) for c in range(num_clusters)}
    kept = (ifd < 1) & (ifd >= np.array([cuts[c] for c in clusters]))
    spots = rng.normal(0, 0.35, (num_clusters, 2))[clusters] + rng.normal(0, 0.1, (num, 2))
    drawn = rng.permutation(num)[:2000].tolist()
    steps = np.arange(1, 121)
    quantities = {
        "ifd": (ifd, np.linspace(0, 2, 81)),
        "perplexity_conditional": (ppl_without * ifd, np.geomspace(0.5, 200, 61)),
        "perplexity_unconditional": (ppl_without, np.geomspace(0.5, 200, 61)),
        "response_tokens": (tokens, np.geomspace(1, 4096, 49)),
        "instruction_tokens": (prompts, np.geomspace(1, 4096, 49)),
    }
    num_kept, num_high = int(kept.sum()), int((ifd >= 1).sum())
    return {
        "name": "demo", "created": "2026-11-23T08:00:00Z", "version": "0.1.0", "root": "runs/demo",
        "versions": {"python": "3.11.9", "ray": "2.60.0", "torch": "2.9.1", "transformers": "5.1.0"},
        "folders": {"ingest": "ingest-3fa9c1d2b0aa", "clean": "clean-0c88d7e15f20", "score": "score-b81c22e0f311"},
        "headline": {
            "rows_read": 3075, "rejected": 15, "samples": 3000, "scored": num, "ifd_ge_max": num_high,
            "selected": num_kept, "fill": 0.998, "padding_avoided": 0.41, "held_out_loss_before": 0.61,
            "held_out_loss_after": 0.54,
        },
        "flow": [
            {"stage": "ingest", "rows_in": 3075, "rows_out": 3060, "reasons": {"empty_response": 9, "not_json": 6}},
            {"stage": "clean", "rows_in": 3060, "rows_out": 3000, "reasons": {"duplicate": 60}},
            {"stage": "score", "rows_in": 3000, "rows_out": num, "reasons": {"truncated": 10}},
            {"stage": "select", "rows_in": num, "rows_out": num_kept,
             "reasons": {"held_out": 31, "ifd_too_high": num_high, "below_cut": num - 31 - num_high - num_kept}},
            {"stage": "pack", "rows_in": num_kept, "rows_out": num_kept - 4, "reasons": {"too_long": 4}},
        ],
        "histograms": {name: histogram(values, kept, edges) for name, (values, edges) in quantities.items()},
        "medians": {name: {"all": float(np.median(values)), "selected": float(np.median(values[kept]))}
                    for name, (values, _) in quantities.items()},
        "max_ifd": 1.0, "keep_fraction": 0.4, "strategy": "paper",
        "clusters": [
            {"cluster_id": c, "size": int((clusters == c).sum()), "eligible": int(((clusters == c) & (ifd < 1)).sum()),
             "selected": int((kept & (clusters == c)).sum()), "cut_ifd": float(cuts[c]),
             "median_ifd": float(np.median(ifd[clusters == c])), "mean_sq_distance": float(rng.uniform(0.3, 0.5)),
             "composition": {name: {"samples": 100, "response_tokens": 120.5, "instruction_tokens": 61.0} | dict.fromkeys(STYLES, 0.25)
                             for name in ("kept", "dropped", "random")}}
            for c in range(num_clusters)
        ],
        "projection": {"num_points": 2000, "num_samples": 2959, "explained_variance": 0.31},
        "composition": {
            "measured_samples": 2959, "measured_parts": 3, "num_parts": 3, "measured_texts": 2000,
            "groups": {name: group(rng, 1000) for name in ("kept", "dropped", "random")},
        },
        "samples": [
            *(sample(rng, n, int(clusters[n]), bool(kept[n]), float(ifd[n])) | {"x": float(spots[n, 0]), "y": float(spots[n, 1])}
              for n in drawn),
            *(sample(rng, n, c, n < 2, 0.8 - n / 20) | {"near_centre": True} for c in range(num_clusters) for n in range(num_exemplars)),
        ],
        "training": {
            "step": steps.tolist(), "loss": (0.5 + 2.6 * np.exp(-steps / 18) + rng.normal(0, 0.05, 120)).tolist(),
            "learning_rate": (5e-5 * np.minimum(steps / 15, 0.5 + 0.5 * np.cos(np.pi * steps / 120))).tolist(),
            "held_out": [{"step": 0, "loss": 3.1}, {"step": 60, "loss": 0.62}, {"step": 120, "loss": 0.54}],
            "paired": {"num_samples": 150, "mean_difference": -0.12, "standard_error": 0.01},
            "num_workers": 2, "tokens_per_s": 12000, "peak_memory_bytes": 3_400_000_000, "padding": 0.002,
            "by_cluster": [{"cluster": n, "num_samples": 9 - n, "loss_before": 3.0 + n / 10, "loss_after": 0.5} for n in range(4)],
        },
        "time": [
            {"stage": stage, "wall_s": wall, "actor_s": actor, "parts": 10, "bytes": 1234567}
            for stage, wall, actor in [("ingest", 3.1, 1.0), ("clean", 2.2, 1.4), ("embed", 41.0, 78.2),
                                       ("cluster", 6.4, 7.9), ("score", 118.3, 226.0), ("select", 1.9, 0.6),
                                       ("pack", 2.8, 2.1), ("train", 240.5, 478.0)]
        ],
        "warnings": ["selection favours long responses: median 98 -> 131 tokens. Compare with cluster_random"],
    }  # fmt: skip


def test_page_asks_nothing_from_outside() -> None:
    """A customer off line would see a page without charts, or tell a third party that the report was opened."""
    text = report_page.render(make_report())
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    own = text.replace(PLOTLY, "")
    assert "</script" not in PLOTLY.lower() and "<!--" not in PLOTLY  # either would end or bend our script tag
    assert len(own) < len(text) < 8_000_000
    assert not re.search(r"https?://|@import|url\(|//cdn", own)
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none';")


def test_hostile_text_stays_text() -> None:
    """A sample that closes our script tag would run its author's code in the customer's browser."""
    clean = make_report()
    report = copy.deepcopy(clean)
    report |= {"name": HOSTILE, "root": HOSTILE, "version": HOSTILE, "created": HOSTILE, "warnings": [HOSTILE]}
    report |= {"versions": {HOSTILE: HOSTILE}, "folders": {HOSTILE: HOSTILE}}
    for place in (0, -1):  # on the map; beside it
        report["samples"][place] |= {
            "instruction": HOSTILE,
            "response": HOSTILE,
            "sample_id": HOSTILE,
            "reason": HOSTILE,
        }
    report["samples"][1] |= {"instruction": None, "sample_id": HOSTILE}
    report["composition"]["groups"][HOSTILE] = {**report["composition"]["groups"]["kept"], "languages": {HOSTILE: 1.0}}
    report["flow"][0] = {"stage": HOSTILE, "rows_in": 3075, "rows_out": 3060, "reasons": {HOSTILE: 15}}
    report["time"][0]["stage"] = HOSTILE
    page = Page(report_page.render(report))
    scripts = [tag for tag, _ in page.tags if tag == "script"]
    assert len(scripts) == 5 and not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text().count("<img src=x onerror=alert(2)>") >= 10
    for chart in page.charts().values():  # Plotly reads markup in labels and hints: only our own line breaks are left
        assert not re.search(r"<(?!br>|extra>|/extra>)", json.dumps(chart))


@pytest.mark.parametrize("empty", [None, "absent", "hollow"])
def test_what_is_missing_is_left_out(empty: str | None) -> None:
    """The report of `--until select` has no training; it must still be a page, without a section of blanks."""
    full = make_report()
    for key in set(full) - {"name"}:
        report = {**full, key: None} if empty is None else {k: v for k, v in full.items() if k != key}
        if empty == "hollow":
            report[key] = type(full[key])()
        page = Page(report_page.render(report))
        assert "Undefined" not in page.text() and "None" not in page.text(), key
        ids = {attributes["id"] for tag, attributes in page.tags if attributes.get("class") == "chart"}
        assert ids == set(page.charts()), key
        assert key not in ids


def test_name_alone_makes_a_page_without_charts() -> None:
    """A run stopped at ingest has little to tell; 4.8 MB of Plotly for no chart would be a waste."""
    text = report_page.render({"name": "demo"})
    assert len(text) < 20_000
    assert not any(tag in {"script", "section"} for tag, _ in Page(text).tags)


def test_every_value_one_level_down_may_be_missing() -> None:
    """A stage that could not tell one number would otherwise cost the whole report, after hours of work."""
    full = make_report(num_clusters=2)
    for key, value in full.items():
        for place, inner in value.items() if isinstance(value, dict) else ():
            report = {**full, key: {**value, place: None}}
            assert "Undefined" not in Page(report_page.render(report)).text(), (key, place)
            if isinstance(inner, dict):
                for deep in inner:
                    report_page.render({**full, key: {**value, place: {**inner, deep: None}}})
    for cell in ("eligible", "cut_ifd", "median_ifd", "composition"):
        report_page.render({**full, "clusters": [{**full["clusters"][0], cell: None}]})
    for name, value in full["composition"]["groups"]["kept"].items():
        groups = {**full["composition"]["groups"], "kept": {**full["composition"]["groups"]["kept"], name: None}}
        report = {**full, "composition": {**full["composition"], "groups": groups}}
        assert "Undefined" not in Page(report_page.render(report)).text(), (name, value)


def test_without_texts_no_text_is_in_the_page() -> None:
    """`exemplars_per_cluster: 0` is a promise to whoever may not show the data."""
    report = make_report()
    report["samples"] = [
        {k: v for k, v in one.items() if k not in ("instruction", "response")} for one in report["samples"]
    ]
    text = report_page.render(report)
    assert "merge" not in text.replace(PLOTLY, "") and "exemplars_per_cluster" in text
    assert report["samples"][0]["sample_id"] in text


def test_numbers_that_are_not_finite_are_gaps() -> None:
    """JSON.parse refuses NaN: one diverged step would leave the page without any chart."""
    report = make_report()
    report["training"]["loss"][3] = float("nan")
    report["medians"]["ifd"]["selected"] = float("inf")
    assert Page(report_page.render(report)).charts()["training"]["data"][0]["y"][3] is None


def test_sentence_carries_the_numbers() -> None:
    """The one sentence that everybody reads; a wrong or missing number here is the report's worst mistake."""
    text = Page(report_page.render(make_report())).text()
    assert "Of 3,075 rows read, 3,000 became samples; 2,990 could be scored; " in text
    assert "were kept (in each cluster the 40 % with the highest IFD below 1); " in text
    assert "99.8 % full; training took the held-out loss from 0.610 to 0.540 nats per token." in text
    assert "changed by \u22120.120 ± 0.010 nats per token" in text and "more than two standard errors" in text


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"strategy": "cluster_random"}, "of each cluster the 40 % drawn at random"),
        ({"keep_fraction": None, "num_samples": 5000}, "in each cluster its share of 5,000 samples, with the highest IFD below 1"),
        ({"strategy": "global_ifd", "keep_fraction": None, "num_tokens": 10**6, "min_ifd": 0.3},
         "over all clusters 1,000,000 tokens with the highest IFD from 0.3 up to 1"),
        ({"strategy": "column", "column": "quality", "per": "language"}, "the 40 % with the highest quality, in every language"),
    ],
)  # fmt: skip
def test_every_rule_has_its_words(keys, said) -> None:
    """Who reads a report a year later must learn from it what was kept."""
    assert f"were kept ({said}); " in Page(report_page.render(make_report() | keys)).text()


def test_unknown_strategy_and_reason_are_shown_by_name() -> None:
    """New strategies come before their words do."""
    report = make_report() | {"strategy": "by_moon"}
    report["flow"][1]["reasons"] = {"out_of_luck": 60}
    text = Page(report_page.render(report)).text()
    assert "by_moon" in text and "out_of_luck" in text


def test_waterfall_is_drawn_where_the_rows_are() -> None:
    """Worked by hand: 10 rows, 3 and 1 leave, 6 stay; a bar at the wrong place tells a wrong story."""
    chart = report_page.flow_chart([{"stage": "clean", "rows_in": 10, "rows_out": 6, "reasons": {"b": 1, "a": 3}}])
    stays, leaves = chart["data"]
    assert (list(stays["x"]), list(stays["y"])) == ([10, 6], ["rows read", "after clean"])
    assert (list(leaves["y"]), list(leaves["x"]), list(leaves["base"])) == (["clean: a", "clean: b"], [3, 1], [7, 6])
    assert list(leaves["text"]) == ["\u22123 (30.0\u00a0%)", "\u22121 (10.0\u00a0%)"]


def test_histogram_axis_follows_its_edges() -> None:
    """Log-spaced bars on a linear axis are invisible slivers; a first edge of 0 has no place on a log axis."""
    even = report_page.histogram_chart({"edges": [0, 1, 2], "all": [5, 1], "selected": None}, "x", [])
    assert "type" not in even["layout"]["xaxis"] and even["data"][0]["x"] == [0, 1]
    uneven = report_page.histogram_chart({"edges": [0, 2, 20, 200], "all": [5, 1, 2], "selected": [1, 0, 2]}, "x", [])
    assert uneven["layout"]["xaxis"]["type"] == "log"
    assert uneven["data"][0]["x"] == [1, 2, 20] and uneven["data"][0]["width"] == [1, 18, 180]
    assert uneven["data"][0]["hovertext"][2] == "20 to 200<br>all: 2<br>kept: 2"


def test_map_holds_every_point_once() -> None:
    """Kept and dropped are separate traces of a cluster: a point lost or doubled would bend the picture, one with another's number opens
    another's text."""
    samples = make_report(num_clusters=23)["samples"]
    data = report_page.map_chart(samples)["data"]
    assert sorted(place for trace in data for place in trace["customdata"]) == list(range(2000))
    for trace in data:
        for place, x in zip(trace["customdata"], trace["x"], strict=True):
            mine = samples[place]
            assert (mine["x"], mine["cluster_id"], mine["reason"] == "selected") == (x, *trace["meta"].values())
    shown = [trace["name"] for trace in data if trace["showlegend"]]
    assert len(shown) == len(set(shown)) == 23
    looks = {trace["name"]: (trace["marker"]["color"], trace["marker"]["symbol"]) for trace in data[-23:]}
    assert len(set(looks.values())) == 23


def test_shares_of_groups_by_hand() -> None:
    """Languages beyond the commonest are added up, never dropped."""
    many = {f"l{n:02d}": 0.05 for n in range(20)}
    chart = report_page.shares_chart(
        report_page._languages({"kept": {"languages": many}, "random": {"languages": {"cpp": 1.0}}})
    )
    kept, random = chart["data"]
    assert sum(kept["x"]) == pytest.approx(1) and sum(random["x"]) == 1
    assert random["x"][list(random["y"]).index("c++")] == 1 and kept["x"][
        list(kept["y"]).index("others")
    ] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0312, "0.0312"), (3.14159, "3.14"), (100, "100"), (1234.5, "1,234"), (None, "\u2013")],
)
def test_short_numbers(value: float | None, text: str) -> None:
    """Trailing zeros of 100 are not decimals to strip."""
    assert pages.short(value) == text


def test_seconds_and_sizes_read_well() -> None:
    """Nobody reads 7,260 s; bytes are decimal, as storage is billed."""
    assert [pages.seconds(s) for s in (3.14, 90, 7260)] == ["3.1 s", "1.5 min", "2 h 01 min"]
    assert [pages.size(b) for b in (0, 999, 123456, 2.5e12)] == ["0 B", "999 B", "123 kB", "2.5 TB"]

"""Report: one self-contained `index.html` and the numbers behind it as `report.json`.

Reads manifests and small files and folds over single columns of all rows; texts only of parts spread over the lake (raypipe.sampled),
whose responses are looked through for style, and of which a few thousand rows are shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.config import Config
from raypipe.folds import fold_parts
from raypipe.identity import package_versions
from raypipe.ops import composition
from raypipe.ops.figures import FINE, QUANTITIES, Exemplar, Figures, Measure, median_of, project
from raypipe.ops.held_out import losses_by, losses_by_cluster
from raypipe.ops.ifd import num_scored
from raypipe.ops.kmeans import rows_of
from raypipe.ops.metrics import steps_and_evaluations
from raypipe.ops.report_page import render
from raypipe.ops.selection import BY_CLUSTER, IFD_TOO_HIGH, SELECTED
from raypipe.ops.text import draw, id_words
from raypipe.ops.warnings import said
from raypipe.resources import Pool
from raypipe.sampled import LANGUAGE, candidates, rows_at, spread, styled, values_of
from raypipe.stage import Inputs, Result
from raypipe.store import Folder

SHOWN_SAMPLES, SHOWN_CHARACTERS = 2000, 2000  # on the map; of a text
SHOWN_GROUPS = 20  # of a column
OF_TRAINING = ("num_workers", "tokens_per_s", "target_tokens_per_s", "peak_memory_bytes", "padding", "mfu")
LOOK = 2**32 + 1  # seed of what is shown: no run can have it, or strategy random would decide who is seen


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    scores = (
        "sample_id",
        "num_instruction_tokens",
        "num_response_tokens",
        "nll_conditional",
        "nll_unconditional",
        "ifd",
    )
    tables = [
        inputs["score"].only(*scores),
        inputs["cluster"].only("cluster_id", "sq_distance"),
        inputs["select"].only("reason"),
    ]
    num_clusters = len(inputs["cluster"].manifest["summary"]["cluster_sizes"])
    figures: Figures = fold_parts(Measure(num_clusters, config.report.exemplars_per_cluster), tables, pool=Pool())
    parts = spread(inputs["ingest"].parts, inputs["ingest"].manifest["rows"])
    rows = candidates(inputs.tables, parts, styled(inputs["ingest"], parts))
    shown = rows.take(np.argsort(draw(id_words(rows.column("sample_id")), LOOK))[:SHOWN_SAMPLES])
    texts = rows_at(inputs["ingest"].only("instruction", "response"), parts, shown)
    of_all, of_clusters = _composition(rows, config.seed, num_clusters)
    of_texts = composition.of_texts(texts.column("response").to_pylist(), composition.groups(shown, config.seed))
    xy, explained = project(rows_of(rows_at(inputs["embed"].only("embedding"), parts, shown), "cosine"), config.seed)
    report = {
        **_heading(config, inputs),
        "headline": _headline(inputs),
        "warnings": said({name: table.manifest for name, table in inputs.tables.items()}),
        "flow": _flow(inputs),
        "histograms": {name: figures.histogram(name) for name in QUANTITIES},
        "medians": {name: figures.medians(name) for name in QUANTITIES},
        "composition": {
            "measured_samples": len(rows),
            "measured_parts": len(parts),
            "num_parts": len(inputs["ingest"].parts),
            "measured_texts": len(shown),
            "groups": {name: of_all[name] | of_texts[name] for name in of_all},
        },
        "clusters": _clusters(config, inputs, figures, of_clusters),
        "projection": {"num_points": len(shown), "num_samples": len(rows), "explained_variance": explained},
        "samples": _samples(
            _drawn(shown, xy, texts if config.report.exemplars_per_cluster else None),
            _exemplars(inputs, figures.nearest),
        ),
        "training": _training(config, inputs),
        "evaluation": inputs["evaluate"].manifest["summary"],
        "time": [_time(name, table.manifest) for name, table in inputs.tables.items()],
    }
    out.put("report.json", json.dumps(report).encode())
    out.put("index.html", render(report).encode())
    return Result(summary={"medians": report["medians"]})


def _composition(
    rows: pa.Table, seed: int, num_clusters: int
) -> tuple[dict[str, dict[str, Any]], list[dict[str, dict[str, Any]]]]:
    """What was kept, what was dropped, and chance: overall, and of each cluster."""
    masks = composition.groups(rows, seed)
    by_group = {name: composition.by_cluster(rows, mask, num_clusters) for name, mask in masks.items()}
    of_clusters = [{name: by_group[name][k] for name in masks} for k in range(num_clusters)]
    return {name: composition.overall(rows, mask) for name, mask in masks.items()}, of_clusters


def _samples(drawn: Sequence[dict[str, Any]], exemplars: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each once: an exemplar may have been drawn too."""
    found = {one["sample_id"]: one for one in drawn}
    for one in exemplars:
        found[one["sample_id"]] = found.get(one["sample_id"], {}) | one
    return list(found.values())


def _drawn(shown: pa.Table, xy: Any, texts: pa.Table | None) -> list[dict[str, Any]]:
    """Samples of the map; without texts where the report is to hold none."""
    n = shown.column("num_response_tokens").to_numpy()
    columns = {
        "sample_id": shown.column("sample_id").to_pylist(),
        "cluster_id": shown.column("cluster_id").to_pylist(),
        "reason": shown.column("reason").to_pylist(),
        "ifd": shown.column("ifd").to_numpy().tolist(),
        "ppl_conditional": np.exp(shown.column("nll_conditional").to_numpy() / n).tolist(),
        "ppl_unconditional": np.exp(shown.column("nll_unconditional").to_numpy() / n).tolist(),
        "response_tokens": n.tolist(),
        "x": np.round(xy[:, 0].astype(float), 4).tolist(),
        "y": np.round(xy[:, 1].astype(float), 4).tolist(),
    }
    if texts is not None:
        columns |= {name: [_cut(text) for text in texts.column(name).to_pylist()] for name in texts.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _exemplars(inputs: Inputs, exemplars: Sequence[Exemplar]) -> list[dict[str, Any]]:
    ingest = inputs["ingest"].only("instruction", "response")
    number = {part: n for n, part in enumerate(ingest.parts)}
    part_N, row_N = [number[one.part] for one in exemplars], [one.row for one in exemplars]
    places = pa.table({"part": pa.array(part_N, pa.int32()), "row": pa.array(row_N, pa.int32())})
    texts = rows_at(ingest, ingest.parts, places).to_pylist() if exemplars else []
    return [
        {
            "sample_id": one.sample_id,
            "cluster_id": one.cluster_id,
            "reason": one.reason,
            "ifd": one.ifd,
            "ppl_conditional": one.ppl_conditional,
            "ppl_unconditional": one.ppl_unconditional,
            "response_tokens": one.response_tokens,
            "near_centre": True,
            **{name: _cut(text) for name, text in texts_of_one.items()},
        }
        for one, texts_of_one in zip(exemplars, texts, strict=True)
    ]


def _cut(text: str) -> str:
    left = len(text) - SHOWN_CHARACTERS
    return text if left <= 0 else f"{text[:SHOWN_CHARACTERS]}\n[{left:,} more characters]"


def _heading(config: Config, inputs: Inputs) -> dict[str, Any]:
    versions = package_versions()
    return {
        "name": config.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": versions.get("raypipe"),
        "versions": versions,
        "root": config.storage.root,
        "folders": {name: table.folder.name for name, table in inputs.tables.items()},
        **config.select.model_dump(mode="json"),
    }


def _headline(inputs: Inputs) -> dict[str, Any]:
    counts = {name: table.manifest["counts"] for name, table in inputs.tables.items()}
    read, pack = sum(counts["ingest"].values()), inputs["pack"].manifest["summary"]
    held_out = inputs["train"].manifest["summary"]["held_out"]
    return {
        "rows_read": read,
        "rejected": read - counts["ingest"].get("ok", 0),
        "samples": counts["clean"]["ok"],
        "scored": num_scored(inputs["score"].manifest),
        "ifd_ge_max": counts["select"].get(IFD_TOO_HIGH, 0),
        "selected": counts["select"].get(SELECTED, 0),
        "fill": pack["fill"],
        "padding_avoided": pack["padding"]["pad"],
        "held_out_loss_before": held_out.get("loss_before"),
        "held_out_loss_after": held_out.get("loss_after"),
    }


def _flow(inputs: Inputs) -> list[dict[str, Any]]:
    """Samples in and out of each stage that drops any, with reasons; each stage takes what the one before let pass.

    Every sample leaves once: select's reasons are the first that applies, and name score's statuses where held_out does not come before.
    """
    counts = {name: table.manifest["counts"] for name, table in inputs.tables.items()}
    cleaned = counts["clean"].keys()
    unscored = counts["score"].keys() - {"ok"} - cleaned
    reasons = {
        "ingest": _without(counts["ingest"], {"ok"}),
        "clean": _without(counts["clean"], {"ok"}),
        "score": {name: count for name, count in counts["select"].items() if name in unscored},
        "select": _without(counts["select"], {SELECTED, *cleaned, *unscored}),
        "pack": _without(counts["pack"], {"ok"}),
    }
    flow, left = [], sum(counts["ingest"].values())
    for stage, dropped in reasons.items():
        flow.append({"stage": stage, "rows_in": left, "rows_out": left - sum(dropped.values()), "reasons": dropped})
        left -= sum(dropped.values())
    return flow


def _without(counts: Mapping[str, int], names: set[str]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name not in names}


def _clusters(
    config: Config, inputs: Inputs, figures: Figures, of_clusters: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    sizes = inputs["cluster"].manifest["summary"]["cluster_sizes"]
    cuts: dict[int, list[dict[str, Any]]] = {}
    if config.select.strategy in BY_CLUSTER:
        for cut in json.loads(inputs["select"].folder.read("cuts.json")):
            cuts.setdefault(cut["cluster_id"], []).append(cut)
    scored_K = figures.ifd_KB.sum(1)
    return [
        {
            "cluster_id": k,
            "size": sizes[k],
            "eligible": sum(cut["eligible"] for cut in cuts[k]) if k in cuts else None,
            "selected": int(figures.selected_K[k]),
            "cut_ifd": cuts[k][0]["cut_score"] if len(cuts.get(k, [])) == 1 else None,  # select.per makes several
            "median_ifd": median_of(figures.ifd_KB[k], FINE["ifd"]),
            "mean_sq_distance": float(figures.sq_distance_K[k] / scored_K[k]) if scored_K[k] else None,
            "composition": of_clusters[k],
        }
        for k in range(len(sizes))
    ]


def _training(config: Config, inputs: Inputs) -> dict[str, Any]:
    train = inputs["train"]
    by_sample = json.loads(train.folder.read("held_out.json"))
    steps, evaluations = steps_and_evaluations(train.folder.read("metrics.jsonl"))
    held_out = [{"step": line["step"], "loss": line["eval_loss"]} for line in evaluations if line.get("eval_samples")]
    summary = train.manifest["summary"]
    paired = summary["held_out"] if "mean_difference" in summary["held_out"] else None
    return {
        **{name: [line[name] for line in steps] for name in ("step", "loss", "learning_rate")},
        "held_out": held_out,
        "paired": paired,
        "by_cluster": losses_by_cluster(by_sample),
        "by_column": dict(_by_column(config.ingest.carry, inputs, by_sample)),
        **{name: summary[name] for name in OF_TRAINING if name in summary},
    }


def _by_column(
    carried: Sequence[str], inputs: Inputs, held_out: Mapping[str, Any]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Held-out losses by each carried column, and by language: of at most SHOWN_GROUPS values, those of most samples."""
    for column in dict.fromkeys([*carried, LANGUAGE]):
        values = values_of(inputs.tables, column, held_out["sample_ids"], carried)
        rows = losses_by("value", held_out, [values.get(sample) for sample in held_out["sample_ids"]])
        yield column, sorted(rows, key=lambda row: -row["num_samples"])[:SHOWN_GROUPS]


def _time(stage: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage without parts took is its wall time; the rest is not counted there."""
    counted = {"parts": len(manifest["parts"]), "actor_s": manifest["actor_s"], "bytes": manifest["bytes"]}
    return {"stage": stage, "wall_s": manifest["wall_s"], **(counted if manifest["parts"] else {})}

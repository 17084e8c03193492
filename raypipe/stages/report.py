"""Report: one self-contained `index.html` and the numbers behind it as `report.json`.

Reads manifests and small files, folds over single columns, and of the rows themselves only the few exemplars.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from raypipe.config import Config, Pool
from raypipe.folds import fold_parts
from raypipe.identity import package_versions
from raypipe.ops.figures import FINE, MAP_POINTS, QUANTITIES, DrawPoints, Exemplar, Figures, Measure, Points, median_of
from raypipe.ops.report_page import render
from raypipe.ops.selection import BY_CLUSTER, IFD_TOO_HIGH, SELECTED
from raypipe.stage import Inputs, Result
from raypipe.store import Folder

FEW_STEPS, LONGER = 100, 1.25  # thresholds of warnings: optimiser steps; median length of the selected against all


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
    cluster = inputs["cluster"].manifest["summary"]
    measure = Measure(len(cluster["cluster_sizes"]), config.report.exemplars_per_cluster)
    draw_points = DrawPoints(min(1.0, 1.5 * MAP_POINTS / inputs["clean"].manifest["counts"]["ok"]), config.seed)
    figures: Figures = fold_parts(measure, tables, pool=Pool())
    points: Points = fold_parts(draw_points, [*tables, inputs["embed"].only("embedding")], pool=Pool())
    medians = {name: figures.medians(name) for name in QUANTITIES}
    said = warnings(medians, inputs["train"].manifest["summary"]["steps"])
    report = {
        **_heading(config, inputs),
        "headline": _headline(inputs),
        "warnings": [*cluster["warnings"], *said],
        "flow": _flow(inputs),
        "histograms": {name: figures.histogram(name) for name in QUANTITIES},
        "medians": medians,
        "clusters": _clusters(config, inputs, figures),
        "map": {**points.project(config.seed), "num_samples": inputs["clean"].manifest["counts"]["ok"]},
        "training": _training(inputs),
        "time": [_time(name, table.manifest) for name, table in inputs.tables.items()],
    }
    out.put("report.json", json.dumps(report).encode())
    out.put("index.html", render(report).encode())
    return Result(summary={"medians": medians, "warnings": said})


def warnings(medians: Mapping[str, Mapping[str, float | None]], steps: int) -> list[str]:
    """What a user should know before trusting the result, each with what to try."""
    said, length = [], medians["response_tokens"]
    if length["selected"] and length["all"] and length["selected"] > LONGER * length["all"]:
        said.append(
            f"selection favours long responses: median {length['all']:.0f} -> {length['selected']:.0f} tokens. "
            "Compare with select.strategy=cluster_random"
        )
    if steps < FEW_STEPS:
        said.append(
            f"training took only {steps} optimiser steps. Lower train.samples_per_step, or train for more epochs"
        )
    return said


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
        "scored": counts["score"].get("ok", 0),
        "ifd_ge_max": counts["select"].get(IFD_TOO_HIGH, 0),
        "selected": counts["select"].get(SELECTED, 0),
        "fill": pack["fill"],
        "padding_avoided": pack["padding_otherwise"],
        "held_out_loss_before": held_out.get("loss_before"),
        "held_out_loss_after": held_out.get("loss_after"),
    }


def _flow(inputs: Inputs) -> list[dict[str, Any]]:
    """Samples in and out of each stage that drops any, with reasons; each stage takes what the one before let pass.

    score and select repeat, as statuses, what the stages before them dropped: that is counted there only.
    """
    counts = {name: table.manifest["counts"] for name, table in inputs.tables.items()}
    flow, left = [], sum(counts["ingest"].values())
    for stage, passed, repeats in (
        ("ingest", "ok", ()),
        ("clean", "ok", ()),
        ("score", "ok", ("clean",)),
        ("select", SELECTED, ("clean", "score")),
        ("pack", "ok", ()),
    ):
        known = {passed, *(name for earlier in repeats for name in counts[earlier])}
        reasons = {name: count for name, count in counts[stage].items() if name not in known}
        flow.append({"stage": stage, "rows_in": left, "rows_out": left - sum(reasons.values()), "reasons": reasons})
        left -= sum(reasons.values())
    return flow


def _clusters(config: Config, inputs: Inputs, figures: Figures) -> list[dict[str, Any]]:
    sizes = inputs["cluster"].manifest["summary"]["cluster_sizes"]
    cuts: dict[int, list[dict[str, Any]]] = {}
    if config.select.strategy in BY_CLUSTER:
        for cut in json.loads(inputs["select"].folder.read("cuts.json")):
            cuts.setdefault(cut["cluster_id"], []).append(cut)
    texts, scored_K = _texts(inputs, figures.nearest), figures.ifd_KB.sum(1)
    by_cluster: dict[int, list[dict[str, Any]]] = {}
    for exemplar in figures.nearest:
        row = {**vars(exemplar), **texts[exemplar.sample_id], "selected": exemplar.selected}
        by_cluster.setdefault(exemplar.cluster_id, []).append(row)
    return [
        {
            "cluster_id": k,
            "size": sizes[k],
            "eligible": sum(cut["eligible"] for cut in cuts[k]) if k in cuts else None,
            "selected": int(figures.selected_K[k]),
            "cut_ifd": cuts[k][0]["cut_score"] if len(cuts.get(k, [])) == 1 else None,  # select.per makes several
            "median_ifd": median_of(figures.ifd_KB[k], FINE["ifd"]),
            "mean_sq_distance": float(figures.sq_distance_K[k] / scored_K[k]) if scored_K[k] else None,
            "exemplars": by_cluster.get(k, []),
        }
        for k in range(len(sizes))
    ]


def _texts(inputs: Inputs, exemplars: Sequence[Exemplar]) -> dict[str, dict[str, str]]:
    """Instruction and response of each, from the few parts that hold them."""
    found, table = {}, inputs["ingest"].only("sample_id", "instruction", "response")
    for part in sorted({exemplar.part for exemplar in exemplars}):
        rows = table.read(part)
        for exemplar in exemplars:
            if exemplar.part == part:
                row = rows.slice(exemplar.row, 1).to_pylist()[0]
                found[exemplar.sample_id] = {"instruction": row["instruction"], "response": row["response"]}
    return found


def _training(inputs: Inputs) -> dict[str, Any]:
    train = inputs["train"]
    lines = [json.loads(line) for line in train.folder.read("metrics.jsonl").splitlines()]
    steps = [line for line in lines if "loss" in line]
    held_out = [{"step": line["step"], "loss": line["held_out_loss"]} for line in lines if line.get("held_out_samples")]
    summary = train.manifest["summary"]
    paired = summary["held_out"] if "mean_difference" in summary["held_out"] else None
    return {
        **{name: [line[name] for line in steps] for name in ("step", "loss", "learning_rate")},
        "held_out": held_out,
        "paired": paired,
        "num_workers": summary["num_workers"],
        "target_tokens_per_s": summary["target_tokens_per_s"],
    }


def _time(stage: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage without parts took is its wall time; the rest is not counted there."""
    counted = {"parts": len(manifest["parts"]), "actor_s": manifest["actor_s"], "bytes": manifest["bytes"]}
    return {"stage": stage, "wall_s": manifest["wall_s"], **(counted if manifest["parts"] else {})}

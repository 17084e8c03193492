"""How far runs are and what they found, from storage alone: also while a job runs elsewhere and objects come and go.

A finished stage costs one request, its manifest; an unfinished one is listed, so that what is counted is what is
committed. Ages are by the storage's own clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raypipe.cost import MEASURED
from raypipe.owner import TAKE_OVER_S
from raypipe.records import recorded_runs
from raypipe.screen import Manifests, aligned, duration, summary
from raypipe.stage import read_manifest
from raypipe.store import Folder

ROW_WISE = ("clean", "embed", "cluster", "score", "select")  # as many parts as ingest has, of the same names


def status(root: Folder) -> str:
    """Every run under a root, the one that was started last at the end."""
    runs = recorded_runs(root)
    if not runs:
        return f"{root.path}: no run yet"
    files = {name: root.storage.find(root.uri(f"runs/{name}.json")) for name in runs}
    ages_s = {name: file.age_s for name, file in files.items() if file}
    last = sorted(runs, key=lambda name: -ages_s.get(name, 0.0))
    return "\n\n".join(_run(root, name, runs[name], ages_s.get(name)) for name in last)


def stage_table(folders: Mapping[str, Folder], manifests: Manifests) -> str:
    """One line a stage: folder, parts, rows, state."""
    ingest = manifests.get("ingest")
    wanted = [part["name"] for part in ingest["parts"]] if ingest else None
    rows = (
        _done(stage, folder, manifests[stage]) if stage in manifests else _open(stage, folder, wanted)
        for stage, folder in folders.items()
    )
    return aligned([("stage", "folder", "parts", "rows", "state"), *rows], right={2, 3})


def _run(root: Folder, name: str, record: Mapping[str, Any], age_s: float | None) -> str:
    """Its file is written whenever it is started with something to do, so the file's age says when that was."""
    folders = {stage: root / leaf for stage, leaf in record["folders"].items()}
    found = {stage: read_manifest(folder, record["lake"]) for stage, folder in folders.items()}
    manifests = {stage: manifest for stage, manifest in found.items() if manifest is not None}
    started = "" if age_s is None else f"  started {duration(max(age_s, 0.0))} ago"
    return "\n".join(
        filter(None, [f"run {name}{started}", stage_table(folders, manifests), summary(folders, manifests)])
    )


def _done(stage: str, folder: Folder, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    parts = len(manifest["parts"])
    return (
        stage,
        folder.name,
        f"{parts:,}/{parts:,}" if parts else "-",
        f"{manifest['rows']:,}" if parts else "-",
        "done",
    )


def _open(stage: str, folder: Folder, wanted: list[str] | None) -> tuple[str, ...]:
    """`wanted` are the parts of ingest: what is there of another lake counts nothing."""
    ages_s = {found.uri[len(folder.path) + 1 :]: found.age_s for found in folder.walk()}
    ages_s.pop(MEASURED, None)  # by `plan --measure`
    if not ages_s:
        return stage, folder.name, "-", "-", "to do"
    there = {name for name in ages_s if name.startswith("part-")}
    if wanted is not None and stage in ROW_WISE:
        parts = f"{len(there & set(wanted)):,}/{len(wanted):,}"
    else:
        parts = f"{len(there):,}/?" if there else "-"
    said = _training(folder) if stage == "train" else f"last object {_ago(min(ages_s.values()))}"
    return stage, folder.name, parts, "-", f"unfinished: {said}"


def _training(folder: Folder) -> str:
    """The last step that the metrics name, and whether the one who trains is alive."""
    lines = [json.loads(line) for line in (folder.find("metrics.jsonl") or b"").splitlines()]
    steps = [line for line in lines if "loss" in line]
    done = f"step {steps[-1]['step']:,}, loss {steps[-1]['loss']:.4g}; " if steps else "no step yet; "
    name = max(folder.list("owner-"), default="")
    data, found = folder.find(name) if name else None, folder.storage.find(folder.uri(name)) if name else None
    if data is None or found is None:
        return f"{done}nobody trains"
    owner = json.loads(data)
    who = f"process {owner['pid']} on {owner['host']}"
    if owner.get("ended"):
        return f"{done}{who} ended {_ago(found.age_s)}"
    silent = " (silent: a rerun takes over)" if found.age_s > TAKE_OVER_S else ""
    return f"{done}{who}, last sign of life {_ago(found.age_s)}{silent}"


def _ago(age_s: float) -> str:
    return f"{max(age_s, 0.0):,.0f} s ago"

"""What a person sees on the terminal: the stage table, and the end summary in words. Every number is in a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raypipe.identity import package_versions
from raypipe.pipeline import Plan, recorded_runs
from raypipe.stage import read_manifest
from raypipe.store import Folder


def heading(planned: Plan) -> str:
    versions, slices = package_versions(), planned.lake.slices
    lake = (
        f"lake {len(slices):,} objects, {sum(s.size for s in slices) / 1e9:.2g} GB"
        if slices
        else f"lake {planned.lake.digest}"
    )
    return f"raypipe {versions.get('raypipe', '?')}  ray {versions.get('ray', '?')}  root {planned.config.storage.root}  {lake}"


def stage_table(planned: Plan) -> str:
    """One line a stage: folder, parts, rows, state."""
    return _table({step.stage.name: step.folder for step in planned.stages}, planned.lake.digest)


def status(folder: Folder) -> str:
    """Runs under a root, from storage alone; also while a job runs."""
    runs = recorded_runs(folder)
    if not runs:
        return f"{folder.path}: no run yet"
    tables = (
        f"run {name}\n" + _table({stage: folder / leaf for stage, leaf in record["folders"].items()}, record["lake"])
        for name, record in runs.items()
    )
    return "\n\n".join(tables)


def _table(folders: Mapping[str, Folder], lake: str) -> str:
    manifests = {stage: read_manifest(folder, lake) for stage, folder in folders.items()}
    ingest = manifests["ingest"]
    total = str(len(ingest["parts"])) if ingest else "?"
    rows = (_row(stage, folder, manifests[stage], total) for stage, folder in folders.items())
    return _aligned([("stage", "folder", "parts", "rows", "state"), *rows])


def _row(stage: str, folder: Folder, manifest: Mapping[str, Any] | None, total_parts: str) -> tuple[str, ...]:
    leaf = folder.name
    if manifest is not None:
        parts = len(manifest["parts"])
        return stage, leaf, f"{parts}/{parts}" if parts else "-", f"{manifest['rows']:,}" if parts else "-", "done"
    there = folder.list()
    parts = sum(name.startswith("part-") for name in there)
    return stage, leaf, f"{parts}/{total_parts}" if parts else "-", "-", "unfinished" if there else "to do"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {2, 3}
    cells = (
        [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in cells)


def summary(planned: Plan) -> str:
    """The end of a run in words, as far as it went."""
    found = {step.stage.name: step.manifest for step in planned.stages if step.manifest is not None}
    lines = [line for stage, words in _WORDS.items() if stage in found for line in words(found)]
    if "report" in found:
        lines.append(f"report  {planned['report'].folder.uri('index.html')}")
    if "train" in found:
        lines.append(f"model   {planned['train'].folder.uri('model')}")
    return "\n".join(lines)


def planted(account: Mapping[str, int]) -> str:
    """What a synthetic lake holds, in known numbers."""
    kinds = ", ".join(f"{account[kind]:,} {kind.replace('_', ' ')}" for kind in ("exact_duplicates", "malformed"))
    within = ", ".join(f"{account[kind]:,} {kind.replace('_', ' ')}" for kind in ("near_duplicates", "mismatched"))
    return f"{account['rows']:,} rows = {account['samples']:,} samples (of them {within}) + {kinds}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:.0f} s" if minutes else f"{seconds:.1f} s"


def _ingest_words(found: Mapping[str, Any]) -> list[str]:
    counts = found["ingest"]["counts"]
    read, rows = sum(counts.values()), counts.get("ok", 0)
    line = f"{read:,} read = {rows:,} rows + {read - rows:,} rejected{_reasons(counts)}"
    if "clean" in found:
        clean = found["clean"]["counts"]
        line += f"; {clean.get('duplicate', 0):,} duplicate, {clean.get('ok', 0):,} samples"
    return [line]


def _score_words(found: Mapping[str, Any]) -> list[str]:
    counts = found["score"]["counts"]
    line = f"{counts.get('ok', 0):,} scored"
    if "select" in found:
        select, read = found["select"]["counts"], sum(found["ingest"]["counts"].values())
        high, kept, max_ifd = (
            select.get("ifd_too_high", 0),
            select.get("selected", 0),
            found["select"]["config"]["select"]["max_ifd"],
        )
        line += f"; {high:,} have IFD >= {max_ifd:g}; {select.get('held_out', 0):,} held out; {kept:,} kept ({kept / read:.1%} of what was read)"
    return [line]


def _pack_words(found: Mapping[str, Any]) -> list[str]:
    pack = found["pack"]["summary"]
    line = f"fill {pack['fill']:.1%} (padding would be {pack['padding_otherwise']:.1%})"
    held_out = found.get("train", {}).get("summary", {}).get("held_out", {})
    if "loss_after" in held_out:
        line += (
            f"   held-out loss {held_out['loss_before']:.3f} -> {held_out['loss_after']:.3f} "
            f"(paired difference {held_out['mean_difference']:+.3f} +- {held_out['standard_error']:.3f}, {held_out['num_samples']} samples)"
        )
    return [line]


_WORDS = {
    "ingest": _ingest_words,
    "score": _score_words,
    "report": lambda found: [f"! {text}" for text in found["report"]["summary"]["warnings"]],
    "pack": _pack_words,
}


def _reasons(counts: Mapping[str, int]) -> str:
    rejected = {name: count for name, count in counts.items() if name != "ok"}
    return (
        f" ({', '.join(f'{count:,} {name}' for name, count in sorted(rejected.items(), key=lambda item: -item[1]))})"
        if rejected
        else ""
    )

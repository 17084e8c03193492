"""What a person sees on the terminal: tables, sizes, and the end of a run in words. Every number is in a manifest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from raypipe.cost import MEASURE
from raypipe.identity import package_versions
from raypipe.ops.estimate import Interval
from raypipe.ops.ifd import num_scored
from raypipe.ops.warnings import said
from raypipe.padding import padding
from raypipe.pipeline import Plan, cost_of_scoring
from raypipe.store import Folder

Manifests = Mapping[str, Mapping[str, Any]]  # of the finished stages of a run


def heading(planned: Plan) -> str:
    versions, found = package_versions(), planned.lake
    lake = (
        f"lake {len(found.files):,} objects, {size(found.num_bytes)}" if found.slices else f"lake {planned.lake.digest}"
    )
    return f"raypipe {versions.get('raypipe', '?')}  ray {versions.get('ray', '?')}  root {planned.config.storage.root}  {lake}"


def aligned(rows: Sequence[tuple[str, ...]], right: Collection[int] = ()) -> str:
    """Cells under each other; `right` are the columns of numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in cells)


def summary(folders: Mapping[str, Folder], manifests: Manifests) -> str:
    """The end of a run in words, as far as it went; a line needs the manifests that its numbers are from."""
    lines = [line for needs, words in _WORDS if needs <= manifests.keys() for line in words(manifests)]
    if "report" in manifests:
        lines.append(f"report  {folders['report'].uri('index.html')}")
    if "train" in manifests:
        lines.append(f"model   {folders['train'].uri('model')}")
    return "\n".join(lines)


def cost_words(planned: Plan) -> list[str]:
    """What is left of scoring: rows, tokens, time, accelerator-hours (CPU-hours without accelerators), each with its 95 % interval."""
    if planned["score"].done or planned.config.score.given is not None:
        return []
    cost, pool = cost_of_scoring(planned), planned.config.resources.score
    if cost is None or cost.tokens is None or cost.seconds is None or cost.cpu_s is None:
        rows = "" if cost is None else f"{cost.rows:,} rows, "
        return [
            f"scoring: {rows}cost unknown: {'ingest is not finished' if cost is None else f'no part is. {MEASURE}'}"
        ]
    actors = pool.actors[1] if pool.actors else 1
    time_h = cost.seconds.times(1 / actors / 3600)
    bill = (cost.seconds.times(pool.gpus) if pool.gpus else cost.cpu_s).times(1 / 3600)
    words = [
        f"{cost.rows:,} rows",
        f"{_spread(cost.tokens.times(1e-6))} M tokens",
        f"{_spread(time_h)} h on {actors} actor{'s' * (actors > 1)}",
        f"{_spread(bill)} {'GPU' if pool.gpus else 'CPU'}-h",
    ]
    return [f"scoring: {', '.join(words)}; from {cost.basis}"]


def padding_words(planned: Plan) -> list[str]:
    """Of training's tokens, under each strategy of packing."""
    found = padding(planned)
    if found is None:
        return ["padding: unknown until scoring is finished"]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in sorted(found.shares.items(), key=lambda item: item[1]))
    return [f"padding: {shares}; windows of {planned.config.pack.max_length:,} tokens, from {found.basis}"]


def _spread(value: Interval) -> str:
    return f"{value.mid:.3g}" + (f" ({value.low:.3g} to {value.high:.3g})" if value.low == value.low else "")


def planted(account: Mapping[str, int]) -> str:
    """What a synthetic lake holds, in known numbers."""
    kinds = ", ".join(f"{account[kind]:,} {kind.replace('_', ' ')}" for kind in ("exact_duplicates", "malformed"))
    within = ", ".join(f"{account[kind]:,} {kind.replace('_', ' ')}" for kind in ("near_duplicates", "mismatched"))
    return f"{account['rows']:,} rows = {account['samples']:,} samples (of them {within}) + {kinds}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:.0f} s" if minutes else f"{seconds:.1f} s"


def size(num_bytes: float) -> str:
    """Three digits, decimal units: as storage is billed."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB" if num_bytes < 999.5 else f"{num_bytes:,.0f} TB"


def _ingest_words(found: Manifests) -> list[str]:
    counts = found["ingest"]["counts"]
    read, rows = sum(counts.values()), counts.get("ok", 0)
    line = f"{read:,} read = {rows:,} rows + {read - rows:,} rejected{_reasons(counts)}"
    if "clean" not in found:
        return [line]
    samples = {"duplicate": 0, **found["clean"]["counts"]}
    good = samples.pop("ok", 0)
    dropped = ", ".join(f"{count:,} {status}" for status, count in samples.items())
    return [f"{line}; {dropped}, {good:,} samples"]


def _score_words(found: Manifests) -> list[str]:
    line = f"{num_scored(found['score']):,} scored"
    if "select" in found:
        select, read = found["select"]["counts"], sum(found["ingest"]["counts"].values())
        high, kept, max_ifd = (
            select.get("ifd_too_high", 0),
            select.get("selected", 0),
            found["select"]["config"]["select"]["max_ifd"],
        )
        line += f"; {high:,} have IFD >= {max_ifd:g}; {select.get('held_out', 0):,} held out; {kept:,} kept ({kept / read:.1%} of what was read)"
    return [line]


def _pack_words(found: Manifests) -> list[str]:
    pack = found["pack"]["summary"]
    strategy, padding = found["pack"]["config"]["pack"]["strategy"], pack["padding"]
    line = f"fill {pack['fill']:.1%} (padding would be {padding['pad']:.1%})"
    if strategy != "best_fit":
        line = f"{strategy}: padding {padding[strategy]:.1%} (best_fit: {padding['best_fit']:.1%})"
    held_out = found.get("train", {}).get("summary", {}).get("held_out", {})
    if "loss_after" in held_out:
        line += (
            f"   held-out loss {held_out['loss_before']:.3f} -> {held_out['loss_after']:.3f} "
            f"(paired difference {held_out['mean_difference']:+.3f} +- {held_out['standard_error']:.3f}, {held_out['num_samples']} samples)"
        )
    return [line]


def _evaluate_words(found: Manifests) -> list[str]:
    return [score_words(task, scores) for task, scores in found["evaluate"]["summary"].get("scores", {}).items()]


def score_words(task: str, scores: Mapping[str, Any]) -> str:
    def share(of: Mapping[str, float]) -> str:
        return f"{of['mean']:.1%} ({of['low']:.1%} to {of['high']:.1%})"

    pairs = [f"{name} {share(scores['base'][name])} -> {share(scores['tuned'][name])}" for name in scores["base"]]
    d = scores["difference"]
    points = f"paired difference {100 * d['mean']:+.1f} points ({100 * d['low']:+.1f} to {100 * d['high']:+.1f})"
    return f"{task}, {scores['num_problems']} problems: {', '.join(pairs)}; {points}"


_WORDS: Sequence[tuple[set[str], Callable[[Manifests], list[str]]]] = (
    ({"ingest"}, _ingest_words),
    ({"ingest", "score"}, _score_words),
    (set(), lambda found: [f"! {text}" for text in said(found)]),
    ({"pack"}, _pack_words),
    ({"evaluate"}, _evaluate_words),
)


def _reasons(counts: Mapping[str, int]) -> str:
    rejected = {name: count for name, count in counts.items() if name != "ok"}
    return (
        f" ({', '.join(f'{count:,} {name}' for name, count in sorted(rejected.items(), key=lambda item: -item[1]))})"
        if rejected
        else ""
    )

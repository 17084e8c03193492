"""`raypipe explain`: what happened to one sample at every stage, in plain words, from storage alone and without Ray.

Costs one scan of one column, sample_id of clean's parts (or with a text, ingest's instructions), to find its rows; then its own part of
every stage. Its rank comes from select's small counts of keys, so it is an interval, some thousandths of its group wide.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.config import Config, Select
from raypipe.errors import ConfigError, DataError
from raypipe.ops.cuts import Keys
from raypipe.ops.selection import BY_CLUSTER, HELD_OUT, SELECTED, SEMANTIC_DUPLICATE, view
from raypipe.packs import HELD_OUT_PACKS, pack_groups
from raypipe.part import THREADS, UNREADABLE, Table, damaged, read_part
from raypipe.records import recorded_runs
from raypipe.stage import open_table, read_manifest
from raypipe.store import Folder

SHOWN = 100  # characters of a text
SMALL_BYTES = 1 << 18  # of a part: its footer alone is read as 64 kB
MATCHES = 10  # samples named where a text is found in several


@dataclass(frozen=True)
class Place:
    part: str
    row: int


def explain(
    root: str, run: str, *, sample_id: str | None = None, text: str | None = None, endpoint: str | None = None
) -> list[tuple[str, str]]:
    """(stage, what it did) in order, as far as the run is finished.

    ConfigError for what is no id, or an unknown run; DataError where no row has it, or several samples have the text.
    """
    tables = _tables(Folder.at(root, endpoint), run)
    if text is not None:
        sample_id = _with_text(tables["ingest"], text)
    elif not re.fullmatch("[0-9a-f]{32}", sample_id or ""):
        raise ConfigError(
            f"explain: got {sample_id!r}, wanted a sample_id of 32 hexadecimal digits, or --text with words of an instruction"
        )
    found = _find(tables["clean"], "sample_id", lambda column: pc.equal(column, sample_id))
    if not found:
        raise DataError(
            f"{sample_id}: no row of {tables['clean'].folder.path} has it. Lines that became no sample are in ingest's _rejected/"
        )
    place = _first(tables["clean"], found)
    said = [("ingest", _ingested(tables["ingest"], place)), ("clean", _cleaned(tables, found, place))]
    if "cluster" in tables:
        said.append(("cluster", _clustered(tables, place)))
    if "score" in tables:
        said.append(("score", _scored(tables["score"], place)))
    if "select" in tables:
        said.append(("select", _selected(tables, place)))
    if "pack" in tables:
        said.append(("pack", _packed(tables, place)))
    return said


def _tables(root: Folder, run: str) -> dict[str, Table]:
    """Finished stages of a run. ConfigError where there is nothing to find a sample in."""
    runs = recorded_runs(root)
    if run not in runs:
        raise ConfigError(f"{root.path}: got run {run!r}, wanted one of {sorted(runs)}. Run its config first")
    folders = {stage: root / name for stage, name in runs[run]["folders"].items()}
    found = {stage: read_manifest(folder, runs[run]["lake"]) for stage, folder in folders.items()}
    tables = {stage: open_table(folders[stage], manifest) for stage, manifest in found.items() if manifest is not None}
    if not {"ingest", "clean"} <= tables.keys():
        raise ConfigError(
            f"{root.path}: run {run!r} has not finished clean, wanted its rows. Make them by: raypipe run CONFIG --until clean"
        )
    return tables


def _find(table: Table, column: str, matches: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> list[Place]:
    """Every row whose value matches. Of each part the footer and this column are read; of a small one all, at once."""

    def rows(part: str) -> list[Place]:
        with table.folder.open(part) as file:
            small = file.seek(0, io.SEEK_END) <= SMALL_BYTES
            file.seek(0)
            source = pa.BufferReader(file.read()) if small else file
            try:
                hits = matches(pq.ParquetFile(source).read([column]).column(0))
            except UNREADABLE as error:
                raise damaged(table.folder, part, f"it cannot be read ({error})") from error
        return [Place(part, row) for row in np.flatnonzero(pc.fill_null(hits, False).to_numpy()).tolist()]

    with ThreadPoolExecutor(THREADS) as threads:
        return [place for places in threads.map(rows, table.parts) for place in places]


def _with_text(ingest: Table, text: str) -> str:
    ids: dict[str, str] = {}
    for place in _find(ingest, "instruction", lambda column: pc.match_substring(column, text)):
        row = _row(ingest.only("sample_id", "instruction"), place)
        ids[str(row["sample_id"])] = row["instruction"]
        if len(ids) > MATCHES:
            break
    if len(ids) == 1:
        return next(iter(ids))
    if not ids:
        raise DataError(f"explain: no instruction holds {text!r}. Upper and lower case count, and so does every space")
    named = "\n  ".join(f"{found}  {_short(instruction)}" for found, instruction in list(ids.items())[:MATCHES])
    count = f"more than {MATCHES}" if len(ids) > MATCHES else len(ids)
    raise DataError(f"explain: {count} samples hold {text!r}. Give more words, or one of\n  {named}")


def _row(table: Table, place: Place) -> dict[str, Any]:
    return dict(table.read(place.part).slice(place.row, 1).to_pylist()[0])


def _first(clean: Table, found: Sequence[Place]) -> Place:
    """Of the rows of one id that which is a sample."""
    by_part = {place.part: clean.only("status").read(place.part).column("status") for place in found}
    return next((place for place in found if by_part[place.part][place.row].as_py() != "duplicate"), found[0])


def _ingested(ingest: Table, place: Place) -> str:
    row = _row(ingest, place)
    texts = f"instruction: {_short(row['instruction'])}\nresponse: {_short(row['response'])}"
    fixed = ("sample_id", "source_uri", "source_line", "source_offset", "instruction", "response")
    carried = "".join(f"\n{name}: {value}" for name, value in row.items() if name not in fixed)
    return f"{_source(row)}\n{texts}{carried}"


def _source(row: Mapping[str, Any]) -> str:
    """After a cut of a large file nobody counted its lines."""
    place = f"byte {row['source_offset']}" if row["source_line"] is None else f"line {row['source_line']}"
    return f"{place} of {row['source_uri']}"


def _cleaned(tables: Mapping[str, Table], found: Sequence[Place], place: Place) -> str:
    row = _row(tables["clean"].only("status", "evidence"), place)
    if row["status"] != "ok":
        return f"dropped as {row['status']}: {row['evidence']}"
    source = tables["ingest"].only("source_uri", "source_line", "source_offset")
    repeats = [_row(source, other) for other in found if other != place]
    lines = "".join(f"\nrepeated by {_source(row)}, which was dropped" for row in repeats)
    return f"a sample: no earlier row has its texts{lines}"


def _clustered(tables: Mapping[str, Table], place: Place) -> str:
    cluster = tables["cluster"]
    row, sizes = _row(cluster, place), cluster.manifest["summary"]["cluster_sizes"]
    if row["cluster_id"] is None:
        is_sample = _row(tables["clean"].only("status"), place)["status"] == "ok"
        return (
            "in none: its embedding or cluster is not among the given rows"
            if is_sample
            else "in none, as it is no sample"
        )
    said = (
        f"cluster {row['cluster_id']} of {len(sizes)}, with {sizes[row['cluster_id']]:,} samples; squared distance {row['sq_distance']:.3f} "
        f"to its centre, {cluster.manifest['summary']['inertia']:.3f} over all samples"
    )
    exemplars = _exemplars(tables, row["cluster_id"])
    return said + "".join(f"\nnear the centre: {_short(text)}" for text in exemplars)


def _exemplars(tables: Mapping[str, Table], cluster_id: int) -> list[str]:
    """Those of the report, where it is finished."""
    samples = json.loads(tables["report"].folder.read("report.json"))["samples"] if "report" in tables else []
    near = [one["instruction"] for one in samples if one.get("near_centre") and one["cluster_id"] == cluster_id]
    return near[:3]


def _scored(score: Table, place: Place) -> str:
    row = _row(score, place)
    if row["ifd"] is None:
        return f"no score: {row['status']}" + (f": {row['evidence']}" if row["evidence"] else "")
    given, alone = (np.exp(row[name] / row["num_response_tokens"]) for name in ("nll_conditional", "nll_unconditional"))
    effect = "helps" if row["ifd"] < 1 else "does not help"
    cut = ", on what fits the window" if row["status"] == "truncated" else ""
    return (
        f"PPL(response | instruction) {given:.4g}, PPL(response) {alone:.4g} over {row['num_response_tokens']:,} response tokens{cut}: "
        f"IFD {row['ifd']:.4f}, the instruction {effect} to foretell the response"
    )


def _selected(tables: Mapping[str, Table], place: Place) -> str:
    select = tables["select"]
    reason = str(_row(select.only("reason"), place)["reason"])
    config = Config.model_validate_json(json.dumps(select.manifest["config"]))
    rule = config.select
    if reason == HELD_OUT:
        return f"not kept: held out, as {rule.held_out_fraction:.2%} of all samples are, to measure the held-out loss"
    seen = view([tables[stage].read(place.part) for stage in ("clean", "cluster", "score")], rule, config.seed)
    if reason == SEMANTIC_DUPLICATE:
        return f"not kept: it says nearly the same as an earlier sample of its cluster, {_row(tables['cluster'].only('repeats'), place)['repeats']}"
    if not seen.left_by()[place.row]:
        return f"not kept: {reason}; kept are scores from {rule.min_ifd:g} up to {rule.max_ifd:g}"
    value = str(seen.value_N[place.row].as_py() or "") if seen.value_N is not None else ""
    cuts = json.loads(select.folder.read("cuts.json"))
    group = [(cut["cluster_id"], cut["value"]) for cut in cuts].index((int(seen.cluster_N[place.row]), value))
    best, worst = Keys.of_bytes(select.folder.read("ranks.npz")).rank(group, int(seen.key_N[place.row]))
    return (
        f"{'kept' if reason == SELECTED else 'not kept'}: rank {best:,}{f' to {worst:,}' * (best < worst)} by {_key_name(rule)} among the "
        f"{cuts[group]['eligible']:,} eligible samples of {_group_name(rule, cuts[group])}, of which {cuts[group]['keep']:,} are kept"
        + (
            f" (the first that is not has {cuts[group]['cut_score']:.6g})"
            if cuts[group]["cut_score"] is not None
            else ""
        )
    )


def _packed(tables: Mapping[str, Table], place: Place) -> str:
    select, pack = tables["select"], tables["pack"]
    row, rule = _row(select.only("sample_id", "reason"), place), pack.manifest["config"]["pack"]
    folders = {SELECTED: (pack.folder, "training"), HELD_OUT: (pack.folder / HELD_OUT_PACKS, "held-out loss")}
    if row["reason"] not in folders:
        return "in no pack"
    folder, purpose = folders[row["reason"]]
    name = next(name for name, parts in pack_groups(select).items() if place.part in parts)
    packs = read_part(folder, name, ["sample_ids", "sequence_lengths"]).to_pylist()
    its = [pack for pack in packs if row["sample_id"] in pack["sample_ids"]]
    if not its:
        return f"in no pack: longer than the window of {rule['max_length']:,} tokens, or than the model's positions"
    strategy = rule["strategy"] if row["reason"] == SELECTED else "best_fit"
    where = [f"{sum(one['sequence_lengths']):,} tokens with {len(one['sample_ids']) - 1:,} others" for one in its]
    return f"packed for {purpose}, by {strategy}: in {' and in '.join(where)}"


def _key_name(rule: Select) -> str:
    names = {"longest": "response tokens", "column": rule.column, "random": "a draw", "cluster_random": "a draw"}
    return str(names.get(rule.strategy) or "IFD")


def _group_name(rule: Select, cut: Mapping[str, Any]) -> str:
    cluster = f"cluster {cut['cluster_id']}" if rule.strategy in BY_CLUSTER else "the lake"
    return cluster + (f" with {rule.per} {cut['value']!r}" if rule.per else "")


def _short(text: str) -> str:
    """On one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "\u2026"

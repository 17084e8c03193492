"""Several runs' selections side by side: how much each keeps, and of what. A table for the screen, a page, and the numbers.

Counts are of all rows, from select's manifests; clusters, length and style of rows of parts spread over the lake (raypipe.sampled), whose
texts are read once for all runs: seconds at any size, without Ray. What was found is put in `compare-{recipe}/`, compare.json last.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe import pipeline
from raypipe.identity import package_versions
from raypipe.ops.comparison_page import render
from raypipe.ops.composition import overall
from raypipe.ops.selection import SELECTED
from raypipe.ops.style import STYLES
from raypipe.sampled import candidates, spread, styled
from raypipe.screen import aligned
from raypipe.stage import folder_name
from raypipe.store import Folder

log = logging.getLogger("raypipe")
VERSION = 1  # raised whenever the same rows give other numbers
READ = ("ingest", "cluster", "score", "select")

Comparison = Mapping[str, Any]  # what is in compare.json


def compare(plans: Sequence[pipeline.Plan]) -> tuple[Comparison, Folder] | None:
    """None unless select is finished in all."""
    if not all(planned["select"].done for planned in plans):
        return None
    made_of = {
        "stage": "compare",
        "version": VERSION,
        "runs": {planned.config.name: [planned["select"].folder.name, planned.lake.digest] for planned in plans},
    }
    folder = pipeline.root_of(plans[0].config) / folder_name(made_of)
    if (there := folder.find("compare.json")) is not None:
        return json.loads(there), folder
    started = time.monotonic()
    texts: dict[str, pa.Table] = {}  # by folder of ingest: runs of a list share it
    rows = [row for number, planned in enumerate(plans) for row in _rows(planned, texts, baseline=number == 0)]
    found = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": package_versions().get("raypipe"),
        "root": plans[0].config.storage.root,
        "recipe": made_of,
        "num_rows": rows[-1]["of_rows"],
        "measured_rows": max(map(len, texts.values())),
        "rows": rows,
    }
    folder.put("index.html", render(found).encode())
    folder.put("compare.json", json.dumps(found, indent=1).encode())
    log.info("compared %d runs in %.1f s", len(plans), time.monotonic() - started)
    return json.loads(folder.read("compare.json")), folder


def _rows(planned: pipeline.Plan, texts: dict[str, pa.Table], *, baseline: bool) -> list[dict[str, Any]]:
    """What a run keeps; before it, as a baseline, what it could have kept."""
    tables = {name: planned[name].table for name in READ}  # select is finished, and so is what it reads
    parts, place = spread(tables["ingest"].parts, tables["ingest"].manifest["rows"]), planned["ingest"].folder.name
    if place not in texts:
        texts[place] = styled(tables["ingest"], parts)
    rows, manifest = candidates(tables, parts, texts[place]), tables["select"].manifest
    kept = {
        "run": planned.config.name,
        "kept": manifest["counts"].get(SELECTED, 0),
        "of_rows": manifest["rows"],
        "tokens": manifest["figures"]["kept_tokens"],
        **overall(rows, rows.column("reason").to_numpy() == SELECTED),
    }
    if not baseline:
        return [kept]
    return [{"run": None, "kept": None, "tokens": None, **overall(rows, np.ones(len(rows), bool))}, kept]


def shown(comparison: Comparison, folder: Folder) -> str:
    """For the screen."""
    heads = ("run", "kept", "of all rows", "tokens", "tokens a sample", "clusters", "median response", *STYLES)
    cells = [heads, *map(_cells, comparison["rows"])]
    legend = (
        f"clusters: as many equal ones would be filled as evenly; from there on measured on {comparison['measured_rows']:,} of "
        f"{comparison['num_rows']:,} rows"
    )
    return "\n".join([aligned(cells, right=range(1, len(heads))), legend, f"page  {folder.uri('index.html')}"])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    kept = ("", "", "", "")
    if row["run"] is not None:
        each = row["tokens"] / max(row["kept"], 1)
        kept = (f"{row['kept']:,}", f"{row['kept'] / row['of_rows']:.1%}", f"{row['tokens']:,.0f}", f"{each:.1f}")
    length = row["response_tokens"]
    styles = (f"{row[name]:.1%}" if row[name] is not None else "-" for name in STYLES)
    median = f"{length['median']:,.0f}" if length else "-"
    return (row["run"] or "all scored", *kept, f"{2 ** row['cluster_entropy']:.1f}", median, *styles)

"""`raypipe sweep-k`: several numbers of clusters, each fitted with several seeds on one sample of the embeddings.

Ray only fetches the sample, in one fold that reads every embedding once; the fits are those of stage cluster, in this process and
on its CPU: a round costs SAMPLE_ROWS * K * D multiplications, and the sample is held three times. What was found is put in
`sweep-{recipe}/`, sweep.json last; a sweep that is there is read and shown, without Ray. No run names such a folder, so
`raypipe gc` lists it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe import pipeline, stopping
from raypipe.config import Config
from raypipe.errors import ConfigError, DataError, Stopped
from raypipe.identity import package_versions
from raypipe.ops import kmeans, num_clusters
from raypipe.ops.sweep_page import render
from raypipe.part import Table
from raypipe.s3 import patience
from raypipe.screen import aligned
from raypipe.session import ray_session
from raypipe.stage import folder_name
from raypipe.store import Folder

log = logging.getLogger("raypipe")
VERSION = 1  # raised whenever the same rows give other numbers
SAMPLE_ROWS, NUM_SEEDS = 50_000, 3
SURPLUS = 1.1  # drawn beyond the sample: twenty standard deviations of a draw's count, so that it is never short

Sweep = Mapping[str, Any]  # what is in sweep.json


def sweep(config: Config, numbers: Sequence[str]) -> tuple[Sweep, Folder]:
    """What is known about each k, and the folder where it is. ConfigError unless embed is finished."""
    ks = parsed(numbers)
    with patience(pipeline.PLAN_PATIENCE_S):
        planned = pipeline.plan(config, "cluster", asked="sweep-k")
        made_of = recipe(planned, ks)
        folder = pipeline.root_of(config) / folder_name(made_of)
        if (there := folder.find("sweep.json")) is not None:
            return json.loads(there), folder
        table = _embeddings(planned, ks)
        folder.put("recipe.json", json.dumps(made_of, indent=1).encode())  # a root that refuses does so now
    found = _measured(planned, ks, table)
    heading = {
        "name": config.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": package_versions().get("raypipe"),
        "root": planned.config.storage.root,
        "recipe": made_of,
        "metric": config.cluster.metric,
        "num_samples": table.manifest["counts"]["ok"],
    }
    folder.put("index.html", render({**heading, **found}).encode())
    folder.put("sweep.json", json.dumps({**heading, **found}, indent=1).encode())
    return json.loads(folder.read("sweep.json")), folder  # another driver's, where it was first


def parsed(numbers: Sequence[str]) -> list[int]:
    """Ascending, each once."""
    odd = [number for number in numbers if not number.isascii() or not number.isdecimal() or int(number) < 1]
    ks = sorted({int(number) for number in numbers if number not in odd})
    if odd or len(ks) < 2:
        raise ConfigError(
            f"sweep-k: got {' '.join(odd or numbers) or 'no number'}, wanted at least two different numbers of clusters. "
            "For example: raypipe sweep-k CONFIG 5 10 20 50"
        )
    return ks


def recipe(planned: pipeline.Plan, ks: Sequence[int]) -> dict[str, Any]:
    """All that decides the numbers."""
    return {
        "stage": "sweep",
        "version": VERSION,
        "embed": planned["embed"].folder.name,
        "lake": planned.lake.digest,
        "metric": planned.config.cluster.metric,
        "seed": planned.config.seed,
        "num_seeds": NUM_SEEDS,
        "sample_rows": SAMPLE_ROWS,
        "ks": list(ks),
    }


def shown(sweep: Sweep, folder: Folder) -> str:
    """For the screen: a table with the choice of each criterion marked, what that means in words, where the page is."""
    heads = ["k", "inertia", "silhouette", "Calinski-Harabasz", "BIC", "stability", "smallest", "largest"]
    digits = {"inertia": 4, "silhouette": 4, "calinski_harabasz": 1, "bic": 0, "stability": 3}
    cells = [tuple(f"{head} " for head in heads)]
    for row in sweep["rows"]:
        of_criteria = (
            (f"{row[name]['mean']:,.{places}f}" if row[name] else "-") + " *"[sweep["choices"][name] == row["k"]]
            for name, places in digits.items()
        )
        cells.append((f"{row['k']:,} ", *of_criteria, f"{row['smallest']:.2%} ", f"{row['largest']:.2%} "))
    of = f"{sweep['sample_rows']:,} of {sweep['num_samples']:,} samples, {sweep['metric']}"
    legend = f"* chosen: elbow of inertia, lowest BIC, else the highest; means over {len(sweep['seeds'])} seeds on {of}"
    lines = [aligned(cells, right=range(len(heads))), legend, *sweep["verdict"]]
    return "\n".join([*lines, f"page  {folder.uri('index.html')}"])


def _embeddings(planned: pipeline.Plan, ks: Sequence[int]) -> Table:
    """ConfigError or DataError where they are not what these k need."""
    table = planned["embed"].table  # plan() saw it finished
    num_samples = table.manifest["counts"].get("ok", 0)
    if ks[-1] > min(num_samples, SAMPLE_ROWS):
        limit = f"{num_samples:,} samples are there"
        limit = f"{SAMPLE_ROWS:,} of them are the sample" if num_samples > SAMPLE_ROWS else limit
        raise DataError(f"sweep-k: {ks[-1]:,} clusters asked for, and {limit}. Give smaller numbers")
    return table


def _measured(planned: pipeline.Plan, ks: Sequence[int], table: Table) -> dict[str, Any]:
    started, metric = time.monotonic(), planned.config.cluster.metric
    x_ND = _sample(planned.config, table)
    log.info("sweep-k: %d of %d samples read in %.1f s", len(x_ND), table.manifest["counts"]["ok"], _since(started))
    seeds = [planned.config.seed + number for number in range(NUM_SEEDS)]
    rows = [_row(x_ND, k, metric, seeds) for k in ks]
    chosen = num_clusters.choices(rows)
    log.info("sweep-k done in %.1f s: %d fits on %d rows", _since(started), len(ks) * len(seeds), len(x_ND))
    return {
        "ks": list(ks),
        "seeds": seeds,
        "sample_rows": len(x_ND),
        "wall_s": round(_since(started), 3),
        "choices": chosen,
        "verdict": num_clusters.verdict(rows, chosen),
        "rows": rows,
    }


def _row(x_ND: NDArray[np.float32], k: int, metric: str, seeds: Sequence[int]) -> dict[str, Any]:
    started, qualities, ids = time.monotonic(), [], []
    for seed in seeds:
        found = kmeans.assign(x_ND, num_clusters.fit(x_ND, k, metric, seed, _check_stop))
        qualities.append(num_clusters.quality(x_ND, found, k))
        ids.append(found.cluster_id)
    log.info("k = %d: inertia %.4f, %.1f s", k, np.mean([one.inertia for one in qualities]), _since(started))
    of_seeds = [{"seed": seed, **vars(one)} for seed, one in zip(seeds, qualities, strict=True)]
    return {**num_clusters.row(k, qualities, ids), "fits": of_seeds}


def _sample(config: Config, table: Table) -> NDArray[np.float32]:
    """[N, D]: the rows with the lowest draws, SAMPLE_ROWS of them or all, in the order of draws, whatever the parts."""
    from raypipe.folds import shards  # loads Ray

    share = min(1.0, SURPLUS * SAMPLE_ROWS / table.manifest["counts"]["ok"])
    draw, pool = kmeans.Draw(share, config.seed, config.cluster.metric), config.resources.cluster
    with ray_session(), shards([table.only("sample_id", "embedding")], pool=pool) as held:
        drawn: kmeans.Drawn = held.fold(kmeans.Below(share), of=draw)
    return drawn.x_ND[:SAMPLE_ROWS]


def _check_stop() -> None:
    if stopping.asked():
        raise Stopped("sweep-k: stopped as asked. Nothing is kept; a rerun begins anew")


def _since(started: float) -> float:
    return time.monotonic() - started

"""Cluster: mini-batch k-means over the embeddings; a fit of folds over rows held by actors, then a map that assigns.

After every round the state is put in `_rounds/`, so a killed fit goes on where it was.

Columns: sample_id, cluster_id (int32), sq_distance (float32), both null where the embedding is; beside the parts
`centers.npy` [k, d], `counts.npy` [k] and `distances.npy`, the histogram of squared distances (ops.distances).
"""

from __future__ import annotations

import io
import logging
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.errors import DataError
from raypipe.folds import fold_parts, shards
from raypipe.ops import kmeans
from raypipe.ops.distances import MeasureDistances
from raypipe.part import Table, add_up, with_figures
from raypipe.parts import map_parts
from raypipe.sizing import device_of
from raypipe.stage import Inputs, Result, all_footers
from raypipe.store import Folder

log = logging.getLogger("raypipe")


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    embed, pool, accelerator = inputs["embed"], config.resources.cluster, config.resources.accelerator
    num_rows = embed.manifest["counts"].get("ok", 0)
    if num_rows < config.cluster.num_clusters:
        raise DataError(
            f"cluster.num_clusters: {config.cluster.num_clusters} clusters asked for, {num_rows} samples there. Lower it, or add data"
        )
    if not out.has("centers.npy"):
        fit = kmeans.Fit(num_rows, config.cluster.num_clusters, config.cluster.metric, config.seed, device_of(pool))
        with shards([embed.only("sample_id", "embedding")], pool=pool, accelerator=accelerator) as held:
            _fit(fit, partial(held.fold, of=fit.drawn), out)
    make = partial(Assign, out, config.cluster.metric, device_of(pool))
    parts = map_parts(make, [embed], out, pool=pool, accelerator=accelerator, light=True)
    return Result(parts, _figures(config, inputs, out, parts))


class Assign:
    """A part's figure `silhouette` is the sum of its rows' simplified silhouettes: 1 - distance / distance to the second nearest."""

    def __init__(self, folder: Folder, metric: str, device: str) -> None:
        self.centers_KD, self.metric, self.device = load_npy(folder, "centers.npy"), metric, device

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        there = tables[0].column("embedding").is_valid().to_numpy()
        found = kmeans.assign(kmeans.rows_of(tables[0], self.metric), self.centers_KD, self.device)
        cluster_id, sq_distance = np.zeros(len(there), np.int32), np.zeros(len(there), np.float32)
        cluster_id[there], sq_distance[there] = found.cluster_id, found.sq_distance
        columns = {"cluster_id": pa.array(cluster_id, mask=~there), "sq_distance": pa.array(sq_distance, mask=~there)}
        made = pa.table({"sample_id": tables[0].column("sample_id"), **columns})
        return with_figures(made, silhouette=float(kmeans.exact(kmeans.silhouette(found)).sum()))


def _fit(fit: kmeans.Fit, fold: kmeans.Fold, out: Folder) -> None:
    rounds = out / "_rounds"
    number, state = _last_round(rounds) or (0, None)
    state = state or fit.start(fold)
    while not state.done and number < kmeans.MAX_ROUNDS:
        state = fit.advance(fold, state)
        rounds.put(f"{number:04d}.npz", npz(state))
        number, state = _last_round(rounds, after=number + 1) or (number + 1, state)
    log.info(
        "k-means: %d rounds, mean squared distance %.4f in a batch of %.1f %%", number, state.inertia, 100 * state.share
    )
    out.put("centers.npy", npy(state.centers_KD))


def _figures(config: Config, inputs: Inputs, out: Folder, parts: Any) -> dict[str, Any]:
    """For the manifest, from columns and footers of the parts."""
    footers = all_footers(out, parts, inputs.lake)
    found = fold_parts(
        MeasureDistances(config.cluster.num_clusters),
        [Table(out, tuple(footers)).only("cluster_id", "sq_distance")],
        pool=config.resources.cluster,
    )
    out.put("counts.npy", npy(found.counts_K))
    out.put("distances.npy", npy(found.histogram_B))
    num_rows = int(found.counts_K.sum())
    return {
        "rounds": len((out / "_rounds").list()),
        "inertia": found.inertia,
        "silhouette": add_up(footers.values())["figures"]["silhouette"] / num_rows,
        "cluster_sizes": found.counts_K.tolist(),
        "empty_clusters": int((found.counts_K == 0).sum()),
    }


def _last_round(rounds: Folder, after: int = 0) -> tuple[int, kmeans.State] | None:
    """How many rounds were done, where more than `after`, and the state since: the same whichever driver did them."""
    names = rounds.list()
    if len(names) <= after:
        return None
    saved = np.load(io.BytesIO(rounds.read(names[-1])), allow_pickle=False)
    state = kmeans.State(saved["centers_KD"], float(saved["share"]), float(saved["inertia"]), bool(saved["done"]))
    return len(names), state


def npz(state: kmeans.State) -> bytes:
    np.savez(
        buffer := io.BytesIO(), centers_KD=state.centers_KD, share=state.share, inertia=state.inertia, done=state.done
    )
    return buffer.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()


def load_npy(folder: Folder, name: str) -> NDArray[Any]:
    return np.asarray(np.load(io.BytesIO(folder.read(name)), allow_pickle=False))

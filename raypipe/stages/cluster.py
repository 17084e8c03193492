"""Cluster: mini-batch k-means over the embeddings; a fit of folds over rows held by actors, then a map that assigns.

After every round the state is put in `_rounds/`, so a killed fit goes on where it was.

Columns: sample_id, cluster_id (int32), sq_distance (float32), both null where the embedding is; beside the parts
`centers.npy` [k, d] and `counts.npy` [k].
"""

from __future__ import annotations

import io
import logging
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.config import Cluster, Config
from raypipe.errors import DataError
from raypipe.folds import shards
from raypipe.ops import kmeans
from raypipe.parts import map_parts
from raypipe.stage import Inputs, Result
from raypipe.store import Folder

log = logging.getLogger("raypipe")


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    embed, pool = inputs["embed"], config.resources.cluster
    num_rows = embed.manifest["counts"].get("ok", 0)
    if num_rows < config.cluster.num_clusters:
        raise DataError(
            f"cluster.num_clusters: {config.cluster.num_clusters} clusters asked for, {num_rows} samples there. Lower it, or add data"
        )
    if not out.has("counts.npy"):
        with shards([embed], pool=pool, keep=True) as held:
            _fit(held.fold, config.cluster, config.seed, num_rows, out)
    parts = map_parts(partial(Assign, out, config.cluster.metric), [embed], out, pool=pool, light=True)
    return Result(parts, _figures(out))


class Assign:
    def __init__(self, folder: Folder, metric: str) -> None:
        self.centers_KD, self.metric = load_npy(folder, "centers.npy"), metric

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        there = tables[0].column("embedding").is_valid().to_numpy()
        cluster_id, sq_distance = np.zeros(len(there), np.int32), np.zeros(len(there), np.float32)
        cluster_id[there], sq_distance[there] = kmeans.assign(kmeans.rows_of(tables[0], self.metric), self.centers_KD)
        columns = {"cluster_id": pa.array(cluster_id, mask=~there), "sq_distance": pa.array(sq_distance, mask=~there)}
        return pa.table({"sample_id": tables[0].column("sample_id"), **columns})


def _fit(fold: kmeans.Fold, config: Cluster, seed: int, num_rows: int, out: Folder) -> None:
    rounds = out / "_rounds"
    start = partial(kmeans.start, fold, num_rows, config.num_clusters, metric=config.metric, seed=seed)
    number, state = _last_round(rounds) or (0, start())
    while not state.done and number < kmeans.MAX_ROUNDS:
        state = kmeans.advance(fold, state, metric=config.metric, seed=seed)
        rounds.put(f"{number:04d}.npz", npz(state))
        number, state = _last_round(rounds, after=number + 1) or (number + 1, state)
    final: kmeans.Statistics = fold(kmeans.Step(kmeans.Batch(1.0, seed, config.metric), state.centers_KD))
    log.info("k-means: %d rounds, mean squared distance %.4f", number, final.inertia / num_rows)
    out.put("centers.npy", npy(state.centers_KD))
    out.put("counts.npy", npy(final.counts_K))


def _figures(out: Folder) -> dict[str, Any]:
    """Figures for the manifest, from what the fit left in the folder."""
    counts_K = load_npy(out, "counts.npy")
    return {
        "rounds": len((out / "_rounds").list()),
        "cluster_sizes": counts_K.tolist(),
        "empty_clusters": int((counts_K == 0).sum()),
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

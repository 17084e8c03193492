"""Cluster: mini-batch k-means over the embeddings; a fit of folds over rows held by actors, then a map that assigns.

After every round the state is put in `_rounds/`, so a killed fit goes on where it was.

With `cluster.centers` nothing is fitted: rows are assigned to the centres of another run, so the stage is row-wise, and drift says
how far they lie from what those were fitted on.

Columns: sample_id, cluster_id (int32), sq_distance (float32), both null where the embedding is, and with cluster.semantic_similarity `repeats`,
part and row of an earlier sample of its cluster that a sample is so near to; beside the parts
`centers.npy` [k, d] and, of a fit, `counts.npy` [k] and `distances.npy`, the histogram of squared distances (ops.distances).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.errors import ConfigError, DataError
from raypipe.folds import fold_parts, shards
from raypipe.given import Given, account, exchange, numbers, put_beside
from raypipe.ops import kmeans
from raypipe.ops import members as members_of
from raypipe.ops.distances import EDGES, Distances, MeasureDistances, drift, silhouette
from raypipe.ops.figures import median_of
from raypipe.ops.splitting import split
from raypipe.ops.sums import exact
from raypipe.ops.warnings import of_clusters
from raypipe.part import Footer, Table, add_up, with_figures
from raypipe.parts import map_parts
from raypipe.semantic import mark_repeats
from raypipe.sizing import device_of
from raypipe.stage import Inputs, Result, all_footers
from raypipe.store import Folder

log = logging.getLogger("raypipe")
DRIFT = 0.1  # of the distributions of squared distances, above which a user should fit anew


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    if config.cluster.given is not None:
        return _given(config, inputs, out)
    embed, pool = inputs["embed"], config.resources.cluster
    if not out.has("centers.npy"):
        centers = _frozen(config) if config.cluster.centers else _fitted(config, embed, out)
        out.put("centers.npy", npy(centers))
    return _made(config, inputs, out, partial(Assign, out, config.cluster.metric, device_of(pool)), [embed])


def _made(
    config: Config,
    inputs: Inputs,
    out: Folder,
    make: Callable[[], Any],
    tables: Sequence[Table],
    given: Given | None = None,
) -> Result:
    """The parts, by way of `_assigned/` where semantic duplicates are asked for."""
    pool, similarity = config.resources.cluster, config.cluster.semantic_similarity
    assigned = out if similarity is None else out / "_assigned"
    footers = all_footers(assigned, map_parts(make, tables, assigned, pool=pool, light=True), inputs.lake)
    clusters = Table(assigned, tuple(footers))
    summary = _summary(config, out, clusters, footers)
    if given is not None:
        told = account("cluster.given", given, footers, inputs["embed"])
        summary |= {**told, "warnings": [*summary["warnings"], *told["warnings"]]}
    if similarity is None:
        return Result(footers, summary)
    return Result(
        mark_repeats(inputs["embed"].only("embedding"), clusters, summary["cluster_sizes"], similarity, out), summary
    )


class Assign:
    """A part's figure `silhouette` is the sum of its rows' simplified silhouettes: 1 - distance / distance to the second nearest."""

    def __init__(self, folder: Folder, metric: str, device: str) -> None:
        self.centers_KD, self.metric, self.device = load_npy(folder, "centers.npy"), metric, device

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        there = tables[0].column("embedding").is_valid().to_numpy()
        x_ND = kmeans.rows_of(tables[0], self.metric)
        if x_ND.shape[1] != self.centers_KD.shape[1]:
            raise ConfigError(
                f"cluster.centers: centres have {self.centers_KD.shape[1]} dimensions, wanted the {x_ND.shape[1]} of the embeddings. "
                "Were they fitted on another model's? Set embed.model to that, or give other centres"
            )
        found = kmeans.assign(x_ND, self.centers_KD, self.device)
        made = _columns(tables[0].column("sample_id"), there, found)
        return with_figures(made, silhouette=float(exact(silhouette(found)).sum()))


def _given(config: Config, inputs: Inputs, out: Folder) -> Result:
    """Ids are put beside the samples first (`_placed/`); centres are the means of their members, and distances are to these."""
    embed, pool, metric = inputs["embed"], config.resources.cluster, config.cluster.metric
    ids = embed.only("sample_id")
    paths, endpoint = config.cluster.given or (), config.storage.endpoint
    given = exchange("cluster.given", paths, ["cluster_id"], clusters_of, ids, out, inputs.lake, endpoint)
    put_beside(given, ids, numbered, out / "_placed")
    tables = [embed, Table(out / "_placed", embed.parts)]
    if not out.has("centers.npy"):
        members: members_of.Members = fold_parts(members_of.Gather(metric), tables, pool=pool)
        out.put("centers.npy", npy(members.centers(metric)))
    return _made(config, inputs, out, partial(Measure, out, metric), tables, given)


def clusters_of(rows: pa.Table) -> pa.Table:
    """sample_id and cluster_id. ValueError for ids that number no clusters."""
    made = pa.table(
        {"sample_id": rows.column("sample_id"), "cluster_id": numbers(rows, "cluster_id", pa.int32())}
    ).drop_null()
    id_N = made.column("cluster_id").to_numpy()
    if len(id_N) and not 0 <= id_N.min() <= id_N.max() < members_of.MOST_CLUSTERS:
        raise ValueError(
            f"column cluster_id: got {id_N.min()} to {id_N.max()}, wanted numbers from 0 up to {members_of.MOST_CLUSTERS:,}. Leave rows of "
            "no cluster out (they are then counted as not given), or number them"
        )
    return made


def numbered(samples: pa.Table, rows: pa.Table) -> pa.Table:
    return pa.table({"sample_id": samples.column("sample_id"), "cluster_id": rows.column("cluster_id")})


class Measure:
    """As Assign, of clusters that are given. A part's figure `not_given` counts embeddings without one."""

    def __init__(self, folder: Folder, metric: str) -> None:
        self.centers_KD, self.metric = load_npy(folder, "centers.npy"), metric

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        there = members_of.both(tables)
        id_N = tables[1].column("cluster_id").filter(pa.array(there)).to_numpy()
        found = members_of.distances(
            kmeans.rows_of(tables[0].filter(pa.array(there)), self.metric), id_N, self.centers_KD
        )
        made = _columns(tables[0].column("sample_id"), there, found)
        not_given = len(there) - tables[0].column("embedding").null_count - int(there.sum())
        return with_figures(made, silhouette=float(exact(silhouette(found)).sum()), not_given=not_given)


def _columns(sample_id: Any, there: NDArray[np.bool_], found: kmeans.Nearest) -> pa.Table:
    cluster_id, sq_distance = np.zeros(len(there), np.int32), np.zeros(len(there), np.float32)
    cluster_id[there], sq_distance[there] = found.cluster_id, found.sq_distance
    columns = {"cluster_id": pa.array(cluster_id, mask=~there), "sq_distance": pa.array(sq_distance, mask=~there)}
    return pa.table({"sample_id": sample_id, **columns})


def _fitted(config: Config, embed: Table, out: Folder) -> NDArray[np.float32]:
    cluster, pool = config.cluster, config.resources.cluster
    num_rows = embed.manifest["counts"].get("ok", 0)
    if num_rows < cluster.num_clusters:
        raise DataError(
            f"cluster.num_clusters: {cluster.num_clusters} clusters asked for, {num_rows} samples there. Lower it, or add data"
        )
    fit = kmeans.Fit(num_rows, cluster.num_clusters, cluster.metric, config.seed, device_of(pool))
    rows = embed.only("sample_id", "embedding")
    with shards([rows], pool=pool) as held:
        fold = partial(held.fold, of=fit.drawn)
        state = _rounds(fit, fold, out / "_rounds")
        if cluster.max_cluster_fraction is None:
            return state.centers_KD
        return split(fit, fold, state, cluster.max_cluster_fraction)


def _rounds(fit: kmeans.Fit, fold: kmeans.Fold, rounds: Folder) -> kmeans.State:
    """From the last round that was put, by whichever driver."""
    number, state = _last_round(rounds) or (0, None)
    state = state or fit.start(fold)
    while not state.done and number < kmeans.MAX_ROUNDS:
        state = fit.advance(fold, state)
        rounds.put(f"{number:04d}.npz", npz(state))
        number, state = _last_round(rounds, after=number + 1) or (number + 1, state)
    log.info(
        "k-means: %d rounds, mean squared distance %.4f in a batch of %.3g %%", number, state.inertia, 100 * state.share
    )
    return state


def _frozen(config: Config) -> NDArray[np.float32]:
    place, name = _centers(config)
    try:
        centers = load_npy(place, name)
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(
            f"cluster.centers: {place.uri(name)} is no array of numpy ({error}). Give a centers.npy"
        ) from error
    if (
        centers.ndim != 2
        or not len(centers)
        or not np.issubdtype(centers.dtype, np.floating)
        or not np.isfinite(centers).all()
    ):
        raise ConfigError(
            f"cluster.centers: {place.uri(name)} is {centers.dtype} of shape {centers.shape}, wanted finite numbers of shape [clusters, "
            "dimensions]. Give the centers.npy of a run"
        )
    return centers.astype(np.float32)


def _centers(config: Config) -> tuple[Folder, str]:
    place, _, name = str(config.cluster.centers).rpartition("/")
    return Folder.at(place, config.storage.endpoint), name


def _summary(config: Config, out: Folder, clusters: Table, footers: Mapping[str, Footer]) -> dict[str, Any]:
    """For the manifest, from columns and footers of the parts."""
    columns = clusters.only("cluster_id", "sq_distance")
    measure = MeasureDistances(len(load_npy(out, "centers.npy")))
    found: Distances = fold_parts(measure, [columns], pool=config.resources.cluster)
    summary = {
        "inertia": found.inertia,
        "silhouette": add_up(footers.values())["figures"]["silhouette"] / max(int(found.counts_K.sum()), 1),
        "cluster_sizes": found.counts_K.tolist(),
        "empty_clusters": int((found.counts_K == 0).sum()),
    }
    if config.cluster.centers:
        return summary | _drift(config, found)
    out.put("counts.npy", npy(found.counts_K))
    out.put("distances.npy", npy(found.histogram_B))
    summary |= {
        "rounds": len((out / "_rounds").list()),
        "warnings": of_clusters(summary["silhouette"], len(found.counts_K)),
    }
    most = config.cluster.max_cluster_fraction or 1.0
    if (largest := found.counts_K.max() / found.counts_K.sum()) > most:
        summary["warnings"] += [
            f"the largest cluster holds {largest:.1%} of the samples, more than cluster.max_cluster_fraction={most:g}: its rows cannot be "
            "told apart. Look for repeated instructions"
        ]
    return summary


def _drift(config: Config, found: Distances) -> dict[str, Any]:
    """How the distances here differ from those of the fit, where its folder is at hand."""
    place, name = _centers(config)
    data = place.find("distances.npy")
    if data is None:
        return {"drift": None, "warnings": [f"drift is unknown: there is no distances.npy beside {place.uri(name)}"]}
    before_B = np.load(io.BytesIO(data), allow_pickle=False)
    medians = [median_of(counts_B, EDGES) for counts_B in (before_B, found.histogram_B)]
    moved = drift(before_B, found.histogram_B)
    warnings = [
        f"these samples lie elsewhere than those the centres were fitted on: squared distances differ by {moved:.2f} "
        f"(Kolmogorov-Smirnov; above {DRIFT:g} is much), median {medians[0]:.3g} -> {medians[1]:.3g}. Fit anew: cluster.centers=null"
    ]
    return {"drift": moved, "median_sq_distance": medians, "warnings": warnings if moved > DRIFT else []}


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

"""Semantic duplicates: samples of one cluster whose embeddings point nearly the same way, of which the later one goes (SemDeDup, Abbas et al. 2023).

A task compares all pairs within some clusters, and for that reads the embeddings of all parts; so clusters are put together to up to half a
million rows a task, which is a gigabyte of memory at 768 dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.errors import DataError
from raypipe.items import map_items
from raypipe.ops.kmeans import unit_rows
from raypipe.ops.near_vectors import near_vectors
from raypipe.pairs import Pairs, put_pairs
from raypipe.part import Footer, Table
from raypipe.parts import map_parts
from raypipe.resources import Pool
from raypipe.store import Folder

TASK_ROWS = 500_000
MOST_ROWS = 200_000  # of a cluster: five minutes of a core at 384 dimensions, and four times as much for twice the rows


def mark_repeats(
    embed: Table, clusters: Table, sizes: Sequence[int], similarity: float, out: Folder
) -> dict[str, Footer | None]:
    """Parts of `clusters` with a column more, `repeats`: 'part row' of the earlier row that a row repeats, or null. DataError for a cluster that is too large."""
    if (most := max(sizes)) > MOST_ROWS:
        raise DataError(
            f"cluster.semantic_similarity: a cluster holds {most:,} samples, and all its pairs are compared; wanted at most {MOST_ROWS:,}. "
            "Raise cluster.num_clusters, or set cluster.max_cluster_fraction"
        )
    repeats = Table(out / "_repeats", clusters.parts)
    if todo := set(clusters.parts) - set(out.list()):
        find = partial(find_repeats, embed=embed, clusters=clusters, similarity=similarity)
        found = map_items(find, _together(sizes), label=repeats.folder.name)
        put_pairs(np.concatenate(found, axis=1), repeats, todo)
    return map_parts(Add, [clusters, repeats], out, pool=Pool(), light=True)


def find_repeats(cluster_ids: NDArray[np.int64], *, embed: Table, clusters: Table, similarity: float) -> Pairs:
    """Within each of these clusters."""
    pieces, places = [], []
    for place, part in enumerate(clusters.parts):
        ids = clusters.read(part).column("cluster_id")
        (rows,) = np.nonzero(np.isin(ids.fill_null(-1).to_numpy(), cluster_ids))
        column = embed.read(part).column("embedding").combine_chunks().take(pa.array(rows))
        pieces.append(column.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), column.type.list_size))
        places.append(np.stack([np.full(len(rows), place), rows, ids.take(pa.array(rows)).to_numpy()]))
    x_ND, (place_N, row_N, id_N) = np.concatenate(pieces), np.concatenate(places, axis=1)
    pairs = [np.empty((4, 0), np.int64)]
    for cluster_id in cluster_ids:
        (mine,) = np.nonzero(id_N == cluster_id)
        later, first = near_vectors(unit_rows(x_ND[mine].astype(np.float32)), similarity)
        pairs.append(np.stack([place_N[mine][later], row_N[mine][later], place_N[mine][first], row_N[mine][first]]))
    return np.concatenate(pairs, axis=1)


class Add:
    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        clusters, repeats = tables
        said = np.full(len(clusters), None, object)
        said[repeats.column("row").to_numpy()] = repeats.column("first").to_pylist()
        return clusters.append_column("repeats", pa.array(said, pa.string()))


def _together(sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Ids of clusters, in runs of TASK_ROWS rows at most."""
    runs, rows = [list[int]()], 0
    for cluster_id, size in enumerate(sizes):
        if runs[-1] and rows + size > TASK_ROWS:
            runs, rows = [*runs, []], 0
        runs[-1].append(cluster_id)
        rows += size
    return [np.array(run) for run in runs]

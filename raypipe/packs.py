"""A pack folder as training reads it: any pack by its place, and the shapes of all, from which steps are planned.

Beside the packs' parts are small ones of the same names in `_shapes/`, so that a plan over millions of packs reads megabytes, not
all tokens. A pack is read by its row group, in one range request; every rank of a training run reads just the packs it works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.ops.packing import Pack, group_parts
from raypipe.ops.selection import SELECTED
from raypipe.ops.steps import Shapes
from raypipe.part import THREADS, UNREADABLE, Table, damaged, read_part
from raypipe.store import Folder

GROUP_SAMPLES = 10_000  # selected, that are packed apart, or more
ROW_GROUP = (
    32  # packs that are read at once; a smaller one makes footers of a part of 2,000 packs weigh more than they save
)
HELD_OUT_PACKS, SHAPES = "_held_out", "_shapes"  # folders beside a pack folder's parts
GROUPS_KEPT = 64
PACKS = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("sequence_lengths", pa.list_(pa.int32())),
        ("sample_ids", pa.list_(pa.string())),
        ("cluster_ids", pa.list_(pa.int32())),
    ]
)
PACK_SHAPES = pa.schema(
    [("sequence_lengths", pa.list_(pa.int32())), ("num_samples", pa.int32()), ("num_target_tokens", pa.int32())]
)


def pack_groups(select: Table) -> dict[str, tuple[str, ...]]:
    """Parts of a pack folder, and the parts of select that each holds the samples of."""
    counts = [part["counts"].get(SELECTED, 0) for part in select.manifest["parts"]]
    groups = group_parts(counts, GROUP_SAMPLES)
    return {f"part-{place:07d}.parquet": select.parts[a:b] for place, (a, b) in enumerate(groups)}


def shapes_of(packs: pa.Table, num_target_tokens: pa.Array) -> pa.Table:
    columns = [packs.column("sequence_lengths"), pc.list_value_length(packs.column("sample_ids")), num_target_tokens]
    return pa.Table.from_arrays(columns, schema=PACK_SHAPES)


class PackReader:
    """Packs of a pack folder by their place over all parts; holds the row groups it read last. May be shared by threads."""

    def __init__(self, folder: Folder, parts: Sequence[str], *, divisible: bool) -> None:
        self.folder, self.parts = folder, parts
        with ThreadPoolExecutor(THREADS) as threads:
            tables = list(threads.map(lambda part: read_part(folder / SHAPES, part), parts))
        self.firsts = np.cumsum([0, *map(len, tables)])
        table = pa.concat_tables(tables).combine_chunks()
        lists = table.column("sequence_lengths")
        self.shapes = Shapes(
            lengths=pc.list_flatten(lists).to_numpy().astype(np.int64),
            bounds=np.cumsum([0, *pc.list_value_length(lists).to_numpy()]),
            num_samples=table.column("num_samples").to_numpy().astype(np.int64),
            target_tokens=table.column("num_target_tokens").to_numpy().astype(np.int64),
            divisible=divisible,
        )
        self.metadata = lru_cache(maxsize=None)(self._metadata)
        self.rows = lru_cache(maxsize=GROUPS_KEPT)(self._rows)

    def __getitem__(self, place: int) -> Pack:
        part = int(np.searchsorted(self.firsts, place, side="right")) - 1
        group, row = divmod(place - int(self.firsts[part]), ROW_GROUP)
        table = self.rows(self.parts[part], group)
        tokens, labels = (table.column(name)[row].values.to_numpy() for name in ("input_ids", "labels"))
        named = (table.column(name)[row].as_py() for name in ("sequence_lengths", "sample_ids", "cluster_ids"))
        return Pack(tokens, labels, *named)

    def _metadata(self, part: str) -> Any:
        with self.folder.open(part) as file:
            return pq.read_metadata(file)

    def _rows(self, part: str, group: int) -> pa.Table:
        """DataError, with what to do, where its bytes are not what was written."""
        with self.folder.open(part) as file:
            try:
                source = pq.ParquetFile(
                    file, metadata=self.metadata(part), pre_buffer=True, page_checksum_verification=True
                )
                return source.read_row_group(group)
            except UNREADABLE as error:
                raise damaged(self.folder, part, f"row group {group} cannot be read ({error})") from error

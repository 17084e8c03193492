"""What makes two things the same: the one text of a value, and a digest of a table's values.

Two runs of one part differ in bytes (their footers hold seconds) and are equal when their columns' digests are: whatever the
chunks, slices, padding or file encoding.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import ConfigError


def column_digests(table: pa.Table) -> dict[str, str]:
    """Of every column: sha256, 16 hex digits, over type, length, validity and values."""
    return {name: _digest(column) for name, column in zip(table.column_names, table.columns, strict=True)}


def columns_digest(digests: Mapping[str, str]) -> str:
    """All columns of a table, in order, as one."""
    return hashlib.sha256(json.dumps(list(digests.items())).encode()).hexdigest()[:16]


def _digest(column: pa.ChunkedArray) -> str:
    kind = re.sub(r"<(item|element): ", "<", str(column.type))  # Parquet gives a list's values another name
    digest = hashlib.sha256(
        f"{kind};{len(column)};".encode()
    )  # bits of validity are padded: a null more would not show
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    _update(digest, pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array)
    return digest.hexdigest()[:16]


def _update(digest: Any, array: pa.Array) -> None:
    """Validity, then lengths, then the values that are there: what lies under a null is never looked at."""
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    array = array.drop_null()
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        digest.update(pc.list_value_length(array).cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
        _update(digest, array.flatten())
    elif pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        digest.update(pc.binary_length(array).cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
        digest.update(text_bytes(array))
    else:
        digest.update(array.to_numpy(zero_copy_only=False).tobytes())


def text_bytes(array: pa.Array) -> memoryview:
    """The bytes of all strings of an array that has no nulls, one after the other; not copied."""
    _, offsets, values = array.buffers()
    if values is None:
        return memoryview(b"")
    first, last = np.frombuffer(offsets, np.int32)[[array.offset, array.offset + len(array)]]
    return memoryview(values)[first:last]


def canonical_json(value: Any) -> str:
    """The one text of a value, for digests. ConfigError for anything whose text is not stable (sets, objects, NaN)."""
    _refuse_unstable(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _refuse_unstable(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"recipe{where}: key {key!r} is a {type(key).__name__}, wanted a string")
            _refuse_unstable(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _refuse_unstable(item, f"{where}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"recipe{where}: {value} has no stable form. Use a finite number")
    elif not isinstance(value, str | int | float | None):
        raise ConfigError(
            f"recipe{where}: a {type(value).__name__} has no stable form. Use strings, numbers, lists, mappings"
        )

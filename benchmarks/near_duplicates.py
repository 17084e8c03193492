"""Near duplicates by our MinHash beside rensa and datasketch: texts a CPU second, and which rows of a lake with planted ones each finds.

    .venv/bin/python benchmarks/near_duplicates.py    # about 5 minutes; CodeAlpaca of ../shared/data, or --rows FOLDER (gzipped JSON lines)

The lake: CodeAlpaca's 20,022 samples, and one copy of each in which some words are others, from none to an eighth. A row is to be found if its word 5-grams
have a Jaccard similarity of at least 0.8 to those of an earlier row: counted, all pairs. All ways have 128 permutations and the same words, and take texts
in memory to a set of rows, one process each, one thread; rensa and datasketch by their bulk calls. `words` is what of it goes into Python's sets of n-grams,
which both want. `rensa, flags` is rensa at its fastest, which compares no sketches, and of a pair flags both; `rensa, our words` has its minima of our hashes.
"""

from __future__ import annotations

import argparse
import gzip
import inspect
import json
import os
import pickle
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy import sparse

from benchmarks.record import PROJECT, circumstances, record
from benchmarks.rivals import environment

FASTER, RECALL = 3.0, 0.86  # at least: times the faster of rensa and datasketch, and of the near duplicates
SIMILARITY, ROUNDS = 0.8, 5
FOLDER = PROJECT / "build" / "near"
PACKAGES = "rensa==0.5.0 datasketch==2.0.0"
ROWS = PROJECT.parent / "shared" / "data" / "code_alpaca_20k"
WORD = re.compile(r"[a-z0-9_\u0080-\U0010ffff]+")


def grams(text: str) -> list[str]:
    words = WORD.findall("".join(char.lower() if char.isascii() else char for char in text)) or [text]
    return list({" ".join(words[first : first + 5]) for first in range(max(1, len(words) - 4))})


START = f"""
import json, pickle, re, resource, sys
texts = pickle.load(open(sys.argv[1], "rb"))
WORD, SIMILARITY = re.compile({WORD.pattern!r}), {SIMILARITY}
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
{inspect.getsource(grams)}"""
WAYS = {
    "raypipe": """
import pyarrow as pa
from raypipe.ops.minhash import bands_and_sketches, near_pairs
texts = pa.array(texts)
start = ready = used()
keys, sketches = bands_and_sketches(texts, SIMILARITY)
found = {int(row) for key in keys for row in near_pairs(key, sketches, SIMILARITY)[0]}
""",
    "rensa": """
from rensa import RMinHash, RMinHashLSH
start = used()
sets = [grams(text) for text in texts]
ready = used()
minhashes = RMinHash.from_token_sets(sets, 128, 42)
lsh = RMinHashLSH(SIMILARITY, 128, 16)
lsh.insert_many(minhashes)
found = {row for row, others in enumerate(lsh.query_all(minhashes)) if any(one < row and minhashes[row].jaccard(minhashes[one]) >= SIMILARITY for one in others)}
""",
    "rensa, flags": """
from rensa import RMinHash, RMinHashLSH
start = used()
sets = [grams(text) for text in texts]
ready = used()
matrix = RMinHash.digest_matrix_from_token_sets(sets, 128, 42)
flags = RMinHashLSH(SIMILARITY, 128, 16).query_duplicate_flags_matrix_one_shot(matrix)
found = {row for row, flag in enumerate(flags) if flag}
""",
    "rensa, our words": """
import numpy as np, pyarrow as pa
from rensa import RMinHash
from raypipe.ops.shingles import shingles
texts = pa.array(texts)
start = ready = used()
minima, found = [], set()
for first in range(0, len(texts), 512):
    hashes, edges, *_ = shingles(texts[first : first + 512], 5)
    minima.append(np.array(RMinHash.digest_matrix_from_flat_token_hashes(hashes, edges.astype(np.uint64), 128, 42).to_rows(), np.uint64))
minima = np.concatenate(minima)
for band in range(18):
    key = (minima[:, 7 * band : 7 * band + 7] * np.uint64(0x9E3779B97F4A7C15) ** np.arange(7, dtype=np.uint64)).sum(axis=1)
    _, first, row = np.unique(key, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[row] < np.arange(len(key)))
    found |= set(later[(minima[later] == minima[first[row[later]]]).mean(axis=1) >= SIMILARITY].tolist())
""",
    "datasketch": """
from datasketch import MinHash, MinHashLSH
start = used()
sets = [[gram.encode() for gram in grams(text)] for text in texts]
ready = used()
minhashes = MinHash.bulk(sets, num_perm=128)
lsh = MinHashLSH(threshold=SIMILARITY, num_perm=128)
with lsh.insertion_session() as session:
    for row, minhash in enumerate(minhashes):
        session.insert(row, minhash)
found = {row for row, minhash in enumerate(minhashes) if any(one < row and minhash.jaccard(minhashes[one]) >= SIMILARITY for one in lsh.query(minhash))}
""",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    where, texts = circumstances(), planted(parser.parse_args().rows)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "texts.pickle").write_bytes(pickle.dumps(texts))
    near = has_earlier(texts)
    print(f"{len(texts):,} texts, of which {near.sum():,} are near duplicates of earlier ones", flush=True)
    rivals = environment("minhash", [PACKAGES])
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for round_ in range(ROUNDS):
        for name, made in runs.items():
            made.append(run(name, rivals))
            print(f"round {round_ + 1}  {name:16} {made[-1]['cpu_s']:7.2f} CPU s", flush=True)
    ways = {name: figures(made, near) for name, made in runs.items()}
    record("near_duplicates", {**where, "texts": len(texts), "near": int(near.sum()), "ways": ways})
    for name, way in ways.items():
        rates = way["texts_per_cpu_s"]
        print(
            f"{name:16} {rates['median']:8,.0f} texts a CPU second ({rates['least']:,.0f} to {rates['most']:,.0f}; without words "
            f"{rates['without_words']:,.0f}), recall {way['recall']:.4f}, precision {way['precision']:.4f}"
        )
    return judge(ways)


def judge(ways: dict[str, Any]) -> int:
    own, rates = ways["raypipe"], {name: way["texts_per_cpu_s"]["median"] for name, way in ways.items()}
    faster = rates["raypipe"] / max(rates["rensa"], rates["datasketch"])
    print(
        f"{faster:.1f} times the faster of rensa and datasketch (goal {FASTER}), recall {own['recall']:.3f} (goal {RECALL})"
    )
    return int(faster < FASTER or own["recall"] < RECALL)


def figures(made: list[dict[str, Any]], near: np.ndarray) -> dict[str, Any]:
    found = np.zeros(len(near), bool)
    found[made[0]["found"]] = True
    rates = [len(near) / one["cpu_s"] for one in made]
    without = statistics.median(len(near) / (one["cpu_s"] - one["words_s"]) for one in made)
    return {
        "texts_per_cpu_s": {
            "median": statistics.median(rates),
            "least": min(rates),
            "most": max(rates),
            "without_words": without,
        },
        "recall": float(found[near].mean()),
        "precision": float(near[found].mean()),
    }


def run(name: str, rivals: Path) -> dict[str, Any]:
    own = name in ("raypipe", "rensa, our words")
    code = (
        START
        + WAYS[name]
        + "\nprint(json.dumps({'cpu_s': used() - start, 'words_s': ready - start, 'found': sorted(found)}))"
    )
    rensa = next(rivals.glob("lib/python*/site-packages"))
    env = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT) if own else ""}
    if name == "rensa, our words":
        code = f"import sys; sys.path.append({str(rensa)!r})" + code
    python = sys.executable if own else str(rivals / "bin" / "python")
    done = subprocess.run([python, "-c", code, FOLDER / "texts.pickle"], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: it ended with {done.returncode}:\n{done.stderr[-3000:]}")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def planted(rows: Path) -> list[str]:
    rng, texts = random.Random(0), list[str]()
    for path in sorted(rows.glob("*.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            row = json.loads(line)
            texts.append("\n".join(part for part in (row["instruction"], row["input"], row["output"]) if part))
    return texts + [altered(text, rng.random() / 8, rng) for text in texts]


def altered(text: str, changed: float, rng: random.Random) -> str:
    return re.sub(r"\w+", lambda word: f"x{rng.randrange(3000)}" if rng.random() < changed else word[0], text)


def has_earlier(texts: list[str]) -> np.ndarray:
    """[N]: whether an earlier text is as similar, from the n-grams that all pairs have in common."""
    numbers: dict[str, int] = {}
    columns = [[numbers.setdefault(gram, len(numbers)) for gram in grams(text)] for text in texts]
    sizes = np.array([len(row) for row in columns])
    which = sparse.csr_matrix((np.ones(sizes.sum(), np.int32), np.concatenate(columns), np.append(0, np.cumsum(sizes))))
    near = np.zeros(len(texts), bool)
    for first in range(0, len(texts), 1000):
        common = (which[first : first + 1000] @ which.T).tocoo()
        row, earlier = common.row + first, common.col
        similar = common.data / (sizes[row] + sizes[earlier] - common.data) >= SIMILARITY
        near[row[similar & (earlier < row)]] = True
    return near


if __name__ == "__main__":
    sys.exit(main())

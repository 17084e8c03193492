"""Small lakes, models and configs for tests, and comparison of two runs' folders."""

import gzip
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from raypipe.ops.synthetic import chunk_lines

PROJECT = Path(__file__).resolve().parents[1]


def lock(name: str = "requirements.lock") -> dict[str, str]:
    """Package -> version that is locked."""
    lines = (PROJECT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def write_lake(folder: Path, *, num_samples: int = 200, files: int = 4, seed: int = 7) -> list[bytes]:
    """`files` gzipped files with the rows of a synthetic lake in order; returns the rows."""
    lines = chunk_lines(0, seed=seed, num_samples=num_samples)[0]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        rows = lines[len(lines) * number // files : len(lines) * (number + 1) // files]
        (folder / f"day-{number:03d}.jsonl.gz").write_bytes(gzip.compress(b"".join(rows), mtime=0))
    return lines


def write_config(path: Path, *, model: Path, embedder: Path, **sections) -> Path:
    """A config of a few seconds a stage, beside its lake and root; sections override its keys."""
    tree = {
        "name": "test",
        "model": str(model),
        "ingest": {"paths": [str(path.parent / "lake")], "part_bytes": 12_000, "max_rejected_fraction": 0.05},
        "embed": {"model": str(embedder), "dtype": "float32"},
        "cluster": {"num_clusters": 4},
        "score": {"backend": "transformers", "dtype": "float32", "max_length": 2048},
        "select": {"held_out_fraction": 0.1},
        "pack": {"max_length": 1024},
        "train": {"epochs": 1, "samples_per_step": 16, "warmup_steps": 2, "learning_rate": 1.0e-3, "dtype": "float32"},
        "storage": {"root": str(path.parent / "root")},
        "resources": {  # one actor each: loading a model costs more than using it here
            "embed": {"actors": [1, 1]},
            "score": {"actors": [1, 1]},
            "train": {"workers": [1, 2], "micro_batch_tokens": 2048},
        },
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    path.write_text(yaml.safe_dump(tree))
    return path


NAMES = ["add", "double", "first", "last"]
BODIES = ["    return a + b\n", "    return 2 * a\n", "    return a[0]\n", "    return a[-1]\n"]
INPUTS = [[[1, 2], [3, 4]], [[2], [5]], [[[7, 8]]], [[[7, 8]]]]


def problem(n: int, **fields) -> dict:
    """One of four, in HumanEval+'s layout."""
    heading = f"def {NAMES[n]}({'a, b' if n == 0 else 'a'}):\n"
    return {
        "task_id": f"Own/{n}", "prompt": f'{heading}    """What its name says."""\n', "entry_point": NAMES[n], "canonical_solution": BODIES[n],
        "base_input": INPUTS[n], "plus_input": [], "atol": 0, **fields,
    }  # fmt: skip


def evaluation(tasks: str) -> dict:
    """Section `evaluate` of a config, for a file of `TASKS`."""
    return {
        "tasks": {"own": tasks},
        "execute": True,
        "max_new_tokens": 12,
        "num_completions": 2,
        "backend": "transformers",
    }


TASKS = "".join(json.dumps(problem(n)) + "\n" for n in range(4))


def raypipe(*words: object, **environment: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "raypipe.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=PROJECT)


def wait_until(condition, driver: subprocess.Popen | None = None, timeout_s: float = 240):
    """What the condition gives once it is true; fails when the driver ends before, or time runs out."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert driver is None or driver.poll() is None, (
            f"exit code {driver.returncode} too early: {driver.communicate()}"
        )
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain"
        time.sleep(0.005)
    return found


def ray_workers(name: str) -> list[psutil.Process]:
    """Ray's worker processes that are at `name`, of clusters that this process began: others may be at work on the machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if (process.cmdline() or [""])[0].startswith(f"ray::{name}"):
                found.append(process)
    return found


def digests(root: Path, run: str = "test") -> dict[str, dict[str, str]]:
    """Of every finished stage of a run: part -> digest of its columns."""
    record = json.loads((root / "runs" / f"{run}.json").read_text())
    found = {}
    for stage, folder in record["folders"].items():
        manifest = root / folder / f"manifest-{record['lake']}.json"
        if manifest.exists():
            found[stage] = {part["name"]: part["columns"] for part in json.loads(manifest.read_text())["parts"]}
    return found


def manifest(root: Path, stage: str, run: str = "test") -> dict:
    record = json.loads((root / "runs" / f"{run}.json").read_text())
    return json.loads((root / record["folders"][stage] / f"manifest-{record['lake']}.json").read_text())


def stage_folder(root: Path, stage: str, run: str = "test") -> Path:
    return root / json.loads((root / "runs" / f"{run}.json").read_text())["folders"][stage]


def save_random_model(
    out: Path, kind: str, *, bos: bool, vocab_size: int = 1024, layers: int = 2, **shape: int
) -> Path:
    """A small Llama or Qwen2 (grouped queries) of random weights, the same on every machine, and its BPE tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    texts = [line.decode() for line in chunk_lines(0, seed=3, num_samples=300)[0]]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["<eos>", "<bos>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>", **({"bos_token": "<bos>"} if bos else {})
    )
    keys = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "eos_token_id": 0, "bos_token_id": 1 if bos else None,
        "initializer_range": 0.2, "tie_word_embeddings": kind == "qwen2", **shape,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**keys)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**keys))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out

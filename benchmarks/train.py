"""The same samples trained on by the same model: CPU seconds and memory of padding, of packing, and of TRL's SFTTrainer.

    .venv/bin/python benchmarks/train.py             # about 25 minutes; rows of ../shared/data, or of --rows FILE (json lines)

Two data sets: CodeAlpaca, and lengths like OSS-Instruct's (lognormal) of random tokens. Five ways: our loop by each strategy of
`pack`, and TRL without and with packing. All train a Qwen2 of 11 M parameters, of which 10.6 M are in its layers, in float32, without
activation checkpointing, by AdamW, on one thread and one rank; all have the same target tokens and optimiser steps, and all but
packed TRL, which packs before it draws steps, the same samples in each step. A micro-batch of `pad`, `dynamic_pack` and unpacked TRL
is the same 16 samples; of best_fit it has at most 4,096 tokens, half of pad's largest; of packed TRL it is one window. Counted are the CPU
seconds of the steps alone. A run has a process of its own; its peak memory is the peak RSS by the last step less the RSS before the
first, when the model is loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.packs import Packs, Sample
from benchmarks.record import PROJECT, circumstances, record
from benchmarks.score import ROWS, TEMPLATE, read_rows
from raypipe.models.batches import Dealer
from raypipe.models.sharded import Tuning
from raypipe.models.trackers import Run
from raypipe.models.trainer import Settings, train
from raypipe.ops.packing import MICRO_BATCH, Segment, Strategy, lay_out
from raypipe.ops.steps import Shapes, Step
from raypipe.ops.tokens import IGNORED, prompt_ids, text_ids, training_sequence
from raypipe.store import Folder
from tests.lakes import save_random_model

MICRO_BATCH_TOKENS = 4096  # of best_fit, as raypipe.stages.train takes without a GPU
OF_IDEAL = 1.1  # at most, best_fit's time over pad's times the share of pad's tokens that is not padding
LESS_TIME = {"CodeAlpaca": 0.5, "like OSS-Instruct": 0.3}  # at least, best_fit than pad
MEMORY = 1.0  # at most, best_fit's peak over pad's
OVER_TRL = 1.0  # at least, tokens a CPU second over TRL's
LOSS = 1e-4  # at most, between first losses of pad, best_fit and TRL without packing
ROUNDS, STEPS, NUM_SAMPLES = 3, 2, {"CodeAlpaca": 128, "like OSS-Instruct": 64}
WINDOW, LEARNING_RATE = 2048, 1e-3
SEED = 1  # of draws in which pad's padding is near that of the whole data sets, 61.6 and 36.5 %
MEAN, SIGMA, VOCABULARY = 423, 0.275, 2048  # of OSS-Instruct's lengths in tokens; of the model
SHAPE = {
    "layers": 6, "hidden_size": 384, "intermediate_size": 1152, "num_attention_heads": 6, "num_key_value_heads": 3, "initializer_range": 0.02,
}  # fmt: skip
MODEL, LOG = PROJECT / "build" / "train-model", PROJECT / "build" / "train.log"
RIVALS = {"trl": "1.16.0", "datasets": "5.2.0", "accelerate": "1.15.0", "peft": "0.21.2"}
IMPORTED = ["raypipe.models.trainer", "transformers.models.qwen2.modeling_qwen2", "trl.trainer.sft_trainer"]
Mark = tuple[float, int, int]  # of this process until now: CPU seconds, RSS, peak RSS


@dataclass(frozen=True)
class Found:
    cpu_s: float
    peak_bytes: int
    steps: int
    target_tokens: int
    micro_batches: list[int]  # tokens of each, padding included
    first_loss: float
    isolated: bool | None = None  # of TRL's packs: whether a sample is blind to others


class Clock(list[Any]):
    """Marks, in the place of held-out packs: the loop asks for their shapes before the first step, and after the last."""

    @property
    def shapes(self) -> Shapes:
        self.append(mark())
        return Packs([], [], divisible=True).shapes


def mark() -> Mark:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return time.process_time(), psutil.Process().memory_info().rss, peak


def layouts(samples: Sequence[Sample], strategy: Strategy) -> list[list[list[Segment]]]:
    """Of each step its packs; places are in `samples`, of which each step has equally many. pad and dynamic_pack draw alike."""
    steps = []
    for number, places in enumerate(np.split(np.arange(len(samples)), STEPS)):
        packs = lay_out(strategy, [len(samples[n][0]) for n in places], WINDOW, np.random.default_rng([SEED, number]))
        steps.append([[Segment([int(places[n]) for n in s.places], s.length) for s in pack] for pack in packs])
    return steps


def ours(samples: Sequence[Sample], strategy: Strategy) -> Found:
    by_step = layouts(samples, strategy)
    packs = Packs([pack for step in by_step for pack in step], samples, divisible=strategy == "best_fit")
    places = np.split(np.arange(len(packs)), np.cumsum(list(map(len, by_step)))[:-1])
    targets = packs.shapes.target_tokens
    steps = [Step(0, chosen, len(samples) // STEPS, int(targets[chosen].sum())) for chosen in places]
    if strategy == "best_fit":  # what training on a CPU takes, and no more than pad's largest has
        largest = max(sum(s.length for s in pack) for step in layouts(samples, "pad") for pack in step)
        most = min(MICRO_BATCH_TOKENS, largest)
    else:  # so few that no two packs fit
        most = sum(sorted(sum(pack.lengths) for pack in packs)[:2]) - 1
    tuning = Tuning(str(MODEL), "float32", None, 0, activation_checkpointing=False, compile=False)
    settings = Settings(tuning, LEARNING_RATE, 0, most, 1e9, TEMPLATE, Run("benchmark", "train", {}))
    with tempfile.TemporaryDirectory() as out:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        train(settings, packs, clock := Clock(), steps, Folder.at(out))
        lines = map(json.loads, (Path(out) / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    dealt = list(Dealer(packs, 0, 1, most, 2e-4, 0).deal(places))  # the same again
    if strategy != "best_fit" and any(len(pieces) != 1 for one in dealt for pieces in one.pieces):
        sys.exit(f"{strategy}: a micro-batch is not one pack, of {[len(pack.labels) for pack in packs]} tokens")
    labels = [batch.labels for one in dealt for batch in one.batches]
    counted = sum(int((its != IGNORED).sum()) for its in labels)
    _, _, (before_s, before_bytes, _), (after_s, _, peak), _, _ = clock
    return Found(after_s - before_s, peak - before_bytes, len(losses), counted, list(map(len, labels)), losses[0])


def trl(samples: Sequence[Sample], packing: bool) -> Found:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer, pack_dataset

    marks: list[Mark] = []

    class Marks(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append(mark())

        on_train_end = on_train_begin

    order = [n for step in layouts(samples, "pad") for pack in step for segment in pack for n in segment.places]
    masks = [[int(label != IGNORED) for label in samples[n][1]] for n in order]
    data = Dataset.from_dict({"input_ids": [samples[n][0] for n in order], "completion_mask": masks})
    rows, per_device = (len(pack_dataset(data, WINDOW)), 1) if packing else (len(data), MICRO_BATCH)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, packing=packing, max_length=WINDOW, per_device_train_batch_size=per_device, num_train_epochs=1,
            gradient_accumulation_steps=math.ceil(rows / per_device / STEPS), train_sampling_strategy="sequential",
            completion_only_loss=True, learning_rate=LEARNING_RATE, lr_scheduler_type="cosine", bf16=False,
            gradient_checkpointing=False, use_cpu=True, logging_steps=1, save_strategy="no", report_to="none",
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[Marks()])
        trainer.train()
        batches = list(trainer.get_train_dataloader())  # the same again
    targets = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    tokens = [batch["input_ids"].numel() for batch in batches]
    isolated = is_isolated(trainer) if packing else None
    (before_s, before_bytes, _), (after_s, _, peak) = marks
    return Found(after_s - before_s, peak - before_bytes, len(losses), targets, tokens, losses[0], isolated)


def is_isolated(trainer: Any) -> bool:
    """Whether the last sample of a pack is blind to the first token of the first one."""
    row = max(trainer.train_dataset, key=lambda row: len(row["seq_lengths"]))
    inputs = {name: value for name, value in trainer.data_collator([row]).items() if name != "labels"}
    one = trainer.model(**inputs, use_cache=False).logits[0, -1]
    inputs["input_ids"][0, 0] += 1
    two = trainer.model(**inputs, use_cache=False).logits[0, -1]
    return bool((one - two).abs().max() < 1e-6)


WAYS: dict[str, Callable[[Sequence[Sample]], Found]] = {
    **{strategy: partial(ours, strategy=strategy) for strategy in ("pad", "dynamic_pack", "best_fit")},
    "TRL": partial(trl, packing=False),
    "TRL, packing": partial(trl, packing=True),
}


def contest(way: str, samples: Sequence[Sample]) -> Found:
    """In a process of its own, with a log for what libraries print."""
    torch.set_num_threads(1)
    with LOG.open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    return WAYS[way](samples)


def data_sets(rows: Path) -> dict[str, list[Sample]]:
    """Makes the model, too, whose tokenizer they need."""
    shutil.rmtree(MODEL, ignore_errors=True)
    save_random_model(MODEL, "qwen2", bos=False, vocab_size=VOCABULARY, **SHAPE)
    tokenizer, rng = AutoTokenizer.from_pretrained(MODEL), np.random.default_rng(SEED)
    instructions, responses = zip(*read_rows(rows, 2 * NUM_SAMPLES["CodeAlpaca"]), strict=True)
    prompts = prompt_ids(tokenizer, TEMPLATE, instructions)
    real = map(training_sequence, prompts, text_ids(tokenizer, responses), repeat(tokenizer.eos_token_id))
    lengths = rng.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, NUM_SAMPLES["like OSS-Instruct"])
    drawn = [rng.integers(2, VOCABULARY, min(round(length), WINDOW) - 1).tolist() for length in lengths]
    made = (training_sequence(ids[: len(ids) // 3], ids[len(ids) // 3 :], tokenizer.eos_token_id) for ids in drawn)
    found = zip(NUM_SAMPLES, (real, made), strict=True)
    return {name: [s for s in some if len(s[0]) <= WINDOW][: NUM_SAMPLES[name]] for name, some in found}


def measure(name: str, samples: Sequence[Sample]) -> dict[str, list[Found]]:
    """Of each way its runs, which were the same training: else nothing is compared."""
    found: dict[str, list[Found]] = {way: [] for way in WAYS}
    (context := get_context("forkserver")).set_forkserver_preload(IMPORTED)
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for turn, (way, runs) in product(range(1, ROUNDS + 1), found.items()):
            runs.append(run := pool.submit(contest, way, samples).result())
            print(f"round {turn} {name}: {way:12} {run.cpu_s:6.1f} CPU s {run.peak_bytes >> 20:6,} MB", flush=True)
            pad = found["pad"][0]
            lost = len(samples) if way == "TRL, packing" else 0  # the first label of each sample, at most
            assert run.steps == STEPS and 0 <= pad.target_tokens - run.target_tokens <= lost, (way, run, pad)
            if way in ("pad", "best_fit", "TRL"):
                assert abs(run.first_loss - pad.first_loss) <= LOSS, (way, run.first_loss, pad.first_loss)
    return found


def show(name: str, found: dict[str, list[Found]], own: int) -> dict[str, tuple[float, str, float]]:
    """A table of samples with `own` tokens, and what is promised: (got, how, goal)."""
    median = {way: statistics.median(run.cpu_s for run in runs) for way, runs in found.items()}
    peak = {way: statistics.median(run.peak_bytes for run in runs) for way, runs in found.items()}
    padding = {way: 1 - own / sum(runs[0].micro_batches) for way, runs in found.items()}
    (pad, *_), (packed, *_) = found["pad"], found["TRL, packing"]
    print(
        f"\n{name}: {NUM_SAMPLES[name]} samples of {own:,} tokens, {pad.target_tokens:,} of them targets, {STEPS} steps"
    )
    print("              padding  CPU s (from to)       tokens/CPU s  peak MB  micro-batches, largest  first loss")
    for way, runs in found.items():
        seconds, batches = sorted(run.cpu_s for run in runs), runs[0].micro_batches
        spread = f"{median[way]:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})"
        print(f"{way:13} {padding[way]:7.1%}  {spread:21} {own / median[way]:12,.0f} {peak[way] / 2**20:8,.0f}", end="")
        print(f"  {len(batches):13}, {max(batches):7,}  {runs[0].first_loss:10.5f}")
    sees = "isolates samples, by a mask of window x window" if packed.isolated else "does not isolate samples"
    print(f"TRL with packing {sees}; it lost {pad.target_tokens - packed.target_tokens} targets\n", flush=True)
    took, ideal = median["best_fit"] / median["pad"], 1 - padding["pad"]
    return {
        f"{name}: best_fit's time / ({ideal:.3f} of pad's)": (took / ideal, "at most", OF_IDEAL),
        f"{name}: less time than pad": (1 - took, "at least", LESS_TIME[name]),
        f"{name}: best_fit's peak memory / pad's": (peak["best_fit"] / peak["pad"], "at most", MEMORY),
        f"{name}: tokens a CPU second / TRL's": (median["TRL"] / median["best_fit"], "at least", OVER_TRL),
        f"{name}: the same, TRL packing": (median["TRL, packing"] / median["best_fit"], "at least", OVER_TRL),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS, help="json lines with instruction, input, output")
    rows = parser.parse_args().rows
    if missing := [name for name in RIVALS if find_spec(name) is None]:
        sys.exit(f"{missing} missing: pip install {' '.join(f'{name}=={version}' for name, version in RIVALS.items())}")
    where, promises, sets = circumstances(), {}, {}
    for name, samples in data_sets(rows).items():
        found, own = measure(name, samples), sum(len(ids) for ids, _ in samples)
        promises |= show(name, found, own)
        sets[name] = {"tokens": own, "runs": {way: list(map(asdict, runs)) for way, runs in found.items()}}
    goals = {}
    for name, (got, how, goal) in promises.items():
        met = got <= goal if how == "at most" else got >= goal
        goals[name] = {"got": round(got, 3), "goal": f"{how} {goal}", "met": met}
    record("train", {**where, "rivals": RIVALS, "model": SHAPE, "steps": STEPS, "goals": goals, "sets": sets})
    for name, goal in goals.items():
        print(f"{name:56} {goal['got']:.3f} (goal: {goal['goal']}){'' if goal['met'] else '  MISSED'}")
    return int(not all(goal["met"] for goal in goals.values()))


if __name__ == "__main__":
    sys.exit(main())

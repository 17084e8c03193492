"""Samples into windows, and windows' samples to ranks: our plans beside TRL's packing and plain best-fit and first-fit decreasing.

    .venv/bin/python benchmarks/pack.py              # about 6 minutes; CodeAlpaca of ../shared/data, or --rows FILE or FOLDER (json lines)

Lengths are CodeAlpaca's, as the pack stage makes samples (the default template, prompt, response, EOS) by the demo's tokenizer, and drawn
ones like OSS-Instruct's; a sample longer than a window is dropped for everyone. Ours packs groups of at least 10,000 samples as the
stage does, a file of CodeAlpaca a part, and all at once; TRL's `pack_dataset`, as SFTTrainer calls it, in batches of 1,000 (`map`'s
default) and in one. In its favour: its data set has one column, of int32, and stays in memory. Its `_pack_bfd` is also called
alone, on lists of null, which take no memory: with lengths and no tokens. Counted are CPU seconds, in interleaved rounds.
`wrapped` cuts samples at the ends of windows; bfd_split is bfd where no sample is longer than a window, as here.

Imbalance is a step's time over that of an even split, as `ops.steps` models it. Beside it whole packs are dealt to ranks, in random
order and the dearest first to the rank with least; there the dearest rank over the mean counts, not the wait at each micro-batch.
The bound is the cost of a step's dearest sample over a rank's even share: no plan can be better, as samples are not split.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa

from benchmarks.record import PROJECT, circumstances, record
from benchmarks.score import read_rows
from raypipe.config import Config
from raypipe.models.pretrained import load_tokenizer
from raypipe.ops.packing import best_fit, group_parts
from raypipe.ops.steps import Shapes, imbalance, plan_steps, share_out
from raypipe.ops.tokens import prompt_ids, text_ids
from raypipe.stages.pack import GROUP_SAMPLES
from tests.ops.test_packing import like_oss_instruct

FILL = 0.998  # of windows, at least, by ours in groups
PLAN_S = 1.5  # CPU seconds at most, for 1 M samples
IMBALANCE = {8: 1.01, 64: 1.02}  # of the worst step at most, by number of ranks, on lengths like OSS-Instruct's
WINDOWS, ROUNDS, SAMPLES, MILLION = (2048, 4096, 8192), 5, 100_000, 1_000_000
STEP_WINDOWS, SAMPLES_PER_STEP, MICRO_BATCH_TOKENS, QUADRATIC = (2048, 8192), 512, 16_384, 2e-5
CODE_ALPACA, OSS_INSTRUCT = "CodeAlpaca", "like OSS-Instruct"
ROWS = PROJECT.parent / "shared" / "data" / "code_alpaca_20k"
TRL = "trl==1.16.0"

Ints = np.ndarray[Any, np.dtype[np.int64]]
Plan = Callable[[Ints, int], Ints]  # lengths, window: of each sample the number of its window


@dataclass(frozen=True)
class Case:
    """Lengths of one window's samples: in groups, at once, and as TRL takes them, with tokens and without."""

    window: int
    groups: Sequence[Ints]
    lengths: Ints
    dataset: Any
    bare: pa.Table


def case(groups: Sequence[Ints], window: int, tokens: pa.Array) -> Case:
    from datasets import Dataset

    fitting = [group[group <= window] for group in groups]
    lengths = np.concatenate(fitting)
    return Case(window, fitting, lengths, Dataset(lists(lengths, tokens)), lists(lengths, pa.nulls(len(tokens))))


def lists(lengths: Ints, tokens: pa.Array) -> pa.Table:
    offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
    return pa.table({"input_ids": pa.ListArray.from_arrays(offsets, tokens[: offsets[-1].as_py()])})


def decreasing(lengths: Ints, window: int, *, best: bool) -> Ints:
    """Best-fit or first-fit decreasing, all samples of a length in one go: a window takes as many of them as fit before the next one."""
    owner, room = np.empty(len(lengths), np.int64), np.empty(0, np.int64)
    in_order = np.argsort(-lengths, kind="stable")
    each, counts = np.unique(lengths, return_counts=True)
    done = 0
    for length, count in zip(each[::-1].tolist(), counts[::-1].tolist(), strict=True):
        fitting = np.flatnonzero(room >= length)
        if best:
            fitting = fitting[np.argsort(room[fitting], kind="stable")]
        most = room[fitting] // length
        new = max(-(-(count - int(most.sum())) // (window // length)), 0)
        places = np.concatenate([fitting, np.arange(len(room), len(room) + new)])
        room = np.concatenate([room, np.full(new, window)])
        ends = np.minimum(np.cumsum(room[places] // length), count)
        taken = np.diff(ends, prepend=0)
        owner[in_order[done : done + count]] = np.repeat(places, taken)
        room[places] -= taken * length
        done += count
    return owner


def windows_in_groups(plan: Plan, case: Case) -> int:
    return sum(int(plan(group, case.window).max()) + 1 for group in case.groups)


def windows_at_once(plan: Plan, case: Case) -> int:
    return int(plan(case.lengths, case.window).max()) + 1


def trl_windows(strategy: str, batch_size: int | None, case: Case) -> int:
    from trl import pack_dataset

    how = {"batch_size": batch_size or len(case.lengths), "keep_in_memory": True}
    return len(pack_dataset(case.dataset, case.window, strategy, how))


def trl_alone(case: Case) -> int:
    from trl.data_utils import _pack_bfd

    return len(_pack_bfd(case.bare, case.window))


PLANS: dict[str, Plan] = {
    "raypipe": best_fit,
    "best-fit decreasing": partial(decreasing, best=True),
    "first-fit decreasing": partial(decreasing, best=False),
}
GROUPED, ONCE = "raypipe, groups", "raypipe, at once"
WAYS: dict[str, Callable[[Case], int]] = {
    **{f"{name}, groups": partial(windows_in_groups, plan) for name, plan in PLANS.items()},
    **{f"{name}, at once": partial(windows_at_once, plan) for name, plan in PLANS.items()},
    **{f"trl {name}, by 1,000": partial(trl_windows, name, None and 0 or 1000) for name in ("bfd", "bfd_split", "wrapped")},
    **{f"trl {name}, at once": partial(trl_windows, name, None) for name in ("bfd", "bfd_split", "wrapped")},
    "trl _pack_bfd alone": trl_alone,
}

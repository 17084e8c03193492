"""Samples into windows, and windows' samples to ranks: our plans beside TRL's packing and plain best-fit and first-fit decreasing.

    .venv/bin/python benchmarks/pack.py              # 4 CPU minutes; CodeAlpaca of ../shared/data, or --rows FILE or FOLDER (json lines)

Lengths are CodeAlpaca's, as the pack stage makes samples (default template, prompt, response, EOS; tokenizer of models/tiny, which `make`
makes), and drawn ones like OSS-Instruct's; a sample longer than the window is dropped for all. Ours packs groups of at least 10,000
samples as the stage does, where a part is a file of CodeAlpaca, and also all at once. TRL packs as SFTTrainer calls it, in batches of
1,000, and all at once; in its favour its data set has one column and stays in memory, and its `_pack_bfd` is also called alone, on lists
of null: lengths without tokens. `wrapped` cuts samples apart; bfd_split is bfd where none is longer than a window, as here. CPU seconds.

Imbalance is a step's time over that of an even split, as `ops.steps` models it. Whole packs beside it are dealt to ranks in random
order, or the dearest first to the rank that has least; of them only the dearest rank counts, not the wait at each micro-batch.
The bound is what a step's dearest sample costs over a rank's even share: no plan is better, as a sample is not split.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
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
from tests.ops.test_packing import like_oss_instruct

try:
    import datasets
    from trl.data_utils import _pack_bfd, pack_dataset
except ImportError as error:
    sys.exit(f"{error}. TRL is compared here. Run: .venv/bin/pip install --no-deps trl==1.16.0 datasets==5.2.0")

FILL = 0.998  # of windows at least, by ours in groups
PLAN_S = 1.5  # CPU seconds at most, for a million samples
IMBALANCE = {8: 1.01, 64: 1.02}  # at most, of the worst step on lengths like OSS-Instruct's, by number of ranks
WINDOWS, ROUNDS, MILLION_ROUNDS, SAMPLES, MILLION = (2048, 4096, 8192), 3, 5, 50_000, 1_000_000
STEP_WINDOWS, SAMPLES_PER_STEP, MICRO_BATCH_TOKENS, QUADRATIC = (2048, 8192), 512, 16_384, 2e-5
GROUP_SAMPLES, CODE_ALPACA, OSS_INSTRUCT = 10_000, "CodeAlpaca", "OSS-like"
ROWS, TOKENIZER = PROJECT.parent / "shared" / "data" / "code_alpaca_20k", PROJECT / "models" / "tiny"

Ints = np.ndarray[Any, np.dtype[np.int64]]
Runs = dict[str, dict[str, dict[str, Any]]]  # of a way and a case: windows, fill, CPU seconds by round


class Case(NamedTuple):
    """What is packed: lengths in our groups and at once, and for TRL lists with tokens and without."""

    window: int
    groups: Sequence[Ints]
    lengths: Ints
    tokens: pa.Table
    bare: pa.Table


def case(groups: Sequence[Ints], window: int) -> Case:
    lengths = np.concatenate(fitting := [group[group <= window] for group in groups])
    offsets = np.cumsum([0, *lengths.tolist()], dtype=np.int32)
    values = pa.array(np.zeros(offsets[-1], np.int32)), pa.nulls(offsets[-1])
    lists = (pa.table({"input_ids": pa.ListArray.from_arrays(offsets, value)}) for value in values)
    return Case(window, fitting, lengths, *lists)


def decreasing(lengths: Ints, window: int, *, best: bool) -> Ints:
    """Best-fit or first-fit decreasing; samples of one length together, as a window takes all that fit before the next gets one."""
    owner, room, done = np.empty(len(lengths), np.int64), np.empty(0, np.int64), 0
    in_order = np.argsort(-lengths, kind="stable")
    for length, count in reversed(list(zip(*map(np.ndarray.tolist, np.unique_counts(lengths)), strict=True))):
        fitting = np.flatnonzero(room >= length)
        if best:
            fitting = fitting[np.argsort(room[fitting], kind="stable")]
        new = max(-(-(count - int((room[fitting] // length).sum())) // (window // length)), 0)
        windows = np.concatenate([fitting, np.arange(len(room), len(room) + new)])
        room = np.concatenate([room, np.full(new, window)])
        taken = np.diff(np.minimum(np.cumsum(room[windows] // length), count), prepend=0)
        room[windows] -= taken * length
        owner[in_order[done : done + count]] = np.repeat(windows, taken)
        done += count
    return owner


PLANS: dict[str, Callable[[Ints, int], Ints]] = {  # lengths and window -> of each sample the number of its window
    "raypipe": best_fit,
    "best-fit decreasing": partial(decreasing, best=True),
    "first-fit decreasing": partial(decreasing, best=False),
}


def planned(name: str, how: str, case: Case) -> int:
    parts = case.groups if how == "groups" else [case.lengths]
    return sum(int(PLANS[name](part, case.window).max()) + 1 for part in parts)


def trl(strategy: str, batch_size: int, case: Case) -> int:
    how = {"batch_size": batch_size, "keep_in_memory": True}
    return len(pack_dataset(datasets.Dataset(case.tokens, fingerprint="any"), case.window, strategy, how))


GROUPED, ONCE, ALONE = "raypipe, groups", "raypipe, at once", "trl _pack_bfd alone, at once"
KINDS = ("raypipe", "bound", "raypipe over bound", "whole, random", "whole, dearest first")
SAME = {"best-fit decreasing, at once", "trl bfd, at once", ALONE}  # must need as many windows
Ways = Mapping[str, Callable[[Case], int]]
OURS_AND_PLAIN: Ways = {f"{n}, {how}": partial(planned, n, how) for n, how in product(PLANS, ("groups", "at once"))}
TRL: Ways = {
    f"trl {strategy}, {how}": partial(trl, strategy, size)
    for strategy, (how, size) in product(("bfd", "bfd_split", "wrapped"), (("by 1,000", 1000), ("at once", MILLION)))
}
TRL_ALONE: Ways = {ALONE: lambda case: len(_pack_bfd(case.bare, case.window))}


def code_alpaca(rows: Path) -> list[Ints]:
    """Lengths of samples in groups; a file is a part."""
    tokenizer, template, parts = load_tokenizer(str(TOKENIZER)), str(Config.model_fields["template"].default), []
    for path in sorted(rows.glob("*.jsonl*")) if rows.is_dir() else [rows]:
        instructions, responses = zip(*read_rows(path, sys.maxsize), strict=True)
        both = zip(prompt_ids(tokenizer, template, instructions), text_ids(tokenizer, responses), strict=True)
        parts.append([len(prompt) + len(response) + 1 for prompt, response in both])
    runs = group_parts(list(map(len, parts)), GROUP_SAMPLES)
    return [np.array(list(chain(*parts[begin:end])), np.int64) for begin, end in runs]


def measure(cases: Mapping[str, Case], ways: Ways, rounds: int) -> Runs:
    """It ends where a plan overfills a window, or plans that must be alike are not."""
    found: Runs = {way: {name: {"cpu_s": []} for name in cases} for way in ways}
    for number, (name, one), (way, windows) in product(range(rounds), cases.items(), ways.items()):
        started = time.process_time()
        count = windows(one)
        found[way][name]["cpu_s"].append(spent := time.process_time() - started)
        found[way][name] |= {"windows": count, "fill": float(one.lengths.sum() / (count * one.window))}
        print(f"round {number + 1}  {name:16} {way:30} {spent:8.3f} s CPU", flush=True)
    for name, one in cases.items():
        for plan, part in product(PLANS.values(), [*one.groups, one.lengths]):
            assert np.bincount(plan(part, one.window), weights=part).max() <= one.window
        assert len({found[way][name]["windows"] for way in SAME.intersection(ways)}) == 1, f"{name}: {SAME} differ"
    return found


def best_possible(parts: Sequence[Ints], window: int) -> float:
    return float(sum(map(np.sum, parts)) / sum(-(-part.sum() // window) * window for part in parts))


def cut_share(case: Case) -> float:
    """Of samples, those that `wrapped` cuts when all are one batch."""
    ends = np.cumsum(case.lengths)
    return float(((ends - case.lengths) // case.window < (ends - 1) // case.window).mean())


def packs_of(case: Case) -> Shapes:
    owners = [best_fit(group, case.window) for group in case.groups]
    lengths = [group[np.argsort(owner, kind="stable")] for group, owner in zip(case.groups, owners, strict=True)]
    counts = np.concatenate([np.bincount(owner) for owner in owners])
    return Shapes(np.concatenate(lengths), np.cumsum([0, *counts]), counts, counts, divisible=True)


def step_plan(shapes: Shapes, ranks: int) -> dict[str, tuple[float, float]]:
    """(worst step, mean of all) of our imbalance, of the bound, of ours over it, and of whole packs'."""
    cost = shapes.lengths + QUADRATIC * np.square(shapes.lengths)
    dearest, whole = (of.reduceat(cost, shapes.bounds[:-1]) for of in (np.maximum, np.add))
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in plan_steps(shapes, epochs=1, samples_per_step=SAMPLES_PER_STEP, seed=0):
        most, by_rank = MICRO_BATCH_TOKENS, np.zeros(ranks)
        shares = share_out(shapes, step.packs, world_size=ranks, micro_batch_tokens=most, quadratic=QUADRATIC)
        for pack_cost in -np.sort(-whole[step.packs]):
            by_rank[by_rank.argmin()] += pack_cost
        even, ours = by_rank.mean(), imbalance(shapes, shares, QUADRATIC)
        bound = max(dearest[step.packs].max() / even, 1.0)
        dealt = max(whole[step.packs[rank::ranks]].sum() for rank in range(ranks)) / even
        for kind, value in zip(found.values(), (ours, bound, ours / bound, dealt, by_rank.max() / even), strict=True):
            kind.append(float(value))
    return {name: (max(values), fmean(values)) for name, values in found.items()}


def show(title: str, columns: Iterable[object], rows: Mapping[str, Iterable[str]]) -> None:
    print(f"\n{title}\n{'':30}" + "".join(f"{name:>23}" for name in columns))
    for name, cells in rows.items():
        print(f"{name:30}" + "".join(f"{cell:>23}" for cell in cells))


def seconds(found: Runs) -> dict[str, list[str]]:
    spent = {way: [sorted(run["cpu_s"]) for run in runs.values()] for way, runs in found.items()}
    return {way: [f"{median(s):.3f} ({s[0]:.3f}-{s[-1]:.3f})" for s in runs] for way, runs in spent.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS, help="json lines with instruction, input, output")
    words, where = parser.parse_args(), circumstances()
    datasets.disable_progress_bars()
    drawn, many = (np.split(like_oss_instruct(count), count // GROUP_SAMPLES) for count in (SAMPLES, MILLION))
    data = {CODE_ALPACA: code_alpaca(words.rows), OSS_INSTRUCT: drawn}
    cases = {f"{name} {window}": case(data[name], window) for name, window in product(data, WINDOWS)}
    ways = OURS_AND_PLAIN | TRL | TRL_ALONE
    measure({"warm-up": case(many[:1], 2048)}, ways, 1)
    packed = measure(cases, ways, ROUNDS)
    bests = {way: OURS_AND_PLAIN[way] for way in OURS_AND_PLAIN if "first-fit" not in way}
    million = measure({str(window): case(many, window) for window in WINDOWS}, bests, MILLION_ROUNDS)
    million |= measure({"2048": case(many, 2048)}, TRL_ALONE, ROUNDS)
    steps = {
        f"{name} {window}, {ranks} ranks": step_plan(packs_of(cases[f"{name} {window}"]), ranks)
        for name, window, ranks in product(data, STEP_WINDOWS, IMBALANCE)
    }
    got = [(f"fill, {name}", run["fill"], FILL) for name, run in packed[GROUPED].items()]
    for way in (GROUPED, ONCE):
        got.append((f"CPU s of 1 M, {way}", max(median(run["cpu_s"]) for run in million[way].values()), PLAN_S))
    for name in (name for name in steps if OSS_INSTRUCT in name):
        got.append((f"imbalance, {name}", steps[name]["raypipe"][0], IMBALANCE[int(name.split()[-2])]))
    missed = [name for name, value, goal in got if (value < goal if goal == FILL else value > goal)]
    more = {
        "possible at all": [best_possible([one.lengths], one.window) for one in cases.values()],
        "possible in our groups": [best_possible(one.groups, one.window) for one in cases.values()],
        "samples cut by wrapped": [cut_share(one) for one in cases.values()],
    }
    about = {name: {"tokens": int(np.concatenate(of).sum()), "groups": list(map(len, of))} for name, of in data.items()}
    goals = {name: {"got": round(value, 5), "goal": goal} for name, value, goal in got}
    figures = {"goals": goals, "packed": packed, "by case": more, "million": million, "imbalance": steps}
    record("pack", {**where, "rounds": [ROUNDS, MILLION_ROUNDS], "data": about, **figures})
    fills = {way: [run["fill"] for run in runs.values()] for way, runs in packed.items() if way != ALONE} | more
    show("Fill", cases, {way: [f"{value:.4f}" for value in values] for way, values in fills.items()})
    show("CPU seconds, median (lowest-highest)", cases, seconds(packed))
    show(f"CPU seconds of {MILLION:,} samples like OSS-Instruct's, by window", WINDOWS, seconds(million))
    rows = {name: [f"{worst:.4f} ({mean:.4f})" for worst, mean in kinds.values()] for name, kinds in steps.items()}
    show("Imbalance, worst step (mean)", KINDS, rows)
    print("", *(f"{name}: {said}" for name, said in about.items()), sep="\n")
    for name in (name for name in steps if CODE_ALPACA in name):
        ours, bound = (steps[name][kind][0] for kind in ("raypipe", "bound"))
        print(f"imbalance, {name:33} {ours:8.5f} (its dearest sample sets {bound:.5f})")
    for name, value, goal in got:
        print(f"{name:44} {value:8.5f} (goal {goal}){'  MISSED' if name in missed else ''}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

"""Does selecting help? The paper's arms on CodeAlpaca, with a model of about 100 M parameters that knows nothing before, on one GPU.

    .venv/bin/python benchmarks/gpu_ablate.py prepare ../shared/data/code_alpaca_20k build/ablate   # on a CPU, once: tokens, embeddings
    python benchmarks/gpu_ablate.py run build/ablate OUT           # on the GPU; ends after 7 minutes, run again until it says that all is done
    .venv/bin/python benchmarks/gpu_ablate.py report OUT           # table, sentences, benchmarks/results/gpu_ablate.json

`run` needs build/ablate and what earlier runs left in OUT, which may be another folder: --before. A tenth of the rows is held out. Another
tenth trains the model that scores, for as many epochs as the arms train, and is not selected from; IFD is that of `ops.ifd`, clusters are ten of MiniLM's
embeddings of instructions. Every arm is trained from new weights with each seed, once for EPOCHS epochs of its own (`epochs`: 40 % of the
rows is also 40 % of the steps) and once for as many steps as the full set takes (`steps`). `ifd_1` to `ifd_5`: each fifth of the rows by
IFD alone. The outcome is the NLL a token of held-out samples. No Ray: raypipe.ops and raypipe.models. `--small` is a try on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.packs import Packs, Sample
from benchmarks.record import circumstances, record
from raypipe.ops.ifd import exact_passes, ifd
from raypipe.ops.kmeans import move, statistics, unit_rows
from raypipe.ops.packing import lay_out
from raypipe.ops.steps import learning_rate_factor, plan_budget, plan_steps
from raypipe.ops.tokens import training_sequence

ARMS = ("full", "random", "cluster_random", "global_ifd", "paper", "ifd_1", "ifd_2", "ifd_3", "ifd_4", "ifd_5")
VERSUS, FRACTION, NUM_CLUSTERS, SEEDS, BUDGETS = "random", 0.4, 10, (1, 2, 3, 4, 5), ("epochs", "steps")
EPOCHS, SAMPLES_PER_STEP, LEARNING_RATE, WARMUP_STEPS, WINDOW, MICRO_BATCH_TOKENS = 3, 64, 6e-4, 50, 1024, 16_384
MINUTES, VOCAB_SIZE, EOS = 7.0, 8192, 0
SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
SMALL_ROWS, SMALL_ARMS, SMALL_SEEDS = 600, ("full", "random", "paper"), (1, 2)


def prepare(source: Path, out: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from benchmarks.score import read_rows
    from raypipe.demo import link_embedder
    from raypipe.models.embedder import Embedder

    files = sorted(source.glob("*.jsonl*")) if source.is_dir() else [source]
    rows = list(dict.fromkeys(row for file in files for row in read_rows(file, sys.maxsize)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain.from_iterable(rows), trainer)
    prompts = [f"### Instruction:\n{instruction}\n### Response:\n" for instruction, _ in rows]
    texts = [prompts, [response for _, response in rows]]
    ids = [[one.ids for one in tokenizer.encode_batch(some, add_special_tokens=False)] for some in texts]
    with tempfile.TemporaryDirectory() as folder:
        link_embedder(link := Path(folder) / "embedder")
        embedded = Embedder(str(link), "cpu", "bfloat16").embed([instruction for instruction, _ in rows])
    out.mkdir(parents=True, exist_ok=True)
    flat = {
        f"{name}_ids": np.concatenate([np.array(one, np.int16) for one in some])
        for name, some in zip(("prompt", "response"), ids, strict=True)
    }
    lengths = {
        f"{name}_lengths": np.array(list(map(len, some)), np.int32)
        for name, some in zip(("prompt", "response"), ids, strict=True)
    }
    np.savez_compressed(out / "rows.npz", **flat, **lengths, embedding=embedded.astype(np.float16))
    print(
        f"{len(rows):,} rows, {sum(map(len, flat.values())):,} tokens in {out / 'rows.npz'}, {(out / 'rows.npz').stat().st_size >> 20} MiB"
    )


class Rows:
    """Token ids of every row, and which are held out, score, and may be selected."""

    def __init__(self, path: Path, most: int) -> None:
        with np.load(path) as held:
            pieces = [
                np.split(held[f"{name}_ids"], np.cumsum(held[f"{name}_lengths"])[:-1])
                for name in ("prompt", "response")
            ]
            self.prompts, self.responses = ([ids.tolist() for ids in some[:most]] for some in pieces)
            self.embedding = unit_rows(held["embedding"][:most].astype(np.float32))
        order = np.random.default_rng(0).permutation(len(self.prompts))
        tenth = len(order) // 10
        self.held_out, self.scoring, self.pool = np.split(order, [tenth, 2 * tenth])

    def samples(self, places: Any) -> list[Sample]:
        pairs = (training_sequence(self.prompts[n], self.responses[n], EOS) for n in places)
        return [(ids, labels) for ids, labels in pairs if len(ids) <= WINDOW]


class Lab:
    def __init__(self, rows: Rows, shape: dict[str, int], device: str) -> None:
        from transformers import AttentionInterface

        from raypipe.models.packed import ATTENTION, packed_attention

        AttentionInterface.register(ATTENTION, packed_attention)
        self.rows, self.shape, self.device = rows, shape, device

    def new_model(self, dtype: Any) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        from raypipe.models.packed import ATTENTION

        config = LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=WINDOW, **self.shape)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)

    def trained(self, places: Any, seed: int, steps: int | None = None) -> tuple[Any, Any, dict[str, Any]]:
        """A model from new weights, its Dealer's maker, and figures; `steps`: in place of EPOCHS."""
        import torch

        from raypipe.models.batches import Dealer
        from raypipe.models.sharded import Tuning, shard, tuned

        torch.manual_seed(seed)
        base = self.new_model(torch.float32)
        tuning = Tuning("", "bfloat16" if self.device == "cuda" else "float32", None, seed, False, compile=False)
        model, cost = shard(tuned(base, tuning), tuning, self.device)
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, fused=self.device == "cuda" or None
        )

        def dealer(packs: Packs) -> Dealer:
            return Dealer(packs, 0, 1, MICRO_BATCH_TOKENS, cost.quadratic, EOS)

        packs = packed(self.rows.samples(places))
        same = {"samples_per_step": SAMPLES_PER_STEP, "seed": seed}
        plan = (
            plan_budget(packs.shapes, steps=steps, **same) if steps else plan_steps(packs.shapes, epochs=EPOCHS, **same)
        )
        model.train()
        started = time.perf_counter()
        for number, (step, dealt) in enumerate(zip(plan, dealer(packs).deal(step.packs for step in plan), strict=True)):
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * learning_rate_factor(
                    number, warmup_steps=WARMUP_STEPS, total_steps=len(plan)
                )
            for batch in dealt.batches:
                (model(batch.to(self.device))[0].sum() / step.target_tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        figures = {
            "seconds": round(time.perf_counter() - started, 2),
            "steps": len(plan),
            "samples": int(packs.shapes.num_samples.sum()),
            "target_tokens": int(sum(step.target_tokens for step in plan)),
            "median_response_tokens": float(np.median([len(self.rows.responses[n]) for n in places])),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.device == "cuda" else None,
        }
        return model, dealer, figures

    def held_out_nll(self, model: Any, dealer: Any) -> Any:
        """[N] a token."""
        import torch.distributed as dist

        from raypipe.models.held_out import evaluate

        found = evaluate(
            model, dealer(packed(self.rows.samples(self.rows.held_out))), self.device, dist.new_group(backend="gloo")
        )
        by_place = sorted((int(name), total / count) for name, _, total, count in found.rows)
        return np.array([value for _, value in by_place])

    def scores(self) -> tuple[Any, Any]:
        """IFD and cluster of each row of the pool."""
        import torch

        from raypipe.models.scorer import TransformersScorer

        rows = self.rows
        model, _, _ = self.trained(rows.scoring, seed=0)
        whole = self.new_model(torch.bfloat16 if self.device == "cuda" else torch.float32)
        whole.load_state_dict({name: weight.full_tensor() for name, weight in model.model.state_dict().items()})
        scorer = TransformersScorer(whole, MICRO_BATCH_TOKENS)
        passes = exact_passes(
            [EOS], [rows.prompts[n] for n in rows.pool], [rows.responses[n] for n in rows.pool], WINDOW
        )
        fits = (passes.num_lost == 0) & (passes.num_scored_N2.min(1) > 0)
        nll_N2 = np.full((len(rows.pool), 2), np.nan)
        (chosen,) = np.nonzero(fits)
        sequences = [ids for n in chosen for ids in passes.sequences[n]]
        nll_N2[chosen] = scorer.nll(sequences, passes.num_context_N2[chosen].ravel().tolist()).reshape(-1, 2)
        x_ND = rows.embedding[rows.pool]
        centers = x_ND[np.random.default_rng(0).choice(len(x_ND), NUM_CLUSTERS, replace=False)]
        for _ in range(25):
            found = statistics(x_ND, centers)
            centers = move(centers, found, "cosine")
        return ifd(nll_N2, passes.num_scored_N2), (x_ND @ centers.T).argmax(1)


def packed(samples: list[Sample]) -> Packs:
    lengths = np.array([len(ids) for ids, _ in samples])
    return Packs(lay_out("best_fit", lengths, WINDOW, np.random.default_rng(0)), samples, divisible=True)


def chosen(arm: str, ifd_N: Any, cluster_N: Any, seed: int) -> Any:
    """Places in the pool: as `select` has them, of rows with an IFD below 1; `full` and the fifths of all that have one."""
    scored, rng = np.flatnonzero(~np.isnan(ifd_N)), np.random.default_rng(seed)
    if arm == "full":
        return scored
    if arm.startswith("ifd_"):
        return np.array_split(scored[np.argsort(ifd_N[scored], kind="stable")], 5)[int(arm[-1]) - 1]
    eligible = scored[ifd_N[scored] < 1]
    key_N = ifd_N if "ifd" in arm or arm == "paper" else rng.random(len(ifd_N))
    groups = cluster_N if arm in ("paper", "cluster_random") else np.zeros_like(cluster_N)
    kept = []
    for group in np.unique(groups[eligible]):
        its = eligible[groups[eligible] == group]
        kept.append(its[np.argsort(-key_N[its], kind="stable")[: round(FRACTION * len(its))]])
    return np.concatenate(kept)


def run(prepared: Path, out: Path, before: Path | None, small: bool) -> int:
    import torch
    import torch.distributed as dist

    started, device = time.monotonic(), "cpu" if small else "cuda"
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(before.glob("*.npz")) if before else []:
        (out / path.name).write_bytes(path.read_bytes())
    arms, seeds = (SMALL_ARMS, SMALL_SEEDS) if small else (ARMS, SEEDS)
    todo = [
        (seed, budget, arm)
        for seed in seeds
        for budget in BUDGETS
        for arm in arms
        if (arm, budget) != ("full", "steps")
    ]
    todo = [one for one in todo if not (out / name_of(*one)).exists()]
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo" if small else "nccl", init_method=f"file://{folder}/store", rank=0, world_size=1)
        lab = Lab(Rows(prepared / "rows.npz", SMALL_ROWS if small else sys.maxsize), SMALL if small else SHAPE, device)
        if not (out / "scores.npz").exists():
            ifd_N, cluster_N = lab.scores()
            save(out / "scores.npz", ifd=ifd_N, cluster=cluster_N)
        with np.load(out / "scores.npz") as held:
            ifd_N, cluster_N = held["ifd"], held["cluster"]
        full_steps = len(plan_steps(packed(lab.rows.samples(lab.rows.pool[chosen("full", ifd_N, cluster_N, 0)])).shapes, epochs=EPOCHS,
                                    samples_per_step=SAMPLES_PER_STEP, seed=0))  # fmt: skip
        for count, (seed, budget, arm) in enumerate(todo):
            if time.monotonic() - started > 60 * MINUTES:
                print(f"{len(todo) - count} of {len(todo)} trainings are left: run again")
                break
            places = lab.rows.pool[chosen(arm, ifd_N, cluster_N, seed)]
            model, dealer, figures = lab.trained(places, seed, full_steps if budget == "steps" else None)
            nll_N = lab.held_out_nll(model, dealer)
            device_name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
            save(out / name_of(seed, budget, arm), nll=nll_N, figures=json.dumps(figures | {"device": device_name}))
            print(f"seed {seed}  {budget:6}  {arm:15} held-out {nll_N.mean():.4f}  {figures}", flush=True)
            del model
        else:
            print("all trainings are done")
        dist.destroy_process_group()
    return 0


def name_of(seed: int, budget: str, arm: str) -> str:
    return f"{arm}-{budget}-{seed}.npz"


def save(path: Path, **arrays: Any) -> None:
    """Whole or not at all."""
    np.savez_compressed(half := path.with_suffix(".half.npz"), **arrays)
    half.rename(path)


def report(out: Path, small: bool) -> int:
    """Of seeds that all arms have."""
    from raypipe.ops.experiment import compare, sentence

    arms, found = (SMALL_ARMS if small else ARMS), circumstances()
    for budget in BUDGETS:
        its = {arm: "epochs" if arm == "full" else budget for arm in arms}  # full has one budget
        seeds = [seed for seed in SEEDS if all((out / name_of(seed, its[arm], arm)).exists() for arm in arms)]
        if len(seeds) < 2:
            print(f"{budget}: {len(seeds)} seeds are whole, wanted two at least. Run on")
            return 1
        nll, figures = {}, {}
        for arm in arms:
            held = [np.load(out / name_of(seed, its[arm], arm)) for seed in seeds]
            nll[arm] = np.stack([one["nll"] for one in held])
            figures[arm] = [json.loads(str(one["figures"])) for one in held]
        found[budget] = {"seeds": seeds, "num_units": nll[VERSUS].shape[1], "arms": {}}
        print(f"{budget}, {len(seeds)} seeds, {nll[VERSUS].shape[1]:,} held-out samples")
        for arm in arms:
            row: dict[str, Any] = {"held_out": float(nll[arm].mean()), "figures": figures[arm]}
            words = f"  {arm:15} {row['held_out']:.4f}  {figures[arm][0]['samples']:6,} samples  {figures[arm][0]['steps']:5,} steps"
            if arm != VERSUS:
                row["versus"] = compare(nll[arm], nll[VERSUS], lower_is_better=True)
                words += f"  {sentence(arm, VERSUS, 'held-out loss', row['versus'])}"
            found[budget]["arms"][arm] = row
            print(words)
    if not small:
        record("gpu_ablate", found)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = {name: verbs.add_parser(name) for name in ("prepare", "run", "report")}
    made["prepare"].add_argument("source", type=Path)
    for name in ("prepare", "run"):
        made[name].add_argument("prepared", type=Path)
    for name in ("run", "report"):
        made[name].add_argument("out", type=Path)
        made[name].add_argument("--small", action="store_true")
    made["run"].add_argument("--before", type=Path, help="what earlier runs left")
    asked = parser.parse_args()
    if asked.verb == "prepare":
        prepare(asked.source, asked.prepared)
        return 0
    return (
        run(asked.prepared, asked.out, asked.before, asked.small)
        if asked.verb == "run"
        else report(asked.out, asked.small)
    )


if __name__ == "__main__":
    sys.exit(main())

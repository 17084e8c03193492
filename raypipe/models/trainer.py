"""The packed training loop: torch and FSDP2, no Ray. Every rank of a process group calls `train`.

Loss is the token mean over the whole step: each rank's sum of NLL is divided by the step's target tokens, known from the
plan, and gradients are summed, so ranks may hold uneven work. Resume needs a step: batches are a function of the plan.
Checkpoints are torch's distributed ones, whose `.metadata` is written last; one without it is never resumed.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from raypipe.models.packed import Batch, load_config, load_model, load_tokenizer, make_batch, target_nll
from raypipe.ops.steps import Step, learning_rate_factor, micro_batches
from raypipe.ops.tokens import IGNORED

log = logging.getLogger("raypipe")
CHECKPOINTS_KEPT = 2
WEIGHT_DECAY, CLIP_NORM = 0.0, 1.0


@dataclass(frozen=True)
class Pack:
    """Samples laid end to end: tokens [T], labels [T], and of each of S samples its length and sample_id."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    lengths: Sequence[int]
    sample_ids: Sequence[str]


class Packs(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, place: int) -> Pack: ...


@dataclass(frozen=True)
class Settings:
    model: str
    dtype: str  # of compute
    learning_rate: float
    warmup_steps: int
    packs_each: int  # per micro-batch
    checkpoint_every_s: float


@dataclass(frozen=True)
class HeldOut:
    """Summed NLL over the targets of each held-out sample."""

    sample_ids: list[str]
    nll: list[float]
    num_tokens: list[int]

    @property
    def loss(self) -> float | None:
        """Token mean; None where nothing is held out."""
        return sum(self.nll) / sum(self.num_tokens) if self.num_tokens else None


def train(settings: Settings, packs: Packs, held_out: Packs, steps: Sequence[Step], out: Path) -> None:
    """Train, or go on from the newest checkpoint; leaves `metrics.jsonl`, `held_out.json` and `model/` in `out` (rank 0)."""
    run = _Run(settings, out, len(steps))
    first = run.resume()
    if first == 0:
        run.record_held_out(0, run.evaluate(held_out))
    saved = time.monotonic()
    for number, step in enumerate(steps[first:], first + 1):
        run.step(number, step, packs)
        if number == len(steps) or steps[number].epoch != step.epoch:
            run.record_held_out(number, run.evaluate(held_out))
        if run.agree(time.monotonic() - saved > settings.checkpoint_every_s):
            run.save(number)
            saved = time.monotonic()
    run.export()


class _Run:
    """Model, optimiser and place of this rank."""

    def __init__(self, settings: Settings, out: Path, total_steps: int) -> None:
        self.settings, self.out = settings, out
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        self.tokenizer = load_tokenizer(settings.model)
        self.model = _shard(load_model(settings.model, "float32", self.device), settings.dtype, self.device)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
        )
        self.factor = partial(learning_rate_factor, warmup_steps=settings.warmup_steps, total_steps=total_steps)

    def step(self, number: int, step: Step, packs: Packs) -> None:
        started = time.monotonic()
        self.model.train()
        rate = self.settings.learning_rate * self.factor(number - 1)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = torch.zeros((), device=self.device)
        for places in micro_batches(step.packs, self.rank, self.world_size, self.settings.packs_each):
            batch = self._batch([packs[place] for place in places])
            nll, _ = target_nll(self.model, batch)
            share = nll.sum() * (1 / step.target_tokens if places else 0)
            share.backward()
            loss += share.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad()
        dist.all_reduce(loss)
        self._record(
            step=number,
            epoch=step.epoch,
            loss=loss.item(),
            learning_rate=rate,
            grad_norm=_full(norm).item(),
            samples=step.num_samples,
            target_tokens=step.target_tokens,
            num_workers=self.world_size,
            seconds=round(time.monotonic() - started, 4),
        )

    def evaluate(self, packs: Packs) -> HeldOut:
        """NLL of every held-out sample; each rank scores its share, all get the whole."""
        self.model.eval()
        mine: list[tuple[str, float, int]] = []
        for places in micro_batches(range(len(packs)), self.rank, self.world_size, self.settings.packs_each):
            chosen = [packs[place] for place in places]
            with torch.no_grad():
                batch = self._batch(chosen)
                nll, positions = target_nll(self.model, batch)
            mine += _by_sample(chosen, nll, positions, batch)
        shares: list[Any] = [None] * self.world_size
        dist.all_gather_object(shares, mine)
        rows = sorted(row for share in shares for row in share)
        return HeldOut([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])

    def _batch(self, packs: Sequence[Pack]) -> Batch:
        """One row of all packs; for no packs two tokens whose loss counts nothing, as every rank must take part."""
        if not packs:
            eos = self.tokenizer.eos_token_id
            return make_batch([eos, eos], [IGNORED, eos], [2], self.device)
        ids = [token for pack in packs for token in pack.input_ids]
        labels = [label for pack in packs for label in pack.labels]
        return make_batch(ids, labels, [length for pack in packs for length in pack.lengths], self.device)

    def agree(self, wish: bool) -> bool:
        """Rank 0's word: clocks differ, and a checkpoint needs every rank."""
        word = torch.tensor(int(wish), device=self.device)
        dist.broadcast(word, 0)
        return bool(word.item())

    def record_held_out(self, number: int, found: HeldOut) -> None:
        if self.rank == 0:
            path = self.out / "held_out.json"
            seen: dict[str, Any] = (
                json.loads(path.read_text())
                if path.exists() and number
                else {"sample_ids": found.sample_ids, "num_tokens": found.num_tokens, "nll": {}}
            )
            seen["nll"][str(number)] = found.nll
            _replace(path, json.dumps(seen))
        self._record(step=number, held_out_loss=found.loss, held_out_samples=len(found.sample_ids))

    def _record(self, **values: Any) -> None:
        if self.rank == 0:
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")

    def save(self, number: int) -> None:
        model, optimiser = get_state_dict(self.model, self.optimiser)
        folder = self.out / "checkpoints" / f"step-{number:08d}"
        dcp.save({"model": model, "optimiser": optimiser}, checkpoint_id=folder)
        if self.rank == 0:
            for old in _checkpoints(self.out)[:-CHECKPOINTS_KEPT]:
                shutil.rmtree(self.out / "checkpoints" / f"step-{old:08d}")

    def resume(self) -> int:
        """The step of the newest whole checkpoint, loaded; 0 where there is none."""
        found = _checkpoints(self.out)
        number = found[-1] if found else 0
        if number:
            model, optimiser = get_state_dict(self.model, self.optimiser)
            dcp.load(
                {"model": model, "optimiser": optimiser}, checkpoint_id=self.out / "checkpoints" / f"step-{number:08d}"
            )
            set_state_dict(self.model, self.optimiser, model_state_dict=model, optim_state_dict=optimiser)
            log.info("training goes on after step %d", number)
        if self.rank == 0:
            _forget_after(self.out / "metrics.jsonl", number)
        dist.barrier()
        return number

    def export(self) -> None:
        """`model/` in Hugging Face format, in the type the base model was saved in; put whole, by a rename."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.model, options=options)
        if self.rank == 0 and not (self.out / "model").exists():
            plain = load_model(self.settings.model, "float32", "cpu")
            plain.load_state_dict(weights)
            temporary = self.out / ".model"
            shutil.rmtree(temporary, ignore_errors=True)
            plain.to(load_config(self.settings.model).dtype or torch.float32).save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            temporary.rename(self.out / "model")
        dist.barrier()


def _shard(model: Any, dtype: str, device: str) -> Any:
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, dtype), reduce_dtype=torch.float32)
    mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
    blocks = set(model._no_split_modules or ())  # transformers' names for a model's layers
    for layer in [module for module in model.modules() if type(module).__name__ in blocks]:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)  # sum, not mean: the loss is already divided by the step's tokens
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled reduction
    return model


def _by_sample(
    packs: Sequence[Pack], nll: torch.Tensor, positions: torch.Tensor, batch: Batch
) -> list[tuple[str, float, int]]:
    if not packs:
        return []
    names = [name for pack in packs for name in pack.sample_ids]
    owner = torch.bucketize(positions, batch.bounds[1:].long(), right=True)
    sums = torch.zeros(len(names), dtype=torch.float64, device=nll.device).index_add_(0, owner, nll.double())
    counts = torch.bincount(owner, minlength=len(names))
    return list(zip(names, sums.tolist(), counts.tolist(), strict=True))


def _checkpoints(out: Path) -> list[int]:
    """Steps with a whole checkpoint, in order."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*/.metadata"))


def _forget_after(metrics: Path, number: int) -> None:
    """Drop lines of steps that will be run again."""
    if metrics.exists():
        lines = [line for line in metrics.read_text().splitlines() if number and json.loads(line)["step"] <= number]
        _replace(metrics, "".join(line + "\n" for line in lines))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.rename(path)


def _full(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

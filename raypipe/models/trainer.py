"""The packed training loop: torch and FSDP2, no Ray. Every rank of a process group calls `train`.

Loss is the token mean over the whole step: each rank's sum of NLL is divided by the step's target tokens, known from the
plan, and gradients are summed, so ranks may hold uneven work. Resume needs a step: batches are a function of the plan.
Nothing is appended to storage: `metrics.jsonl` is put whole from time to time, and before every checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from raypipe.models import checkpoints
from raypipe.models.checkpoints import Output
from raypipe.models.packed import Batch, load_model, make_batch, target_nll
from raypipe.models.pretrained import load_config, load_tokenizer
from raypipe.ops.packing import Pack
from raypipe.ops.steps import Step, learning_rate_factor, micro_batches
from raypipe.ops.tokens import IGNORED

log = logging.getLogger("raypipe")
METRICS = "metrics.jsonl"
FLUSH_S = 10.0  # between writes of the metrics
ASK_S = 1.0  # between looks at whether to stop
Action = Literal["go on", "save", "save and stop", "stop"]
ACTIONS: tuple[Action, ...] = get_args(Action)
WEIGHT_DECAY, CLIP_NORM = 0.0, 1.0


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


def train(
    settings: Settings,
    packs: Packs,
    held_out: Packs,
    steps: Sequence[Step],
    out: Output,
    wish: Callable[[], Action] = lambda: "go on",
) -> bool:
    """Train, or go on from the newest checkpoint; leaves `metrics.jsonl`, `held_out.json` and `model/` in `out` (rank 0).

    `wish` is asked on rank 0 about every second, and before anything is written; False where it ended the training.
    """
    run = _Run(settings, out, len(steps), wish)
    first = run.resume()
    if first == 0:
        run.record_held_out(0, run.evaluate(held_out))
    saved = time.monotonic()
    for number, step in enumerate(steps[first:], first + 1):
        run.step(number, step, packs)
        if number == len(steps) or steps[number].epoch != step.epoch:
            run.record_held_out(number, run.evaluate(held_out))
        action = run.agree(due=time.monotonic() - saved > settings.checkpoint_every_s)
        if action in ("save", "save and stop"):
            run.save(number)
            saved = time.monotonic()
        if action in ("save and stop", "stop"):
            return False
    return run.export()


class _Run:
    """Model, optimiser and place of this rank."""

    def __init__(self, settings: Settings, out: Output, total_steps: int, wish: Callable[[], Action]) -> None:
        self.settings, self.out, self.wish = settings, out, wish
        self.lines: list[str] = []  # of metrics.jsonl
        self.asked = self.flushed = time.monotonic()
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

    def agree(self, *, due: bool) -> Action:
        """Rank 0's word: clocks differ, and a checkpoint needs every rank."""
        action: Action = "go on"
        if self.rank == 0 and (due or time.monotonic() - self.asked > ASK_S):
            self.asked = time.monotonic()
            action = self.wish()
            action = "save" if due and action == "go on" else action
        word = torch.tensor(ACTIONS.index(action), device=self.device)
        dist.broadcast(word, 0)
        return ACTIONS[int(word.item())]

    def record_held_out(self, number: int, found: HeldOut) -> None:
        if self.rank == 0:
            before = self.out.find("held_out.json") if number else None
            seen: dict[str, Any] = json.loads(
                before or json.dumps({"sample_ids": found.sample_ids, "num_tokens": found.num_tokens, "nll": {}})
            )
            seen["nll"][str(number)] = found.nll
            self.out.replace("held_out.json", json.dumps(seen).encode())
        self._record(step=number, held_out_loss=found.loss, held_out_samples=len(found.sample_ids))

    def _record(self, **values: Any) -> None:
        if self.rank == 0:
            self.lines.append(json.dumps(values) + "\n")
            if time.monotonic() - self.flushed > FLUSH_S:
                self._flush()

    def _flush(self) -> None:
        if self.rank == 0:
            self.out.replace(METRICS, "".join(self.lines).encode())
            self.flushed = time.monotonic()

    def save(self, number: int) -> None:
        """With the metrics up to it, which a restart needs."""
        self._flush()
        model, optimiser = get_state_dict(self.model, self.optimiser)
        checkpoints.save({"model": model, "optimiser": optimiser}, self.out, number)
        if self.rank == 0:
            checkpoints.prune(self.out)

    def resume(self) -> int:
        """The step of the newest whole checkpoint, loaded; 0 where there is none. Lines of steps to be run again are dropped."""
        found = checkpoints.whole(self.out)
        number = found[-1] if found else 0
        if number:
            model, optimiser = get_state_dict(self.model, self.optimiser)
            checkpoints.load({"model": model, "optimiser": optimiser}, self.out, number)
            set_state_dict(self.model, self.optimiser, model_state_dict=model, optim_state_dict=optimiser)
            log.info("training goes on after step %d", number)
            lines = (self.out.find(METRICS) or b"").decode().splitlines(keepends=True)
            self.lines = [line for line in lines if json.loads(line)["step"] <= number]
        dist.barrier()
        return number

    def export(self) -> bool:
        """`model/` in Hugging Face format, in the type the base model was saved in; config.json last, which makes it whole."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.model, options=options)
        mine = self.agree(due=True) != "stop"
        if self.rank == 0 and mine:
            self._flush()
            plain = load_model(self.settings.model, "float32", "cpu")
            plain.load_state_dict(weights)
            with tempfile.TemporaryDirectory() as folder:
                plain.to(load_config(self.settings.model).dtype or torch.float32).save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
                _copy(Path(folder), self.out / "model")
        dist.barrier()
        return mine


def _copy(folder: Path, out: Output) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.json"):
        with path.open("rb") as source, out.create(path.name) as target:
            shutil.copyfileobj(source, target, 8 << 20)


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


def _full(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

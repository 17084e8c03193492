"""The packed training loop: torch and FSDP2, no Ray. Every rank of a process group calls `train`.

Loss is the token mean over the whole step: each rank's sum of NLL is divided by the step's target tokens, known from the
plan, and gradients are summed, so ranks may hold uneven work. Resume needs a step: batches are a function of the plan.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from raypipe.errors import DataError
from raypipe.models import checkpoints
from raypipe.models.batches import Dealer, Dealt, Packs
from raypipe.models.checkpoints import Output
from raypipe.models.flops import peak_flops
from raypipe.models.held_out import evaluate, remember
from raypipe.models.metrics import Metrics
from raypipe.models.pretrained import load_tokenizer
from raypipe.models.release import release
from raypipe.models.sharded import Tuning, load_tuned, shard
from raypipe.models.trackers import Run, open_trackers
from raypipe.ops.steps import Step, Volume, learning_rate_factor, plan_digest

log = logging.getLogger("raypipe")
ASK_S = 1.0  # between looks at whether to stop
Action = Literal["go on", "save", "save and stop", "stop"]
ACTIONS: tuple[Action, ...] = get_args(Action)
WEIGHT_DECAY, CLIP_NORM = 0.0, 1.0


@dataclass(frozen=True)
class Settings:
    tuning: Tuning
    learning_rate: float
    warmup_steps: int
    micro_batch_tokens: int
    checkpoint_every_s: float
    template: str  # of the training samples
    run: Run  # as trackers show it
    merge: bool = True  # adapters into the model that is released
    report_to: tuple[str, ...] = ()


def train(
    settings: Settings,
    packs: Packs,
    held_out: Packs,
    steps: Sequence[Step],
    out: Output,
    wish: Callable[[], Action] = lambda: "go on",
) -> bool:
    """Train, or go on from the newest checkpoint; leaves `metrics.jsonl`, `held_out.json` and `model/` in `out` (rank 0).

    `wish` is called on every rank at once, about every second and before anything is written; rank 0's answer counts.
    False where it ended the training.
    """
    run = _Run(settings, packs, steps, out, wish)
    first = run.resume()
    if first == 0:
        run.evaluate(0, held_out)
    with closing(run.dealer(packs).deal(step.packs for step in steps[first:])) as dealt:
        for number, step in enumerate(steps[first:], first + 1):
            run.step(number, step, next(dealt))
            if number == len(steps) or steps[number].epoch != step.epoch:
                run.evaluate(number, held_out)
            action = run.agree()
            if action in ("save", "save and stop"):
                run.save(number)
            if action == "stop":  # the folder is another's now
                return False
            if action == "save and stop":
                run.finish_writing()
                return False
    run.finish_writing()
    return run.release()


class _Run:
    """Model, optimiser and place of this rank."""

    def __init__(
        self, settings: Settings, packs: Packs, steps: Sequence[Step], out: Output, wish: Callable[[], Action]
    ) -> None:
        self.settings, self.out, self.wish, self.plan = settings, out, wish, plan_digest(steps)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        self.cpus = dist.new_group(backend="gloo")  # for words between steps
        self.savers = dist.new_group(backend="gloo")  # for the thread that saves
        self.tokenizer = load_tokenizer(settings.tuning.model)
        self.model, self.cost = shard(load_tuned(settings.tuning), settings.tuning, self.device)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=self.device == "cuda" or None
        )
        self.factor = partial(learning_rate_factor, warmup_steps=settings.warmup_steps, total_steps=len(steps))
        self.volume = Volume(packs.shapes, steps)
        self.asked = self.saved = time.monotonic()
        self.saving: Future[Any] | None = None
        self.metrics: Metrics | None = None  # on rank 0

    def dealer(self, packs: Packs) -> Dealer:
        tokens, eos = self.settings.micro_batch_tokens, self.tokenizer.eos_token_id
        return Dealer(packs, self.rank, self.world_size, tokens, self.cost.quadratic, eos)

    def step(self, number: int, step: Step, dealt: Dealt) -> None:
        started = time.perf_counter()
        self.model.train()
        rate = self.settings.learning_rate * self.factor(number - 1)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = torch.zeros((), device=self.device)
        for batch, pieces in zip(dealt.batches, dealt.pieces, strict=True):
            nll, _ = self.model(batch.to(self.device))
            share = nll.sum() * (1 / step.target_tokens if pieces else 0)
            share.backward()
            loss += share.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad()
        total_norm = _full(norm).item()  # a collective
        losses, waits, peaks = self._gathered(loss.item(), dealt.waited_s, _peak_memory_bytes(self.device)).T
        seconds = time.perf_counter() - started + dealt.waited_s
        if self.metrics:
            tokens = self.volume.tokens_of(number)
            self.metrics.add(
                {
                    "step": number,
                    "epoch": self.volume.epoch(number),
                    "loss": losses.sum(),
                    "learning_rate": rate,
                    "grad_norm": total_norm,
                    "samples": step.num_samples,
                    "target_tokens": step.target_tokens,
                    "num_input_tokens_seen": int(self.volume.tokens[number]),
                    "seconds": round(seconds, 4),
                    "tokens_per_s": round(tokens / seconds, 1),
                    "target_tokens_per_s": round(step.target_tokens / seconds, 1),
                    "mfu": self._mfu(number, step.target_tokens, seconds),
                    "fill": self._fill(tokens, len(dealt.batches)),
                    "imbalance": round(dealt.imbalance, 4),
                    "data_wait_share": round(waits.mean() / seconds, 4),
                    "peak_memory_bytes": int(peaks.max()),
                    "num_workers": self.world_size,
                }
            )

    def _gathered(self, *values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[ranks, values]."""
        mine = torch.tensor(values, dtype=torch.float64)
        all_ranks = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(all_ranks, mine, group=self.cpus)
        return np.stack([values.numpy() for values in all_ranks])

    def _mfu(self, number: int, target_tokens: int, seconds: float) -> float | None:
        peak = peak_flops(torch.cuda.get_device_name()) if self.device == "cuda" else None
        if peak is None:
            return None
        flops = self.cost.of(self.volume.tokens_of(number), self.volume.squares_of(number), target_tokens)
        return float(round(flops / (seconds * peak * self.world_size), 4))

    def _fill(self, tokens: int, micro_batches: int) -> float:
        """Of what the step's micro-batches may hold; 1 where a padded pack is more than one may."""
        most = micro_batches * self.world_size * self.settings.micro_batch_tokens
        return float(round(min(tokens / most, 1.0), 4))

    def evaluate(self, number: int, packs: Packs) -> None:
        started = time.perf_counter()
        found = evaluate(self.model, self.dealer(packs), self.device, self.cpus)
        if self.metrics:
            remember(self.out, number, found)
            self.metrics.add(
                {
                    "step": number,
                    "epoch": self.volume.epoch(number),
                    "eval_loss": found.loss,
                    "eval_loss_by_cluster": found.loss_by_cluster,
                    "eval_samples": len(found.rows),
                    "eval_runtime": round(time.perf_counter() - started, 3),
                }
            )

    def agree(self) -> Action:
        """One action for all ranks: clocks differ, and whatever follows is a collective."""
        now = time.monotonic()
        due = now - self.saved > self.settings.checkpoint_every_s
        if not self._word(int(due or now - self.asked > ASK_S)):
            return "go on"
        self.asked = now
        action = self.wish()
        action = "save" if due and action == "go on" else action
        return ACTIONS[self._word(ACTIONS.index(action))]

    def _word(self, mine: int) -> int:
        """Rank 0's."""
        word = torch.tensor(mine)
        dist.broadcast(word, 0, group=self.cpus)
        return int(word.item())

    def _state(self) -> dict[str, Any]:
        model, optimiser = get_state_dict(self.model, self.optimiser, options=self._options())
        return {"model": model, "optimiser": optimiser, "plan": self.plan}

    def _options(self, **more: bool) -> StateDictOptions:
        return StateDictOptions(ignore_frozen_params=self.settings.tuning.lora is not None, strict=False, **more)

    def save(self, number: int) -> None:
        """With the metrics up to it, which a restart needs. One at a time."""
        self.finish_saving()
        if self.metrics:
            self.metrics.flush()
        self.saving = checkpoints.save(self._state(), self.out, number, self.savers)
        self.saved = time.monotonic()

    def finish_saving(self) -> None:
        if self.saving:
            self.saving.result()
            self.saving = None
            if self.rank == 0:
                checkpoints.prune(self.out)

    def resume(self) -> int:
        """The step of the newest whole checkpoint, loaded; 0 where there is none."""
        number = self._word(max(checkpoints.whole(self.out), default=0))
        if number:
            state = self._state()
            checkpoints.load(state, self.out, number)
            if state["plan"] != self.plan:
                raise DataError(
                    f"checkpoints/step-{number:08d}: it is of plan {state['plan']}, wanted {self.plan}: the packs or the code that "
                    "draws steps from them changed. Remove the train folder's checkpoints, and train anew"
                )
            set_state_dict(
                self.model,
                self.optimiser,
                model_state_dict=state["model"],
                optim_state_dict=state["optimiser"],
                options=self._options(),
            )
            log.info("training goes on after step %d", number)
        if self.rank == 0:
            trackers = open_trackers(self.settings.report_to, self.settings.run, self.out, number)
            self.metrics = Metrics(self.out, trackers, number)
        dist.barrier(group=self.cpus)
        return number

    def finish_writing(self) -> None:
        self.finish_saving()
        if self.metrics:
            self.metrics.close()

    def release(self) -> bool:
        weights = get_model_state_dict(self.model, options=self._options(full_state_dict=True, cpu_offload=True))
        goes_on = ACTIONS[self._word(ACTIONS.index(self.wish()))] != "stop"
        if self.rank == 0 and goes_on:
            release(
                {name.removeprefix("model."): weight for name, weight in weights.items()},
                self.settings.tuning,
                self.tokenizer,
                merge=self.settings.merge,
                template=self.settings.template,
                out=self.out / "model",
            )
        dist.barrier(group=self.cpus)
        return goes_on


def _peak_memory_bytes(device: str) -> float:
    """Of the accelerator; without one, of the process."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _full(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

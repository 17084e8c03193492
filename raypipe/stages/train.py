"""Train: hand the packs to the training loop on Ray Train's workers. The loop itself is `raypipe.models.trainer`.

Ray Train places the workers, joins them into a process group and restarts them after a failure; what to resume is decided
by the checkpoints in the stage's own folder, so a restart of a worker, of the group or of the driver is one and the same.
Training is not idempotent, so the folder has an owner.

In the folder: `checkpoints/`, `metrics.jsonl`, `held_out.json` (NLL of each held-out sample after each epoch), `model/`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import ray

from raypipe import stopping
from raypipe.config import Config
from raypipe.errors import RaypipeError, Stopped
from raypipe.gate import gate
from raypipe.identity import fetched_model
from raypipe.items import POLL_S, track
from raypipe.model_card_figures import card
from raypipe.ops.held_out import paired_difference
from raypipe.ops.metrics import steps_and_evaluations
from raypipe.ops.steps import Step, plan_budget, plan_steps
from raypipe.ops.warnings import of_steps
from raypipe.owner import Owner, owned
from raypipe.packs import HELD_OUT_PACKS, PackReader
from raypipe.part import Table
from raypipe.resources import TrainWorkers
from raypipe.sizing import ACTOR_CPUS, fit, fit_now
from raypipe.stage import Inputs, Result
from raypipe.store import Folder

log = logging.getLogger("raypipe")
MAX_FAILURES, MAX_PREEMPTIONS = 3, 100  # of workers in one session; Ray's default for the second is for ever
START_S = float(os.environ.get("RAYPIPE_TRAIN_START_S", 600))  # for nodes to come, and a group of workers to start
GROW_S = float(os.environ.get("RAYPIPE_TRAIN_GROW_S", 60))  # between looks for more workers
LOOK_S = 5.0  # between looks at the metrics and the cluster
CPU_TOKENS = 4096  # a micro-batch without a GPU: half the memory of 6,700 tokens, and a tenth less time
WHOLE = "model/generation_config.json"  # the last object that training puts


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    with owned(out) as owner:
        if not out.has(WHOLE):
            _fit(config, inputs["pack"], owner)
    summary = _summary(config, inputs["pack"], out)
    (out / "model").put("README.md", card(config, inputs, out, summary).encode())
    return Result(summary=summary)


def training_plan(config: Config, packs: PackReader) -> list[Step]:
    """Every rank, and every restart, makes the same plan from the packs' shapes alone."""
    rule = config.train
    if rule.budget is not None:
        return plan_budget(
            packs.shapes, samples_per_step=rule.samples_per_step, seed=config.seed, **rule.budget.given()
        )
    return plan_steps(packs.shapes, epochs=rule.epochs, samples_per_step=rule.samples_per_step, seed=config.seed)


def open_packs(config: Config, packs: Table) -> PackReader:
    return PackReader(packs.folder, packs.parts, divisible=config.pack.strategy == "best_fit")


def _fit(config: Config, packs: Table, owner: Owner) -> None:
    pool = config.resources.train
    most = fit(*pool.workers, pool, "training workers")
    total = len(training_plan(config, open_packs(config, packs)))
    log.info("train: %d workers, %d steps", most, total)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    out, work = owner.folder, f"{owner.folder.path} {owner.number}"
    with tempfile.TemporaryDirectory() as state:  # Ray Train's own; what is worth keeping is in the folder
        trainer = _trainer(config, packs, owner, most, work, state)
        fitted = stopping.in_background(lambda: _fitted(trainer))
        watch = _Watch(config, out, work, fitted)
        for _ in track(watch.steps(), "train", total, "steps", watch.words, watch.first):
            pass
        stopping.check(out.path)
        fitted.result()
    if owner.is_succeeded():
        raise Stopped(f"{out.path}: another driver took over, as this one was silent for too long. Let that one end")
    if not out.has(WHOLE):
        raise Stopped(f"{out.path}: training ended without a model. Run again: it goes on from the last checkpoint")


class _Watch:
    """A driver's view of its training: steps as the metrics tell them, whether to stop, and whether the cluster can still hold it."""

    def __init__(self, config: Config, out: Folder, work: str, fitted: Future[Any]) -> None:
        self.config, self.out, self.work, self.fitted = config, out, work, fitted
        self.last: dict[str, Any] = {}
        self.held_out: float | None = None
        self.first = self._read()

    def steps(self) -> Iterator[int]:
        """Each step once it is known; ends with the training, or a while after a stop was asked for. Stopped for too few nodes."""
        known, looked, deadline, roomy = self.first, time.monotonic(), float("inf"), time.monotonic()
        while not self.fitted.done() and time.monotonic() < deadline:
            wait([self.fitted], timeout=POLL_S)
            if stopping.asked() and deadline == float("inf"):
                ray.get(gate().shut.remote(self.work))
                deadline = time.monotonic() + stopping.GRACE_S
            if time.monotonic() - looked > LOOK_S or self.fitted.done():
                looked = time.monotonic()
                now = self._read()
                yield from range(known + 1, now + 1)
                known = max(known, now)
                roomy = self._roomy(roomy)

    def words(self, _: int) -> str:
        said = [f"loss {self.last['loss']:.3f}", f"{self.last['tokens_per_s']:,.0f} tokens/s"] if self.last else []
        workers = self.last.get("num_workers")
        said += [f"{workers} worker{'s' if workers != 1 else ''}"] if workers else []
        return ", ".join(said + ([f"held-out loss {self.held_out:.3f}"] if self.held_out is not None else []))

    def _read(self) -> int:
        """The last step of the metrics."""
        steps, evaluations = steps_and_evaluations(self.out.find("metrics.jsonl") or b"")
        self.last = steps[-1] if steps else self.last
        self.held_out = evaluations[-1].get("eval_loss") if evaluations else self.held_out
        return int(self.last.get("step", 0))

    def _roomy(self, since: float) -> float:
        """When the cluster last had room for the fewest workers. Ray Train would wait for ever, and say so nowhere."""
        rule = self.config.resources.train
        if fit_now(rule) >= rule.workers[0]:
            return time.monotonic()
        if time.monotonic() - since > START_S:
            raise Stopped(
                f"{self.out.path}: for {START_S:.0f} s the cluster had room for fewer than {rule.workers[0]} training workers, as "
                "resources.train.workers asks for. Add nodes, or ask for fewer; then run again, which goes on from the last checkpoint"
            )
        return since


def scaling(pool: TrainWorkers, most: int, grow_s: float = GROW_S) -> Any:  # ScalingConfig
    """A gang: all of its fewest workers are placed at once, or none. It looks for more of them every `grow_s`."""
    from ray.train import ScalingConfig

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{START_S:.0f}")
    least = pool.workers[0]
    return ScalingConfig(
        num_workers=(least, most) if least < most else most,
        use_gpu=bool(pool.gpus),
        resources_per_worker={"CPU": ACTOR_CPUS, **({"GPU": pool.gpus} if pool.gpus else {})},
        accelerator_type=pool.accelerator if pool.gpus else None,
        placement_strategy=pool.placement.upper(),
        elastic_resize_monitor_interval_s=grow_s,
    )


def _trainer(config: Config, packs: Table, owner: Owner, most: int, work: str, state: str) -> Any:  # TorchTrainer
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    pool = config.resources.train
    failures = FailureConfig(
        max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES, max_preemption_failures=MAX_PREEMPTIONS
    )
    return TorchTrainer(
        _worker,
        train_loop_config={"config": config, "packs": packs, "owner": owner, "gate": gate(), "work": work},
        torch_config=TorchConfig(backend="nccl" if pool.gpus else "gloo"),
        # a group is made larger by ending it, which loses what came after its last checkpoint
        scaling_config=scaling(pool, most, max(GROW_S, config.train.checkpoint_every_s)),
        run_config=RunConfig(storage_path=state, failure_config=failures),
    )


def _fitted(trainer: Any) -> None:
    """Run; an error of ours in a worker is raised as it is."""
    from ray.train import WorkerGroupError

    try:
        trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(cause := getattr(failure, "cause", failure), RaypipeError):
                raise cause from error
        raise


def _worker(job: dict[str, Any]) -> None:
    from raypipe.models.sharded import Lora, Tuning  # and transformers, which no driver needs
    from raypipe.models.trackers import Run
    from raypipe.models.trainer import Settings, train

    config, packs, owner = job["config"], job["packs"], job["owner"]
    rule, resources = config.train, config.resources.train
    model = fetched_model(config.model, config.storage.endpoint)
    lora = rule.lora and Lora(rule.lora.r, rule.lora.alpha, rule.lora.target_modules)
    settings = Settings(
        Tuning(model, rule.dtype, lora, config.seed, resources.activation_checkpointing, resources.compile),
        learning_rate=rule.learning_rate,
        warmup_steps=rule.warmup_steps,
        micro_batch_tokens=resources.micro_batch_tokens
        if resources.gpus
        else min(resources.micro_batch_tokens, CPU_TOKENS),
        checkpoint_every_s=rule.checkpoint_every_s,
        template=config.template,
        run=Run(config.name, owner.folder.name, config.model_dump(mode="json")),
        merge=not rule.lora or rule.lora.export == "merged",
        report_to=rule.report_to,
    )
    training = open_packs(config, packs)
    held_out = PackReader(packs.folder / HELD_OUT_PACKS, packs.parts, divisible=True)
    wish = _Wish(owner, job["gate"], job["work"])
    train(settings, training, held_out, training_plan(config, training), owner.folder, wish)


@dataclass
class _Wish:
    """What the driver, another driver or the cluster want of a worker."""

    owner: Owner
    gate: Any
    work: str
    warned: set[float | None] = field(default_factory=set)  # deadlines of nodes for which there is a checkpoint

    def __call__(self) -> Any:  # an Action
        notice = ray.train.get_preemption_info()  # a collective
        if ray.train.get_context().get_world_rank():
            return "go on"
        if self.owner.is_succeeded():
            return "stop"
        if ray.get(self.gate.is_shut.remote(self.work)):
            return "save and stop"
        if notice is not None and notice.deadline_ms not in self.warned:
            self.warned.add(notice.deadline_ms)
            log.warning("a node of the training will be taken away: saving a checkpoint before")
            return "save"
        return "go on"


def _summary(config: Config, packs: Table, out: Folder) -> dict[str, Any]:
    steps, _ = steps_and_evaluations(out.read("metrics.jsonl"))
    seconds = sum(line["seconds"] for line in steps)

    def per_second(name: str) -> float:
        return float(round(sum(line[name] * line["seconds"] for line in steps) / seconds, 4))

    means = ("tokens_per_s", "target_tokens_per_s", "fill", "imbalance", "data_wait_share", "mfu")
    return {
        "steps": len(steps),
        "epochs": steps[-1]["epoch"],
        "samples": sum(line["samples"] for line in steps),  # as often as each was seen
        "target_tokens": sum(line["target_tokens"] for line in steps),
        "num_workers": steps[-1]["num_workers"],
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "train_s": round(seconds, 3),
        **{name: per_second(name) for name in means if name in steps[-1]},
        "peak_memory_bytes": max(line["peak_memory_bytes"] for line in steps),
        "padding": packs.manifest["summary"]["padding"][config.pack.strategy],
        "held_out": paired_difference(json.loads(out.read("held_out.json"))),
        "warnings": of_steps(len(steps)),
    }

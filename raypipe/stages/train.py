"""Train: hand the packs to the training loop on Ray Train's workers. The loop itself is `raypipe.models.trainer`.

Ray Train places the workers, joins them into a process group and restarts them after a failure; what to resume is decided
by the checkpoints in the stage's own folder, so a restart of a worker, of the group or of the driver is one and the same.
Training is not idempotent, so the folder has an owner.

In the folder: `checkpoints/`, `metrics.jsonl`, `held_out.json` (NLL of each held-out sample after each epoch), `model/`.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import wait
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from raypipe import stopping
from raypipe.config import Config
from raypipe.errors import RaypipeError, Stopped
from raypipe.gate import gate
from raypipe.identity import fetched_model
from raypipe.items import POLL_S
from raypipe.ops.packing import Pack
from raypipe.ops.steps import Step, plan_steps
from raypipe.ops.warnings import of_steps
from raypipe.owner import Owner, owned
from raypipe.part import Table
from raypipe.sizing import ACTOR_CPUS, fit
from raypipe.stage import HELD_OUT_PACKS, Inputs, Result
from raypipe.store import Folder

log = logging.getLogger("raypipe")
MAX_FAILURES = 3
WHOLE = "model/config.json"  # the last object that training puts


class PackReader:
    """Packs of a pack folder by their place over all parts; holds the row groups it read last."""

    def __init__(self, folder: Folder, parts: Sequence[str]) -> None:
        self.folder = folder
        self.groups: list[tuple[str, int, int]] = []  # part, row group, place of its first pack
        total = 0
        for part in parts:
            with folder.open(part) as file:
                metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                self.groups.append((part, group, total))
                total += metadata.row_group(group).num_rows
        self.total = total
        self.firsts = np.array([first for _, _, first in self.groups])
        self.rows = lru_cache(maxsize=64)(self._rows)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: int) -> Pack:
        group = int(np.searchsorted(self.firsts, place, side="right")) - 1
        row = self.rows(group)[place - self.groups[group][2]]
        return Pack(row["input_ids"], row["labels"], row["sequence_lengths"], row["sample_ids"])

    def _rows(self, group: int) -> list[dict[str, Any]]:
        part, number, _ = self.groups[group]
        with self.folder.open(part) as file:
            return list(pq.ParquetFile(file).read_row_group(number).to_pylist())


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    with owned(out) as owner:
        if not out.has(WHOLE):
            _fit(config, inputs["pack"], owner)
    return Result(summary=_summary(out))


def training_plan(config: Config, packs: Table) -> list[Step]:
    """Every rank, and every restart, makes the same plan from the packs' figures alone."""
    samples, targets = pack_figures(packs)
    rule = config.train
    return plan_steps(
        samples.tolist(), targets.tolist(), epochs=rule.epochs, samples_per_step=rule.samples_per_step, seed=config.seed
    )


def pack_figures(packs: Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[P] samples and target tokens of every pack."""
    samples, targets = [], []
    for part in packs.parts:
        table = packs.only("sequence_lengths", "labels").read(part)
        samples.append(pc.list_value_length(table.column("sequence_lengths")).to_numpy())
        is_target = pc.greater_equal(pc.list_flatten(table.column("labels")), 0).to_numpy().astype(np.int64)
        ends = np.cumsum(pc.list_value_length(table.column("labels")).to_numpy())
        targets.append(np.diff(np.concatenate([[0], np.cumsum(is_target)[ends - 1]])) if len(ends) else ends)
    return np.concatenate(samples).astype(np.int64), np.concatenate(targets).astype(np.int64)


def _fit(config: Config, packs: Table, owner: Owner) -> None:
    low, high = config.resources.train.workers
    workers = fit(low, high, config.resources.train.gpus, "training workers")
    log.info("train: %d workers, %d steps", workers, len(training_plan(config, packs)))
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    out, work = owner.folder, f"{owner.folder.path} {owner.number}"
    with tempfile.TemporaryDirectory() as state:  # Ray Train's own; what is worth keeping is in the folder
        trainer = _trainer(config, packs, owner, workers, work, state)
        fitted = stopping.in_background(lambda: _fitted(trainer))
        deadline = float("inf")
        while not fitted.done() and time.monotonic() < deadline:
            wait([fitted], timeout=POLL_S)
            if stopping.asked() and deadline == float("inf"):
                ray.get(gate().shut.remote(work))
                deadline = time.monotonic() + stopping.GRACE_S
        stopping.check(out.path)
        fitted.result()
    if owner.is_succeeded():
        raise Stopped(f"{out.path}: another driver took over, as this one was silent for too long. Let that one end")
    if not out.has(WHOLE):
        raise Stopped(f"{out.path}: training ended without a model. Run again: it goes on from the last checkpoint")


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


def _trainer(config: Config, packs: Table, owner: Owner, workers: int, work: str, state: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = config.resources.train.gpus
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=bool(gpus),
        resources_per_worker={"CPU": ACTOR_CPUS, **({"GPU": gpus} if gpus else {})},
        accelerator_type=config.resources.accelerator if gpus else None,
    )
    failures = FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES)
    return TorchTrainer(
        _worker,
        train_loop_config={"config": config, "packs": packs, "owner": owner, "gate": gate(), "work": work},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(storage_path=state, failure_config=failures),
    )


def _worker(job: dict[str, Any]) -> None:
    from raypipe.models.trainer import Action, Settings, train  # and transformers, which no driver needs

    config, packs, owner = job["config"], job["packs"], job["owner"]
    each = max(1, config.resources.train.micro_batch_tokens // config.pack.max_length)
    rule, model = config.train, fetched_model(config.model, config.storage.endpoint)
    settings = Settings(model, rule.dtype, rule.learning_rate, rule.warmup_steps, each, rule.checkpoint_every_s)
    held_out = PackReader(packs.folder / HELD_OUT_PACKS, packs.parts)
    plan = training_plan(config, packs)

    def wish() -> Action:
        if owner.is_succeeded():
            return "stop"
        return "save and stop" if ray.get(job["gate"].is_shut.remote(job["work"])) else "go on"

    train(settings, PackReader(packs.folder, packs.parts), held_out, plan, owner.folder, wish)


def _summary(out: Folder) -> dict[str, Any]:
    lines = [json.loads(line) for line in out.read("metrics.jsonl").splitlines()]
    steps = [line for line in lines if "loss" in line]
    held_out = json.loads(out.read("held_out.json"))
    tokens, seconds = sum(line["target_tokens"] for line in steps), sum(line["seconds"] for line in steps)
    return {
        "steps": len(steps),
        "num_workers": steps[-1]["num_workers"],
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "target_tokens_per_s": round(tokens / seconds, 1),
        "held_out": paired_difference(held_out),
        "warnings": of_steps(len(steps)),
    }


def paired_difference(held_out: dict[str, Any]) -> dict[str, Any]:
    """Per-token NLL of each held-out sample after training minus before: mean over samples, and its standard error."""
    tokens = np.array(held_out["num_tokens"], dtype=float)
    steps = sorted(held_out["nll"], key=int)
    before, after = (np.array(held_out["nll"][step]) for step in (steps[0], steps[-1]))
    if len(tokens) < 2:
        return {"num_samples": len(tokens)}
    difference = (after - before) / tokens
    return {
        "num_samples": len(tokens),
        "loss_before": float(before.sum() / tokens.sum()),
        "loss_after": float(after.sum() / tokens.sum()),
        "mean_difference": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
    }

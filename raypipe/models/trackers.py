"""Experiment trackers of a training loop: TensorBoard, W&B and MLflow. Only rank 0 opens them.

A restart logs again what came after its checkpoint. TensorBoard is told to hide what was there, so the later value of a step
counts. W&B and MLflow take nothing back, so the first one counts, and the second is not sent. A server that refuses before
training is a ConfigError; one that fails later costs a warning, and training goes on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raypipe.errors import ConfigError
from raypipe.models.checkpoints import Output
from raypipe.ops.trackers import check_installed

log = logging.getLogger("raypipe")
PROJECT = "raypipe"
FINISH_S = 300  # for what W&B has not sent by the end
PAUSE_S = 300  # between attempts after MLflow failed: one can take 35 s, in which nothing is trained
WANDB_BLOCK = 32 << 10
WANDB_ON = ("disable_code", "disable_git", "x_disable_stats", "x_disable_meta", "x_disable_machine_info")


@dataclass(frozen=True)
class Run:
    name: str
    key: str  # of the training's folder: the same after a restart
    config: Mapping[str, Any]


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Steps never go back; the values of one may come in several calls."""

    def put(self) -> None:
        """Send what was logged. Before every checkpoint, or a restart from it leaves a gap."""

    def close(self) -> None: ...


def open_trackers(names: Sequence[str], run: Run, out: Output, after_step: int) -> list[Tracker]:
    """Training goes on after `after_step`, 0 for a fresh run: what was logged of later steps is going to be logged again."""
    check_installed(names)
    made: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: _TensorBoard(run, out / "tensorboard", after_step),
        "wandb": lambda: _WandB(run, out / "wandb"),
        "mlflow": lambda: _MLflow(run),
    }
    return [made[name]() for name in names]


class _TensorBoard:
    """An event file per restart, named by its `after_step`: TensorBoard reads them by name, and clocks of machines differ.

    Not by SummaryWriter, as its `flush` leaves the queue where it is: the last ten values or so. To watch a training as it
    runs, `tensorboard --load_fast=false`: the fast loader keeps a file open, and a put puts another in its place.
    """

    def __init__(self, run: Run, out: Output, after_step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import text

        self.out, self.name, self.event = out, f"events.out.tfevents.{after_step:010d}", Event
        there = [name for name in out.list() if name.startswith("events.")]
        for name in [name for name in there if name > self.name]:
            out.delete(name)  # all in it is going to be logged again
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / self.name
        self.writer = RecordWriter(str(self.path))
        self._write(file_version="brain.Event:2")
        # The second START of a run and later ones hide their step and all after it; so the first file must have one, too.
        self._write(step=after_step + 1 if after_step else 0, session_log={"status": "START"})
        if not any(name < self.name for name in there):
            config = json.dumps({"name": run.name, "key": run.key, **run.config}, indent=2)
            self._write(summary=text("config", f"```\n{config}\n```"))

    def _write(self, **fields: Any) -> None:
        self.writer.write(self.event(wall_time=time.time(), **fields).SerializeToString())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        shown = [{"tag": key, "simple_value": value} for key, value in values.items()]
        self._write(step=step, summary={"value": shown})

    def put(self) -> None:
        self.writer.flush()
        self.out.replace(self.name, self.path.read_bytes())

    def close(self) -> None:
        self.put()
        self.writer.close()
        self.folder.cleanup()


class _WandB:
    """Sends by itself, in a process of its own. Offline it leaves a file per restart; `wandb sync` joins them by start time."""

    def __init__(self, run: Run, out: Output) -> None:
        os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
        import wandb
        from wandb.sdk.lib.wbauth import authenticate_session

        self.out, self.folder = out, tempfile.TemporaryDirectory()
        settings: dict[str, Any] = {"console": "off", "save_code": False, "x_save_requirements": False}
        settings |= {"finish_timeout": FINISH_S, "finish_timeout_raises": True, "x_transaction_log_flush_interval": 1}
        settings |= dict.fromkeys(WANDB_ON, True)
        try:
            host = wandb.setup().settings.base_url
            known = os.environ.get("WANDB_MODE") or authenticate_session(
                host=host, source=PROJECT, prompt=False, update_session=False
            )
            self.run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=run.key,
                name=run.name,
                config=dict(run.config),
                resume="allow",
                dir=self.folder.name,
                mode=None if known else "offline",
                reinit="create_new",
                settings=wandb.Settings(**settings),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"tracker wandb: cannot start: {_without_secrets(error)}. Set WANDB_API_KEY (and WANDB_BASE_URL for a server "
                "of your own), or WANDB_MODE=offline and send the files later by wandb sync"
            ) from None
        self.to_out: bool = self.run.offline
        self.first: int = self._first_offline() if self.to_out else 0  # the server drops what it has

    def _first_offline(self) -> int:
        """The first step that no file of an earlier start has."""
        files = [self.out.find(f"{name}/run-{self.run.id}.wandb") or b"" for name in self.out.list()]
        return max((row.step.num + 1 for data in files for row in wandb_history(data)), default=0)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """W&B's process may be killed, and its network slow: that must not end the training."""
        from wandb.sdk.mailbox import HandleAbandonedError

        try:
            yield
        except (OSError, HandleAbandonedError) as error:  # also TimeoutError, of finish
            self.to_out, self.first = True, sys.maxsize
            log.warning("tracker wandb: gave up: %r. Run wandb sync --include-online on wandb/ in the output", error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.first:
            with self._going_on():
                self.run.log(dict(values), step=step)

    def put(self) -> None:
        """What W&B has in its file, which is a second late, and has a step only when the next has begun."""
        if self.to_out and (path := Path(self.run.settings.sync_file)).exists():
            self.out.replace(f"{path.parent.name}/{path.name}", path.read_bytes())

    def close(self) -> None:
        import wandb

        with self._going_on():
            try:
                self.run.finish()
            finally:
                wandb.teardown()  # waits until its process has closed the file, which finish does not
        self.put()
        self.folder.cleanup()


def wandb_history(data: bytes) -> Iterator[Any]:
    """Rows of a .wandb file, up to where it was cut off. It is LevelDB's log: a record comes in pieces, none crosses a block."""
    from wandb.proto import wandb_internal_pb2 as proto

    place, whole = 7, b""  # after the head of the file
    while place + 7 <= len(data):
        if (left := WANDB_BLOCK - place % WANDB_BLOCK) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)  # kind: 1 whole, 2 first piece, 3 middle, 4 last
        if not kind or place + 7 + size > len(data):
            return
        whole = (whole if kind > 2 else b"") + data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4) and (record := proto.Record.FromString(whole)).HasField("history"):  # type: ignore[attr-defined]
            yield record.history


class _MLflow:
    """Values wait here until `put`; those that could not be sent wait for the next."""

    def __init__(self, run: Run) -> None:
        if not (uri := os.environ.get("MLFLOW_TRACKING_URI")):
            raise ConfigError("tracker mlflow: no server is given. Set MLFLOW_TRACKING_URI=https://...")
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # not 7 of 120 s: training waits for them
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient, entities, exceptions

        self.metric, self.param, self.failure = entities.Metric, entities.Param, exceptions.MlflowException
        self.waiting, self.not_before = list[Any](), 0.0
        try:
            self.client = MlflowClient(uri)
            self.id, self.there = self._go_on(run, os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        except self.failure as error:
            raise ConfigError(
                f"tracker mlflow: cannot start: {_without_secrets(error)}. Is MLFLOW_TRACKING_URI right, and does the server "
                "let you in (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)?"
            ) from None

    def _go_on(self, run: Run, experiment: str) -> tuple[str, set[tuple[str, int]]]:
        """Id of the run of this key, made where there is none, and which (name, step) it has."""
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        client = self.client
        known = client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else client.create_experiment(experiment)
        found = client.search_runs([place], f"tags.`raypipe.key` = '{run.key}'", max_results=1)
        mine = found[0] if found else client.create_run(place, run_name=run.name, tags={"raypipe.key": run.key})
        number, before = mine.info.run_id, mine.data
        client.update_run(number, status="RUNNING")
        params = {key: text[:MAX_PARAM_VAL_LENGTH] for key, text in _flat(run.config) if key not in before.params}
        client.log_batch(number, params=[self.param(*one) for one in params.items()], synchronous=True)
        return number, {(key, one.step) for key in before.metrics for one in client.get_metric_history(number, key)}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        new = {key: value for key, value in values.items() if (key, step) not in self.there}
        self.waiting += [self.metric(key, value, now, step) for key, value in new.items()]

    def put(self) -> None:
        if time.monotonic() >= self.not_before:
            self._send(last=False)

    def close(self) -> None:
        self._send(last=True)

    def _send(self, *, last: bool) -> None:
        """What is sent twice, because an answer was lost, counts once: it is equal to the millisecond."""
        try:
            self.client.log_batch(self.id, metrics=self.waiting, synchronous=True)
            self.waiting.clear()
            if last:
                self.client.set_terminated(self.id)
        except self.failure as error:
            self.not_before = time.monotonic() + PAUSE_S
            log.warning("tracker mlflow: %d values are not sent: %s", len(self.waiting), _without_secrets(error))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """a.b of {a: {b: ...}}, as text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _without_secrets(error: Exception) -> str:
    """Libraries quote the address of a server, which may hold a password."""
    said = re.sub(r"//[^/\s]*@", "//", str(error))
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        said = said.replace(os.environ.get(name) or "\0", "***")
    return " ".join(said.split())[:500].rstrip(".")

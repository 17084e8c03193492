"""A training that is killed and restarted, as TensorBoard, W&B and MLflow show it: by the libraries themselves."""

import importlib
import json
import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import psutil
import pytest

from raypipe.errors import ConfigError
from raypipe.models.trackers import WANDB_BLOCK, Run, open_trackers, wandb_history
from raypipe.ops.trackers import TRACKERS, check_installed
from raypipe.store import Folder

RUN = Run("oss-ds67", "train-5d0f12ab34cd", {"train": {"model": "qwen2", "learning_rate": 1e-5}, "long": "x" * 7000})
SECRETS = ("5ec4e7" * 7, "pass-of-the-test", "pass-in-the-address")  # an API key is 40 characters or more
CHECKPOINT, KILLED, LAST = 20, 30, 40


def values(step, start):
    """Of the start-th start. With clusters, so that records of W&B's file cross its blocks of 32 KiB."""
    clusters = {f"eval/cluster_{n}_loss": step + start / 10 + n for n in range(40)}
    return {"train/loss": step + start / 10} | (clusters if step % 2 == 0 else {})


def feed(tracker, step, start):
    for key, value in values(step, start).items():
        tracker.log(step, {key: value})


def first_start(out):
    """Killed in step 30: everything was put, the checkpoint is of step 20."""
    trackers = open_trackers(TRACKERS, RUN, Folder.at(str(out)), 0)
    for tracker in trackers:
        for step in range(KILLED):
            feed(tracker, step, 1)
    for tracker in trackers:
        tracker.put()
    put_until(trackers[1], out, KILLED - 2)
    os._exit(9)


def put_until(tracker, out, step):
    """W&B writes every second, if the machine lets it; a row when the next one starts."""
    for _ in range(100):
        tracker.put()
        _, rows = wandb_rows(out / "wandb")
        if rows[0] and rows[0][-1][0] >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"no step {step} after 20 s")


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """An empty home with secrets in the environment, and where everything is written."""
    folder = tmp_path_factory.mktemp("trackers")
    (folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        for name, value in {
            "HOME": folder,
            "TMPDIR": folder / "tmp",
            "XDG_CACHE_HOME": folder / "cache",
            "NETRC": folder / "netrc",
            "WANDB_API_KEY": SECRETS[0],
            "WANDB_MODE": "offline",
            "MLFLOW_TRACKING_PASSWORD": SECRETS[1],
            "MLFLOW_TRACKING_URI": f"file://{folder}/mlruns",
            "MLFLOW_ALLOW_FILE_STORE": "true",
        }.items():
            patch.setenv(name, str(value))
        yield folder


@pytest.fixture(scope="module")
def restarted(surroundings):
    """The output folder of a training that was killed, went on after its checkpoint, and ended."""
    out = surroundings / "out"
    process = multiprocessing.get_context("spawn").Process(target=first_start, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == 9
    for tracker in open_trackers(TRACKERS, RUN, Folder.at(str(out)), CHECKPOINT):
        for step in range(CHECKPOINT + 1, LAST):
            feed(tracker, step, 2)
        tracker.close()
    return out


def shown(folder):
    """What the reader of TensorBoard's server keeps: ({tag: [(step, value)]}, texts of the config)."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    reader = EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0, "text": 0}).Reload()
    found = {
        tag: [(event.step, make_ndarray(event.tensor_proto).item()) for event in reader.Tensors(tag)]
        for tag in reader.Tags()["tensors"]
    }
    configs = [text.decode() for _, text in found.pop("config/text_summary")]
    return {tag: [(step, round(value, 4)) for step, value in rows] for tag, rows in found.items()}, configs


def session_starts(path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [event.step for event in EventFileLoader(str(path)).Load() if event.HasField("session_log")]


def test_tensorboard_shows_every_step_once(restarted):
    """Without the purge the curve runs back and is drawn twice; what was put, and not closed, must be whole."""
    found, configs = shown(restarted / "tensorboard")
    assert found["train/loss"] == [(step, step + (0.1 if step <= CHECKPOINT else 0.2)) for step in range(LAST)]
    assert [step for step, _ in found["eval/cluster_39_loss"]] == list(range(0, LAST, 2))
    assert len(configs) == 1 and '"learning_rate": 1e-05' in configs[0]
    first, second = sorted((restarted / "tensorboard").iterdir())
    assert session_starts(first) == [0] and session_starts(second) == [CHECKPOINT + 1]


def test_tensorboard_goes_back_to_an_older_checkpoint(tmp_path):
    """The newest checkpoint may be broken, and clocks differ: files must be read in the order of the steps."""
    for start, after_step in enumerate((0, 6, 3, 0, 3), 1):
        (tracker,) = open_trackers(["tensorboard"], RUN, Folder.at(str(tmp_path)), after_step)
        for step in range(after_step + 1 if after_step else 0, after_step + 8):
            feed(tracker, step, start)
        tracker.put()
        steps = [step for step, _ in shown(tmp_path / "tensorboard")[0]["train/loss"]]
        assert steps == list(range(after_step + 8)), (start, after_step)
        tracker.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2 and len(shown(tmp_path / "tensorboard")[1]) == 1


class Servers(BaseHTTPRequestHandler):
    """As much of W&B's and MLflow's servers as a run needs that has steps until KILLED. `got` is what they were sent."""

    protocol_version = "HTTP/1.1"
    got: ClassVar[dict] = {"steps": [], "metrics": [], "params": [], "status": []}

    def wandb(self, asked):
        if "files" in asked:  # the stream of history and summary
            lines = asked["files"].get("wandb-history.jsonl", {}).get("content", [])
            self.got["steps"] += [json.loads(line)["_step"] for line in lines]
        tail = json.dumps([json.dumps({"_step": KILLED - 1})])
        bucket = {"id": "b", "name": RUN.key, "displayName": RUN.name, "config": "{}", "wandbConfig": '{"t": 1}'}
        bucket |= {"historyLineCount": KILLED, "logLineCount": 0, "eventsLineCount": 0, "historyTail": tail}
        bucket |= {"eventsTail": "[]", "summaryMetrics": "{}", "project": {"name": "raypipe", "entity": {"name": "me"}}}
        answers = {
            "RunResumeStatus": {"model": {"bucket": bucket}},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket}},
            "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
        }
        return {"data": answers.get(asked.get("operationName"), {})}

    def mlflow(self, asked):
        self.got["metrics"] += [(one["key"], one["step"]) for one in asked.get("metrics", [])]
        self.got["params"] += [len(one["value"]) for one in asked.get("params", [])]
        self.got["status"] += [asked["status"]] if "status" in asked else []
        metrics = [{"key": "train/loss", "value": 1.0, "timestamp": 1, "step": step} for step in range(KILLED)]
        info = {"run_id": "r", "run_name": RUN.name, "experiment_id": "1", "status": "RUNNING"}
        run = {"info": info, "data": {"metrics": metrics[-1:]}}
        answers = {
            "get-by-name": {"experiment": {"experiment_id": "1", "name": "raypipe"}},
            "search": {"runs": [run]},
            "get": {"run": run},
            "update": {"run_info": info},
            "get-history": {"metrics": metrics},
        }
        return answers.get(self.path.partition("?")[0].rpartition("/")[2], {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        answer = json.dumps((self.mlflow if "mlflow" in self.path else self.wandb)(asked)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PATCH = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def servers():
    with ThreadingHTTPServer(("127.0.0.1", 0), Servers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_servers_get_what_they_do_not_have(surroundings, servers, tmp_path, monkeypatch, capfd):
    """The way it runs in a team: steps must not come twice, and a password in an address must not be printed."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{servers}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRETS[2]}@{servers}")
    for tracker in open_trackers(["wandb", "mlflow"], RUN, Folder.at(str(tmp_path)), CHECKPOINT):
        for step in range(CHECKPOINT + 1, LAST):
            tracker.log(step, {"train/loss": 1.0})
            tracker.log(step, {"eval/loss": 1.0})
            tracker.put()
        tracker.close()
    got, rest = Servers.got, range(KILLED, LAST)
    assert sorted(set(got["steps"])) == list(rest) and not (tmp_path / "wandb").exists()
    assert [step for key, step in got["metrics"] if key == "train/loss"] == list(rest)
    assert [step for key, step in got["metrics"] if key == "eval/loss"] == list(range(CHECKPOINT + 1, LAST))
    assert max(got["params"]) == 6000 and got["status"] == ["RUNNING", "FINISHED"]
    printed = "".join(capfd.readouterr())
    assert not any(secret in printed for secret in SECRETS) and "http" not in printed


def test_wandb_killed_costs_no_training(surroundings, tmp_path, caplog):
    """Its process may be what the kernel kills when memory is short: every `log` after that raises."""
    (tracker,) = open_trackers(["wandb"], RUN, Folder.at(str(tmp_path)), 0)
    for step in range(3):
        tracker.log(step, {"train/loss": 1.0})
    put_until(tracker, tmp_path, 1)
    (core,) = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
    core.kill()
    core.wait()
    for step in range(3, 6):
        tracker.log(step, {"train/loss": 1.0})
        time.sleep(0.1)
    tracker.close()
    assert "tracker wandb: gave up" in caplog.text
    _, (rows,) = wandb_rows(tmp_path / "wandb")
    assert [step for step, _ in rows] == [0, 1]


def wandb_rows(folder):
    """By start, of all rows: (step, {name: value})."""
    files = sorted(folder.glob("offline-run-*/run-*.wandb"))
    return files, [
        [
            (row.step.num, {item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item})
            for row in wandb_history(path.read_bytes())
        ]
        for path in files
    ]


def test_wandb_offline_leaves_files_to_sync(restarted):
    """`wandb sync` appends file to file: a step in both is drawn twice, another id makes another run."""
    files, (before, after) = wandb_rows(restarted / "wandb")
    assert {path.name for path in files} == {f"run-{RUN.key}.wandb"} and files[0].stat().st_size > 32 << 10
    assert [step for step, _ in before + after] == list(range(LAST))
    assert before[-1][0] == KILLED - 2
    for start, rows in enumerate((before, after), 1):
        for step, row in rows:
            assert {name: value for name, value in row.items() if "/" in name} == values(step, start)
    command = [os.path.join(os.path.dirname(sys.executable), "wandb"), "sync", "--dry-run", str(restarted / "wandb")]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(path.parent.name in said.stdout + said.stderr for path in files)


@pytest.mark.parametrize("left", [0, 1, 6, 7, 8])
def test_wandb_file_is_read_past_the_end_of_a_block(left):
    """A restart that stops reading there takes later steps for new, and they are drawn twice. LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import HistoryRecord, HistoryStep, Record

    def piece(data, kind):
        return struct.pack("<IHB", 0, len(data), kind) + data

    rows = [Record(history=HistoryRecord(step=HistoryStep(num=step))).SerializeToString() for step in (1, 2, 3)]
    start = b":W&B___" + piece(rows[0], 1)
    fill = WANDB_BLOCK - len(start) - 7 - left
    data = start + piece(b"x" * fill, 2)  # of a record that was given up
    data = data.ljust(WANDB_BLOCK, b"\0") if left < 7 else data + piece(b"", 3).ljust(left, b"\0")
    data += piece(rows[1], 1) + piece(rows[2][:1], 2) + piece(rows[2][1:], 4)
    assert [row.step.num for row in wandb_history(data)] == [1, 2, 3]
    assert [row.step.num for row in wandb_history(data[:-1])] == [1, 2]


def test_mlflow_goes_on_with_the_same_run(restarted):
    """MLflow keeps whatever it is sent: without looking first, a restart would double its steps or make another run."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("raypipe")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [
        (step, step + (0.1 if step < KILLED else 0.2)) for step in range(LAST)
    ]
    assert len(client.get_metric_history(run.info.run_id, "eval/cluster_39_loss")) == LAST // 2
    assert (run.info.run_name, run.info.status) == (RUN.name, "FINISHED")
    assert run.data.params["train.learning_rate"] == "1e-05" and run.data.params["long"] == "x" * 6000


def test_mlflow_down_costs_no_training(surroundings, tmp_path, monkeypatch, caplog):
    """A server that is restarted for a minute must neither end days of training nor lose its values."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "down")
    (tracker,) = open_trackers(["mlflow"], RUN, Folder.at(str(tmp_path)), 0)
    place = next((surroundings / "mlruns").glob(f"*/{tracker.id}"))
    place.rename(surroundings / "away")
    tracker.log(1, {"train/loss": 1.0})
    tracker.put()
    assert "1 values are not sent" in caplog.text
    (surroundings / "away").rename(place)
    tracker.log(2, {"train/loss": 2.0})
    tracker.close()
    assert [m.step for m in MlflowClient().get_metric_history(tracker.id, "train/loss")] == [1, 2]


def test_wandb_is_offline_where_nobody_is_logged_in(surroundings, tmp_path, monkeypatch):
    """On a cluster W&B would ask for a key on a terminal that is not there, and end the training."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    (tracker,) = open_trackers(["wandb"], RUN, Folder.at(str(tmp_path)), 0)
    tracker.log(0, {"train/loss": 1.0})
    tracker.close()
    _, ((row,),) = wandb_rows(tmp_path / "wandb")
    assert row[1]["train/loss"] == 1.0


@pytest.mark.parametrize(
    ("tracker", "environment", "advice"),
    [
        ("wandb", {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "3"}, "WANDB_MODE=off"),
        ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": SECRETS[1]}, "Set WANDB_API_KEY"),
        ("mlflow", {"MLFLOW_TRACKING_URI": f"http://me:{SECRETS[2]}@127.0.0.1:9"}, "Is MLFLOW_TRACKING_URI right"),
        ("mlflow", {"MLFLOW_TRACKING_URI": f"postgresql://me:{SECRETS[2]}@127.0.0.1/db"}, "Is MLFLOW_TRACKING_URI right"),
        ("mlflow", {"MLFLOW_TRACKING_URI": ""}, "Set MLFLOW_TRACKING_URI"),
    ],
    ids=("no W&B", "bad key", "no MLflow", "no driver", "no URI"),
)  # fmt: skip
def test_a_server_that_refuses_is_said_before_training(
    surroundings, tmp_path, monkeypatch, tracker, environment, advice
):
    """Not hours later, not by a traceback of a library, and never with the password that is in the address."""
    for name, value in ({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=advice) as refusal:
        open_trackers([tracker], RUN, Folder.at(str(tmp_path)), 0)
    assert refusal.value.__suppress_context__ or not refusal.value.__context__
    assert not any(secret in str(refusal.value) for secret in SECRETS)
    if tracker == "wandb":
        importlib.import_module("wandb").teardown()  # it reads the environment once


@pytest.mark.parametrize(
    ("tracker", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow-skinny")]
)
def test_a_missing_package_is_said(tmp_path, monkeypatch, tracker, package):
    """W&B leaves a folder wandb/ where it runs, which Python takes for a package: training would fail on the cluster."""
    for module in ("tensorboardX", "wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / module).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=f"train.report_to: {tracker}: .*pip install {package}$"):
        check_installed([tracker])
    check_installed([])


def test_the_driver_imports_no_tracker():
    """It only asks whether they are there: W&B and MLflow cost it seconds, and W&B leaves a process behind."""
    code = (
        "import sys; from raypipe.ops.trackers import *; check_installed(TRACKERS); "
        "sys.exit(bool({'tensorboardX', 'wandb', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_secret_is_written(restarted, surroundings):
    """Whoever may read a run's folder must not be able to write to the team's servers."""
    written = defaultdict(bytes)
    for path in surroundings.rglob("*"):
        if path.is_file():
            written[path.relative_to(surroundings).parts[0]] += path.read_bytes()
    assert {"out", "mlruns", "cache"} <= set(written)
    assert not [place for place, data in written.items() if any(secret.encode() in data for secret in SECRETS)]

"""The job scripts under `ray job submit` on a local cluster; RAY_ADDRESS is set by Ray there."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress

import pytest

from tests.cluster import kill
from tests.k8s.monitoring import RARE, metric_names
from tests.lakes import PROJECT, digests, stage_folder, wait_until
from tests.rgw import free_ports


@pytest.fixture
def cluster(monkeypatch):
    """A head of its own, ended with its own processes only; the addresses of its job server and metrics, and a client of the former."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # `ray start` asks for a token otherwise, and this head is local
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "45")  # as k8s/ has it; after 3 s of its own nothing would be saved
    monkeypatch.setenv("RAY_idle_worker_killing_time_threshold_ms", "10000")  # as Ray on one machine has it here
    ray, (port, dashboard, agent, metrics) = os.path.join(os.path.dirname(sys.executable), "ray"), free_ports(4)
    short = f"/tmp/rj{os.getpid()}"  # a socket path has at most 107 bytes
    words = [
        ray, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", f"--port={port}", f"--temp-dir={short}",
        f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    head = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        client = wait_for(address, head)
        yield address, client, f"http://127.0.0.1:{metrics}/metrics"
    finally:
        kill(head)


def wait_for(address, head):
    from ray.job_submission import JobSubmissionClient

    for _ in range(90):
        assert head.poll() is None, "the cluster's head ended"
        try:
            client = JobSubmissionClient(address)
            client.list_jobs()
            return client
        except (ConnectionError, RuntimeError):
            time.sleep(1)
    raise AssertionError("the job server did not answer in 90 s")


def submit(address, client, name, *words):
    """By the command line, from the folder of the scripts; (status, its log). The CLI's own exit code says nothing."""
    ray, job = os.path.join(os.path.dirname(sys.executable), "ray"), f"{name}-{len(client.list_jobs())}"
    command = [ray, "job", "submit", f"--address={address}", f"--submission-id={job}", "--working-dir=jobs", "--"]
    subprocess.run(
        [*command, sys.executable, f"{name}.py", *map(str, words)], cwd=PROJECT, capture_output=True, timeout=400
    )
    return str(client.get_job_status(job)), client.get_job_logs(job)


@contextmanager
def exported(url):
    """Names of the metrics that a node exports while this lasts."""
    names, over = set(), threading.Event()

    def scrape():
        while not over.wait(1.0):
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                names.update(re.findall(r"^(\w+)[{ ]", answer.read().decode(), re.M))

    (thread := threading.Thread(target=scrape)).start()
    yield names
    over.set()
    thread.join()


@pytest.mark.slow
def test_train_before_prepare_then_prepare_then_train(cluster, finished, tmp_path):
    """From select on; what is before is on disk, as after a job that was killed."""
    (address, client, metrics), root = cluster, tmp_path / "root"
    shutil.copytree(
        finished[0] / "root", root, ignore=shutil.ignore_patterns("select-*", "pack-*", "train-*", "report-*")
    )
    config = [finished[1], f"storage.root={root}"]
    status, log = submit(address, client, "train", *config)
    assert status == "FAILED" and "manifest" in log and "python jobs/prepare.py CONFIG" in log, log
    assert client.get_job_info("train-0").driver_exit_code == 2
    with exported(metrics) as names:
        status, log = submit(address, client, "prepare", *config)
    assert status == "SUCCEEDED", log
    assert not (missing := metric_names() - names - RARE.keys()), f"no alert can see {missing}"
    assert "ray on the cluster at" in log, "RAY_ADDRESS was not honoured"
    assert "pack done in" in log and "train starts" not in log
    status, log = submit(address, client, "train", *config)
    assert status == "SUCCEEDED", log
    assert "train starts" in log and "ingest starts" not in log
    assert (stage_folder(root, "train") / "model" / "config.json").exists()
    assert (stage_folder(root, "report") / "index.html").exists()
    assert len(digests(root)) == 11
    status, log = submit(address, client, "pipeline", *config)
    assert status == "SUCCEEDED" and " starts " not in log, log


@pytest.mark.slow
def test_a_job_that_is_stopped_saves_what_it_has(cluster, finished, tmp_path):
    """`ray job stop`, or a RayJob that is deleted: the driver gets SIGTERM, and 45 s where the manifests say so. Otherwise it costs up to
    a checkpoint interval of every GPU."""
    (_, client, _), root = cluster, tmp_path / "root"
    shutil.copytree(finished[0] / "root", root, ignore=shutil.ignore_patterns("train-*", "report-*"))
    words = [finished[1], f"storage.root={root}", "train.epochs=40", "train.samples_per_step=4", "--until", "train"]
    job = client.submit_job(
        entrypoint=" ".join(map(str, [sys.executable, "pipeline.py", *words])), runtime_env={"working_dir": "jobs"}
    )
    wait_until(lambda: list(root.glob("train-*/held_out.json")))
    client.stop_job(job)
    wait_until(lambda: str(client.get_job_status(job)) not in ("PENDING", "RUNNING"), timeout_s=60)
    log = client.get_job_logs(job)
    assert str(client.get_job_status(job)) == "STOPPED" and "stopped as asked" in log and "Traceback" not in log, log
    (checkpoint,) = root.glob("train-*/checkpoints/*/.metadata")
    folder = checkpoint.parents[2]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert checkpoint.parent.name == f"step-{steps[-1]:08d}", "the stop came before the last step was saved"
    assert json.loads((folder / "owner-0001.json").read_text())["ended"]

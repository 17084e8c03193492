"""Ctrl-C and SIGTERM: what is done is kept, the run ends in 30 s with exit code 5, and no process stays behind."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import ray

from raypipe.session import ray_session
from tests.lakes import PROJECT, raypipe, stage_folder, wait_until, write_config, write_lake

pytestmark = pytest.mark.slow


def start(*words, **environment):
    """A run in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "raypipe.cli", "run", *map(str, words)],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stopped(driver, send, within_s):
    """Its stderr, after it ended as promised."""
    children = psutil.Process(driver.pid).children(recursive=True)
    began = time.monotonic()
    send()
    said = driver.communicate(timeout=within_s + 5)[1]
    assert time.monotonic() - began < within_s, said
    assert driver.returncode == 5, said
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, f"left behind: {alive}"
    return said


def parts(root, stage):
    try:
        return sorted(path.name for path in stage_folder(root, stage).glob("part-*"))
    except (FileNotFoundError, KeyError):
        return []


@pytest.fixture
def config(tmp_path, random_model, embedder):
    write_lake(tmp_path / "lake", num_samples=450, files=2)
    return write_config(
        tmp_path / "test.yaml", model=random_model, embedder=embedder, ingest={"part_bytes": 6000},
        resources={"score": {"actors": [1, 1]}},
    )  # fmt: skip


def test_sigterm_commits_what_is_done(config, tmp_path):
    """A pod that is drained gets SIGTERM and half a minute: a part of a minute of GPU work is lost if it is not kept."""
    root = tmp_path / "root"
    driver = start(config, "--until", "score")
    wait_until(lambda: len(parts(root, "score")) >= 2, driver)
    said = stopped(driver, driver.terminate, 30)
    assert "stopping: parts in work get" in said and "stopped as asked" in said and "Traceback" not in said, said
    there = parts(root, "score")
    done = raypipe("run", config, "--until", "score")
    total = len(parts(root, "score"))
    assert 2 <= len(there) < total, "stopped too late to show anything"
    assert done.returncode == 0 and f"{total - len(there)} of {total} parts to make" in done.stderr


def test_second_ctrl_c_ends_at_once(config, tmp_path):
    """A terminal sends Ctrl-C to every process of the group, Ray's too; a person who presses it twice has no patience."""
    driver = start(config, "--until", "embed")
    wait_until(lambda: len(parts(tmp_path / "root", "clean")) >= 2, driver)

    def press():
        for _ in range(2):
            os.killpg(driver.pid, signal.SIGINT)
            time.sleep(0.5)

    said = stopped(driver, press, 15)
    assert "A rerun goes on" in said and "Traceback" not in said, said


def test_a_killed_driver_leaves_no_process_behind(config):
    """Nobody is left to end Ray: what stays would hold memory and GPUs of the next run."""
    driver = start(config, "--until", "ingest")
    wait_until(lambda: [child for child in _children(driver) if child.name() == "raylet"], driver)
    children = [child for child in _children(driver) if "Agent" not in child.name()]
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(children, timeout=30)  # Ray's two agents, left out here, follow within two minutes
    assert not alive, "processes outlived their driver"


def _children(driver):
    return psutil.Process(driver.pid).children(recursive=True)


def test_impatience_leaves_no_worker_behind(monkeypatch, tmp_path):
    """The second Ctrl-C may come while Ray ends; a worker of Ray that locks itself up as it exits must end all the same."""
    blocked = shutil.copy(shutil.which("sleep"), tmp_path / "ray::blocked")

    def shutdown():
        raise KeyboardInterrupt

    fake = {"is_initialized": bool, "init": lambda **_: None, "cluster_resources": dict, "shutdown": shutdown}
    for name, does in fake.items():
        monkeypatch.setattr(ray, name, does)
    with pytest.raises(KeyboardInterrupt), ray_session():
        worker = subprocess.Popen([blocked, "60"])
    assert worker.wait(timeout=5) == -signal.SIGKILL

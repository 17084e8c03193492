"""kill -9 of the driver in embed, in score and in training; the rerun has another number of workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.lakes import PROJECT, digests, raypipe, stage_folder, write_config, write_lake

pytestmark = pytest.mark.slow


def committed(folder):
    """Parts and whole checkpoints."""
    if (folder / "checkpoints").is_dir():
        return {path.parent.name: () for path in folder.glob("checkpoints/*/.metadata")}
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("part-*")}


def start_and_kill(words, root, stage, after=3):
    """Start a run, kill its driver when `stage` has committed `after` parts; returns what was committed by then."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "raypipe.cli", "run", *map(str, words)],
        cwd=PROJECT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the run ended before it could be killed"
        if (root / "runs" / "test.json").exists() and len(committed(stage_folder(root, stage))) >= after:
            break
        time.sleep(0.005)
    children = [child for child in psutil.Process(driver.pid).children(recursive=True) if "Agent" not in child.name()]
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(children, timeout=30)  # Ray's two agents, left out here, follow within two minutes
    assert not alive, "processes outlived their driver"
    return committed(stage_folder(root, stage))


def test_killed_driver_resumes_without_rewriting(tmp_path, random_model, embedder):
    write_lake(tmp_path / "lake", num_samples=400, files=2)
    config = write_config(tmp_path / "test.yaml", model=random_model, embedder=embedder, ingest={"part_bytes": 6000})
    unbroken, root = tmp_path / "unbroken", tmp_path / "root"
    done = raypipe("run", config, f"storage.root={unbroken}", "--until", "select")
    assert done.returncode == 0, done.stderr
    wanted = digests(unbroken)
    assert all(len(parts) >= 8 for parts in wanted.values())

    in_embed = start_and_kill([config, "--until", "select"], root, "embed")
    in_score = start_and_kill([config, "--until", "select", "resources.embed.actors=[1, 1]"], root, "score")
    for stage, before in (("embed", in_embed), ("score", in_score)):
        assert 3 <= len(before) < len(wanted[stage]), f"{stage} was killed too late to show anything"
    done = raypipe("run", config, "--until", "select", "resources.score.actors=[1, 1]")
    assert done.returncode == 0, done.stderr
    left, total = len(wanted["score"]) - len(in_score), len(wanted["score"])
    assert f"score-{stage_folder(root, 'score').name[6:]}: {left} of {total} parts to make" in done.stderr
    for stage, before in (("embed", in_embed), ("score", in_score)):
        after = committed(stage_folder(root, stage))
        assert {name: after[name] for name in before} == before, f"{stage} wrote a committed part again"
    assert digests(root) == wanted


def steps_of(root):
    lines = (stage_folder(root, "train") / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]


def test_killed_training_goes_on_from_its_checkpoint(finished, tmp_path):
    """Two workers, killed, then one: the losses are those of an unbroken run, every step is there once."""
    words = ["train.epochs=3", "train.samples_per_step=4", "train.checkpoint_every_s=0.01", "--until", "train"]
    roots = {name: tmp_path / name for name in ("unbroken", "killed")}
    for root in roots.values():
        shutil.copytree(finished[0] / "root", root)
    done = raypipe("run", finished[1], f"storage.root={roots['unbroken']}", *words)
    assert done.returncode == 0, done.stderr
    again = [finished[1], f"storage.root={roots['killed']}", *words]
    start_and_kill(again, roots["killed"], "train", after=2)
    metrics = stage_folder(roots["killed"], "train") / "metrics.jsonl"
    before, checkpoints = metrics.read_text().splitlines(), committed(metrics.parent)
    killed_at = len(steps_of(roots["killed"]))
    done = raypipe("run", *again, "resources.train.workers=[1, 1]")
    assert done.returncode == 0, done.stderr
    wanted, got = steps_of(roots["unbroken"]), steps_of(roots["killed"])
    assert 2 <= killed_at < len(wanted), "killed too late to show anything"
    assert [step for step, _ in got] == [step for step, _ in wanted] == list(range(1, len(wanted) + 1))
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in wanted], rel=1e-5)
    kept = [line for line in before if json.loads(line)["step"] <= max(int(name[5:]) for name in checkpoints)]
    assert len(kept) >= 3 and metrics.read_text().splitlines()[: len(kept)] == kept, (
        "steps before the checkpoint were run again"
    )
    assert (metrics.parent / "model" / "config.json").exists()

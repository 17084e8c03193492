"""Training that loses a worker, a node or its driver, on real S3 and several nodes on one machine: losses as if unbroken.

What is compared is every loss of every step with those of a run on one worker that nothing happened to, whatever number of workers
came before and after. Lines of steps up to the checkpoint that there was keep their bytes, seconds included: they were not run again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from raypipe.store import Folder
from tests.lakes import PROJECT, ray_workers, wait_until

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}
TRAIN = (
    "train.epochs=15", "train.samples_per_step=3", "train.learning_rate=1e-4", "train.checkpoint_every_s=1", "resources.train.workers=[1, 1]",
    "resources.train.micro_batch_tokens=512",
)  # fmt: skip
QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5", "RAYPIPE_TRAIN_START_S": "15",
    "RAYPIPE_TAKE_OVER_S": "8",
}  # fmt: skip


@dataclass
class World:
    cluster: Cluster
    nodes: list
    environment: dict[str, str]
    done: Path  # what `finished` gives
    config: Path
    logs: Path
    bucket: str

    def root(self, name):
        return Folder.at(f"s3://{self.bucket}/{name}")

    def prepared(self, name):
        """A root with everything up to pack."""
        target = self.root(name)
        for path in self.done.rglob("*"):
            inside = str(path.relative_to(self.done))
            if path.is_file() and not inside.startswith(("train-", "report-")):
                target.put(inside, path.read_bytes())

    def start(self, name, *overrides):
        words = [self.config, f"storage.root={self.root(name).path}", "--until", "train", *TRAIN, *overrides]
        log = open(self.logs / name, "a")  # noqa: SIM115  the driver's, as long as it lives
        command = [sys.executable, "-m", "raypipe.cli", "run", *map(str, words)]
        return subprocess.Popen(command, cwd=PROJECT, env=self.environment, stdout=log, stderr=log)

    def log(self, name):
        return (self.logs / name).read_text()

    def folder(self, name):
        root = self.root(name)
        return root / json.loads(root.read("runs/test.json"))["folders"]["train"]

    def is_owned(self, name):
        root = self.root(name)
        return root.has("runs/test.json") and self.folder(name).has("owner-0001.json")

    def lines(self, name):
        return (self.folder(name).find("metrics.jsonl") or b"").decode().splitlines()

    def saved(self, name):
        """Steps of whole checkpoints."""
        there = [f.uri.split("/")[-2] for f in self.folder(name).walk() if f.uri.endswith("/.metadata")]
        return sorted(int(step.removeprefix("step-")) for step in there)

    def lose(self, node):
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def mid_epoch(self, name, driver, after=3):
        """Waits until the newest checkpoint is some steps on; returns its step, and the lines up to it."""
        saved = wait_until(lambda: [n for n in self.saved(name) if n > after], driver)[-1]
        return saved, [line for line in self.lines(name) if json.loads(line)["step"] < saved]


@pytest.fixture(scope="module")
def world(rgw, finished, tmp_path_factory):
    environment = {**os.environ, **rgw.environment, **QUICK, "OMP_NUM_THREADS": "1"}
    before = dict(os.environ)
    os.environ.update(environment)  # raylets, and what they start, get it from here
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 0, "object_store_memory": 200 << 20, "_system_config": health}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**NODE) for _ in range(3)]
    cluster.wait_for_nodes()
    environment["RAY_ADDRESS"] = cluster.address
    logs = tmp_path_factory.mktemp("logs")
    yield World(cluster, nodes, environment, finished[0] / "root", finished[1], logs, rgw.bucket())
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def unbroken(world):
    world.prepared("unbroken")
    driver = world.start("unbroken")
    assert driver.wait(timeout=400) == 0, world.log("unbroken")
    return losses(world.lines("unbroken"))


def losses(lines):
    return [(line["step"], line.get("loss", line.get("eval_loss"))) for line in map(json.loads, lines)]


def workers_by_step(lines):
    return [line["num_workers"] for line in map(json.loads, lines) if "loss" in line]


def check(world, name, driver, unbroken, kept):
    assert driver.wait(timeout=300) == 0, world.log(name)
    lines = world.lines(name)
    assert lines[: len(kept)] == kept, "steps before the checkpoint were run again"
    found = losses(lines)
    assert [step for step, _ in found] == [step for step, _ in unbroken], "steps are missing or doubled"
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in unbroken], rel=1e-5)
    assert world.folder(name).has("model/generation_config.json")
    print(f"{name}: workers by step {workers_by_step(lines)}")
    assert len(world.saved(name)) <= 3
    return lines


def test_a_worker_is_killed_and_a_node_is_lost(world, unbroken):
    """Out of memory, or a crash in a library: the group starts anew and goes on from its checkpoint. And spot machines are reclaimed all
    day: training goes on with fewer workers.

    Nodes are lost here, none comes back for the next test: Ray Train's elastic groups see a new one after up to 20 s.
    """
    world.prepared("node")
    driver = world.start("node", "resources.train.workers=[1, 3]")
    saved, _ = world.mid_epoch("node", driver)
    ray_workers("RayTrainWorker")[0].kill()
    _, kept = world.mid_epoch("node", driver, after=saved)
    world.lose(world.nodes[0])
    found = workers_by_step(check(world, "node", driver, unbroken, kept))
    assert found[0] == 3 and found[-1] == 2


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


def preempt(cluster, node, in_s):
    """What a cloud's notice becomes: `ray drain-node` without the seconds that its start takes, in which training may end."""
    client = GcsClient(address=cluster.address)
    deadline_ms = int((time.time() + in_s) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why_not = client.drain_node(node.node_id, reason, "spot", deadline_ms)
    assert accepted, why_not


def test_a_node_is_about_to_be_taken_away(world, unbroken):
    """A notice of preemption is worth a checkpoint at once: the interval may be a quarter of an hour."""
    world.prepared("notice")
    driver = world.start("notice", "resources.train.workers=[1, 2]", "train.checkpoint_every_s=1000")
    started = wait_until(
        lambda: len(found := {worker.ppid() for worker in ray_workers("RayTrainWorker")}) == 2 and found, driver
    )
    assert world.saved("notice") == []
    lost = next(node for node in world.nodes if raylet_of(node) in started)
    noticed = time.monotonic()  # before the first step: 137 of them take seconds here
    preempt(world.cluster, lost, in_s=120)
    saved, kept = world.mid_epoch("notice", driver, after=0)
    print(
        f"checkpoint of step {saved} whole {time.monotonic() - noticed:.1f} s after the notice, training's start included"
    )
    world.lose(lost)
    found = workers_by_step(check(world, "notice", driver, unbroken, kept))
    assert found[0] == 2 and found[-1] == 1


def test_the_driver_is_killed(world, unbroken):
    """A head node dies: another driver, with another number of workers, goes on after the first one's silence, and not before.

    Training is not idempotent: a job that was thought dead and is started again must leave the living one alone. The last test: for
    minutes Ray Train keeps the killed driver's nodes from other elastic groups.
    """
    world.prepared("driver")
    world.nodes.append(world.cluster.add_node(**NODE))
    world.cluster.wait_for_nodes()
    first = world.start("driver", "resources.train.workers=[2, 2]")
    wait_until(lambda: world.is_owned("driver"), first)
    second = world.start("driver")
    _, kept = world.mid_epoch("driver", first)
    assert second.wait(timeout=120) == 5 and "trains here and is alive. Let it end" in world.log("driver")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    lines = check(world, "driver", world.start("driver"), unbroken, kept)
    found = workers_by_step(lines)
    assert found[0] == 2 and found[-1] == 1

"""SIGKILL of the driver, of an actor and of a node, in every stage that works on parts; on real S3, several nodes on one machine.

Commits are slowed down on their way to the server, so that a kill comes while a stage is at work; an actor is killed,
or its node, while it has begun a part, as the proxy holds what it then asks the server and tells by which port. What was committed by then keeps its
etag and its time; only what was in work is computed again, which footers tell: `attempt` is above 1, or `made` later. Whatever
was killed, the columns' digests are those of an undisturbed run.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import pytest
from ray.cluster_utils import Cluster

from raypipe.store import Folder
from tests.lakes import PROJECT, ray_workers, save_random_model, wait_until, write_config, write_lake

pytestmark = pytest.mark.slow
POINTS = {  # in the order of a run: the stage, and what it has put by then
    "ingest": "part-",
    "embed": "part-",
    "cluster's fit": "_rounds/",
    "cluster's assign": "part-",
    "score": "part-",
    "select": "part-",
}
# A rerun is the same wherever the driver died: two of the points stand for all six, which `make soak` goes through
DRIVER_POINTS = list(POINTS) if os.environ.get("RAYPIPE_SOAK") else ["cluster's fit", "score"]
NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}  # one actor each; two cores hold no more processes
MAPS = ("embed", "cluster's assign", "score", "select")  # these by actors
AFTER = 3  # objects put by a stage before something is killed
BEFORE = 6  # parts that a stage's actors have begun before an actor or a node is killed
LATE = {
    "action": "latency",
    "method": "PUT",
    "path": r"/(ingest|embed|score|cluster|select)-\w+/(_rounds/|part-)",
    "seconds": 0.25,
}
IN_WORK = 24  # at most: two actors with four tasks of ten light parts in flight are more than ever were seen


@dataclass
class World:
    cluster: Cluster
    nodes: list
    proxy: object
    environment: dict[str, str]
    config: object
    bucket: str

    def root(self, name):
        return f"s3://{self.bucket}/{name}"

    def start(self, name, *overrides, **environment):
        """A driver; until select, if it is not said otherwise."""
        words = [self.config, f"storage.root={self.root(name)}", "--until", "select", *overrides]
        log = open(f"{self.config}.{name}.log", "a")  # noqa: SIM115  the driver's, as long as it lives
        command = [sys.executable, "-m", "raypipe.cli", "run", *map(str, words)]
        return subprocess.Popen(command, cwd=PROJECT, env={**self.environment, **environment}, stdout=log, stderr=log)

    def log(self, name):
        return open(f"{self.config}.{name}.log").read()

    def objects(self, name):
        """Every part and round: key below the root -> (etag, its age in s)."""
        root = Folder.at(self.root(name))
        return {f.uri[len(root.path) + 1 :]: f for f in root.walk() if "/part-" in f.uri or "/_rounds/" in f.uri}

    def footers(self, name):
        root = Folder.at(self.root(name))
        record = json.loads(root.read("runs/test.json"))
        manifests = {
            stage: root.find(f"{folder}/manifest-{record['lake']}.json") for stage, folder in record["folders"].items()
        }
        return {stage: json.loads(data)["parts"] for stage, data in manifests.items() if data}

    @contextmanager
    def slow(self) -> Iterator[None]:
        self.proxy.rules([LATE])
        try:
            yield
        finally:
            self.proxy.clear()

    @contextmanager
    def in_work(self, name, point, driver) -> Iterator[psutil.Process]:
        """A while in which the stage of the point is in the midst; gives a worker of it, an actor that has begun a part if it has actors."""
        if point in MAPS:
            path = rf"/{name}/{stage_of(point)}-\w+/part-"
            self.proxy.rules([{"action": "hold", "method": "HEAD", "path": path, "skip": BEFORE}, LATE])
            yield wait_until(lambda: [p for p in workers_of(point) if self.is_held(p)], driver)[0]
        else:
            wait_until(lambda: self.reached(name, point), driver)
            yield wait_until(lambda: workers_of(point), driver)[0]
        self.proxy.rules([LATE])

    def is_held(self, process):
        held = self.proxy.stats()["held"]
        with suppress(psutil.NoSuchProcess):  # one of the stage before
            return any(connection.laddr.port in held for connection in process.net_connections("tcp"))

    def reached(self, name, point):
        stage, wanted = stage_of(point), POINTS[point]
        return (
            sum(f"{stage}-" in key and f"/{wanted}" in f"/{key.split('/', 1)[1]}" for key in self.objects(name))
            >= AFTER
        )


def stage_of(point):
    return point.split("'")[0]


def workers_of(point):
    """Ray's worker processes that are at the point."""
    wanted = {
        "ingest": "_apply",
        "cluster's fit": "_Shard",
        "cluster's assign": "_Light",
        "select": "_Light",
    }.get(point, "MapWorker(MapBatches(_Call))")
    return ray_workers(wanted)


def digests(footers):
    return {stage: {part["name"]: part["columns"] for part in parts} for stage, parts in footers.items()}


@pytest.fixture(scope="module")
def world(rgw, proxy, tmp_path_factory, embedder):
    folder = tmp_path_factory.mktemp("matrix")
    model = save_random_model(folder / "qwen2", "qwen2", bos=False, layers=2)
    environment = {**os.environ, **rgw.environment, "AWS_ENDPOINT_URL": proxy.endpoint, "OMP_NUM_THREADS": "1"}
    before = dict(os.environ)
    os.environ.update(environment)  # raylets, and what they start, get it from here
    write_lake(folder / "lake", num_samples=360, files=12)
    config = write_config(
        folder / "test.yaml", model=model, embedder=embedder, ingest={"part_bytes": 6000}, cluster={"num_clusters": 8},
        resources={"embed": {}, "score": {}},
    )  # fmt: skip
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    settings = {**health, "idle_worker_killing_time_threshold_ms": 10_000}  # as Ray on one machine has it here
    head = {"num_cpus": 0, "object_store_memory": 200 << 20, "_system_config": settings}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    environment["RAY_ADDRESS"] = cluster.address
    yield World(cluster, nodes, proxy, environment, config, rgw.bucket())
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def undisturbed(world):
    """Digests of a run that nothing was killed in, but that two drivers began at once: with it all others must agree."""
    drivers = [world.start("two"), world.start("two")]
    assert [driver.wait(timeout=400) for driver in drivers] == [0, 0], world.log("two")
    return digests(world.footers("two"))


def test_driver(world, undisturbed):
    """One kill after the other; every rerun has other numbers of actors, and goes on from what is there."""
    kept = {}
    with world.slow():
        for number, point in enumerate(DRIVER_POINTS):
            driver = world.start(
                "driver",
                f"resources.embed.actors=[1, {1 + number % 2}]",
                f"resources.score.actors=[1, {2 - number % 2}]",
            )
            wait_until(lambda p=point: world.reached("driver", p), driver)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            kept |= world.objects("driver")
    assert world.start("driver").wait(timeout=400) == 0, world.log("driver")
    now = world.objects("driver")
    assert digests(world.footers("driver")) == undisturbed
    again = [key for key, found in kept.items() if now[key].version != found.version]
    assert not again, f"written twice: {again}"
    log = world.log("driver")
    for stage, parts in world.footers("driver").items():
        if stage in {"embed", "score", "select"}.intersection(map(stage_of, DRIVER_POINTS)):
            assert f" of {len(parts)} parts to make" in log
            counts = [
                int(line.split(": ")[1].split(" of ")[0])
                for line in log.splitlines()
                if f" {stage}-" in line and "parts to make" in line
            ]
            assert counts[0] == len(parts) and 0 < counts[-1] <= len(parts) - AFTER


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


def test_actor(world, undisturbed):
    """An actor killed in every stage of one run, which carries on by itself."""
    driver = world.start("actor")
    with world.slow():
        for point in POINTS:
            with world.in_work("actor", point, driver) as worker:
                worker.kill()
    assert driver.wait(timeout=400) == 0, world.log("actor")
    check_parts_in_work_were_made_again(world, "actor", undisturbed)


def test_node(world, undisturbed):
    """A node killed in every stage of one run, and replaced: spot machines are reclaimed all day."""
    driver = world.start("node")
    with world.slow():
        for point in POINTS:
            with world.in_work("node", point, driver) as worker:
                node = next(node for node in world.nodes if raylet_of(node) == worker.ppid())
                world.nodes.remove(node)
                world.cluster.remove_node(node, allow_graceful=False)
                world.nodes.append(world.cluster.add_node(**NODE))
    assert driver.wait(timeout=400) == 0, world.log("node")
    check_parts_in_work_were_made_again(world, "node", undisturbed)


def check_parts_in_work_were_made_again(world, name, undisturbed):
    """And no others. Again is what was begun more than once; or whose first attempt was on its way to be committed, as the log counts."""
    footers, again = world.footers(name), Counter()
    assert digests(footers) == undisturbed
    for stage, parts in footers.items():
        again[stage] = sum(part["attempt"] > 1 for part in parts)
    for stage, there in re.findall(r" (\w+)-\w+: (\d+) parts were there meanwhile", world.log(name)):
        again[stage] += int(there)
    assert max(again.values()) <= IN_WORK and all(again[stage_of(point)] for point in MAPS), again


def test_two_drivers(world, undisturbed):
    """A job that was thought dead and is started again must neither spoil the folder nor do everything twice."""
    assert "parts were there meanwhile" in world.log("two"), "the drivers never met"

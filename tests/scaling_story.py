"""A driver on a cluster that grows: embedders on one kind of GPU, scorers on another, and a gang of workers that wants the scorers' nodes.

Maps, folds and Ray Train's scaling are raypipe's own; GPUs are numbers that nodes have, and models are a second of sleep. `told` starts the cluster
and the driver, takes one node away, and gives {"nodes": [[s, {kind: alive}]], "actors": [[s, {what: alive}]], "events": [[s, what]]}.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import ray

from raypipe import stopping
from raypipe.folds import fold_parts
from raypipe.part import Table, commit_part
from raypipe.parts import map_parts
from raypipe.resources import Pool, TrainWorkers
from raypipe.session import ray_session
from raypipe.sizing import KIND, fit
from raypipe.stages.train import MAX_FAILURES, scaling
from raypipe.store import Folder
from tests.growing import growing
from tests.lakes import PROJECT, wait_until

PARTS, EMBED_S, SCORE_S, TRAIN_S = 40, 0.3, 1.0, 8.0
KINDS = {
    "cpu": {"resources": {"CPU": 2}, "max_workers": 1},
    "L4": {"resources": {"CPU": 2, "GPU": 1, f"{KIND}L4": 1}, "max_workers": 2},
    "H100": {"resources": {"CPU": 1, "GPU": 1, f"{KIND}H100": 1}, "max_workers": 2},
}
EMBED = Pool(gpus=0.5, accelerator="L4", actors=(1, 3))  # two on a GPU: two nodes
SCORE = Pool(gpus=1, accelerator="H100", actors=(1, 2))
TRAIN = TrainWorkers(gpus=1, accelerator="H100", workers=(2, 2))
KILL_AT = 6  # scored parts: later ones are written in a burst, when scorers are done already
IN_FLIGHT_PARTS = 4  # of an actor at most: two sent to it, and what it made that is not written yet
WHAT = {"TrainWorker": "trainers", "Shard": "folds", "MapWorker": "models"}  # by a part of the actor's class


def told(out, short):
    """The story as it was, in the folder `out`; and when each scored part was written that was there when the node was lost."""
    with growing(short, KINDS) as grows:
        command = [sys.executable, "-m", "tests.scaling_story", str(out)]
        driver = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **grows.environment})
        scored = wait_until(lambda: len(found := list(out.glob("score-*/part-*"))) >= KILL_AT and found, driver)
        grows.raylets("H100")[0].kill()
        lost, before = time.time(), {path: path.stat().st_mtime_ns for path in scored}
        assert driver.wait(timeout=400) == 0
    story = json.loads((out / "story.json").read_text())
    story["events"].append([round(lost - story["started"], 2), "a node is reclaimed"])
    story["events"].sort()
    return story, before


class Model:
    """One that takes its time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, tables):
        time.sleep(self.seconds)
        return tables[0]


class Story:
    """What there was, twice a second; and what happened."""

    def __init__(self):
        self.over, self.told = threading.Event(), {"started": time.time(), "nodes": [], "actors": [], "events": []}

    def now(self):
        return round(time.time() - self.told["started"], 2)

    def tell(self, what):
        self.told["events"].append([self.now(), what])
        print(f"{self.now():6.1f} s  {what}", flush=True)

    def watch(self):
        from ray._private.state import actors

        while not self.over.wait(0.5):
            nodes = Counter(kind_of(node["Resources"]) for node in ray.nodes() if node["Alive"])
            alive = [actor["ActorClassName"] for actor in actors().values() if actor["State"] == "ALIVE"]
            named = Counter(what for name in alive for part, what in WHAT.items() if part in name)
            del nodes["head"]
            for of, found in {"nodes": nodes, "actors": named}.items():
                self.told[of].append([self.now(), dict(found)])


def kind_of(resources):
    named = [name.removeprefix(KIND) for name in resources if name.startswith(KIND)]
    return named[0] if named else "cpu" if resources.get("CPU") else "head"


def tables_of(folder):
    names = tuple(f"part-{number:07d}-0000-0123456789ab-end.parquet" for number in range(PARTS))
    for name in names:
        commit_part(folder, name, pa.table({"sample_id": [name]}), counts={"ok": 1})
    return Table(folder, names)


def _train():
    time.sleep(TRAIN_S)


def gang(story, scored):
    """As the stage train begins one: its fit against what the cluster may become, and its scaling. Another run's, while this one scores."""
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    while not scored.list():
        time.sleep(0.2)
    most = fit(*TRAIN.workers, TRAIN, "training workers")
    story.tell("training asks for its gang")
    with tempfile.TemporaryDirectory() as state:
        TorchTrainer(
            _train, torch_config=TorchConfig(backend="gloo"), scaling_config=scaling(TRAIN, most),
            run_config=RunConfig(storage_path=state, failure_config=FailureConfig(max_failures=MAX_FAILURES)),
        ).fit()  # fmt: skip
    story.tell("training ends")


def main(out):
    story, out = Story(), Path(out)
    with ray_session():
        threading.Thread(target=story.watch, daemon=True).start()
        samples = tables_of(Folder(str(out / "ingest-0123456789ab")))
        story.tell("embedding begins")
        map_parts(lambda: Model(EMBED_S), [samples], Folder(str(out / "embed-0123456789ab")), pool=EMBED)
        story.tell("scoring begins")
        scored = Folder(str(out / "score-0123456789ab"))
        trained = stopping.in_background(lambda: gang(story, scored))
        map_parts(lambda: Model(SCORE_S), [samples], scored, pool=SCORE)
        story.tell("scoring ends")
        trained.result()
        rows = fold_parts(lambda tables: len(tables[0]), [samples], pool=Pool())
        story.tell(f"a fold counts {rows} rows")
        while story.told["nodes"][-1][1] and story.now() < 600:
            time.sleep(0.5)
        story.tell("no node is left")
        story.over.set()
    (out / "story.json").write_text(json.dumps(story.told))


if __name__ == "__main__":
    main(sys.argv[1])

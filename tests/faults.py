"""Faults as data, and one function that runs the chain under any of them and says whether it kept its promise.

The promise is an exit code of the first run. 0: whatever happens, it ends, with the counts and column digests of an unbroken
run. Another: it stops with that code and one clear line, what was committed stays as it is, and the next run ends exactly.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raypipe.store import Folder
from tests.lakes import PROJECT, raypipe, write_config, write_lake

STAGES = ("ingest", "clean", "embed", "cluster", "score", "select")
PAGE_BYTES = 4096


@dataclass
class World:
    """A lake on S3, 12 parts large, and its run without faults; `requests` is how many that took."""

    folder: Path
    bucket: str
    config: Path
    proxy: Any
    endpoint: str  # past the proxy
    seconds: float = 0.0
    requests: int = 0
    accounts: dict[str, Any] = field(default_factory=dict)

    def run(self, root: object, *words: str, **environment: str) -> tuple[subprocess.CompletedProcess, float]:
        began = time.monotonic()
        done = raypipe(*self.words(root), *words, **self.proxy.environment, **environment)
        return done, time.monotonic() - began

    def words(self, root: object) -> tuple[str, ...]:
        return ("run", str(self.config), f"storage.root={root}", "--until", "select")

    def root(self, name: str) -> Folder:
        return Folder.at(f"s3://{self.bucket}/{name}", self.endpoint)


@dataclass
class Outcome:
    name: str
    codes: list[int]
    said: str  # last line of the run that stopped
    fired: dict[str, int]
    seconds: list[float]
    wrong: list[str]  # what was promised and not kept


@dataclass(frozen=True)
class Scenario:
    name: str
    fault: str
    rate: str
    meets: Callable[..., Outcome]
    promise: int = 0
    said: tuple[str, ...] = ()  # in the line with which it stops


def make_world(folder: Path, rgw: Any, proxy: Any, model: Path, embedder: Path) -> World:
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **rgw.environment}
    bucket, lake = rgw.bucket(), folder / "lake"
    write_lake(lake, num_samples=150, files=5)
    for file in lake.iterdir():
        rgw.owner.client().upload_file(str(file), bucket, f"lake/{file.name}")
    ingest = {"paths": [f"s3://{bucket}/lake"], "part_bytes": 7000}
    one = {"actors": [1, 1]}  # loading a model costs more than using it here
    config = write_config(
        folder / "test.yaml", model=model, embedder=embedder, ingest=ingest, resources={"embed": one, "score": one}
    )
    world = World(folder, bucket, config, proxy, rgw.endpoint)
    proxy.clear()
    done, world.seconds = world.run(world.root("unbroken").path)
    assert done.returncode == 0, done.stderr
    world.requests, world.accounts = sum(proxy.stats()["requests"].values()), accounts(world.root("unbroken"))
    return world


def accounts(root: Folder) -> dict[str, Any]:
    """Of every finished stage: rows, counts, and the column digests of each part."""
    record, found = json.loads(root.read("runs/test.json")), {}
    for stage in STAGES:
        if data := root.find(f"{record['folders'][stage]}/manifest-{record['lake']}.json"):
            told = json.loads(data)
            found[stage] = (told["rows"], told["counts"], {part["name"]: part["columns"] for part in told["parts"]})
    return found


def judged(world: World, scenario: Scenario, root: Folder, runs: list, fired: dict, kept: bool = True) -> Outcome:
    codes, said = [done.returncode for done, _ in runs], (runs[0][0].stderr.strip().splitlines() or [""])[-1]
    wanted = [scenario.promise, 0] if scenario.promise else [0]
    wrong = [] if codes == wanted else [f"exit codes {codes}, wanted {wanted}: {runs[-1][0].stderr[-2000:]}"]
    if scenario.promise and not (said.startswith("raypipe: ") and all(text in said for text in scenario.said)):
        wrong.append(f"it said {said!r}, wanted {scenario.said}")
    wrong += ["a traceback"] * any("Traceback" in done.stderr for done, _ in runs)
    wrong += [] if codes[-1] or accounts(root) == world.accounts else ["counts or column digests differ"]
    wrong += [] if kept else ["what was committed was made again"]
    said = said if scenario.promise else ""
    return Outcome(scenario.name, codes, said, dict(fired), [seconds for _, seconds in runs], wrong)


def network(world: World, scenario: Scenario, *, rules: list[dict[str, Any]], retry_s: int = 300) -> Outcome:
    """A share as `skip` is one of the requests of the unbroken run."""
    root, proxy = world.root(scenario.name), world.proxy
    proxy.clear()
    share = [rule | {"skip": int(rule.get("skip", 0) * world.requests)} for rule in rules]
    with proxy.rules(share, seed=1):
        runs = [world.run(root.path, RAYPIPE_RETRY_S=str(retry_s))]
    fired, there = proxy.stats()["fired"], {found.uri for found in root.walk() if "/part-" in found.uri}
    if not scenario.promise:
        return judged(world, scenario, root, runs, fired)
    proxy.clear()
    runs.append(world.run(root.path))
    puts = {f"s3:/{line.split()[1]}" for line in proxy.stats()["log"] if line.startswith("PUT ")}
    return judged(world, scenario, root, runs, fired, kept=bool(there) and not puts & there)


def copied(world: World, name: str, *, without: tuple[str, ...]) -> Path:
    """The unbroken run's folders in a new folder here, but for those of some stages."""
    here = world.folder / name / "root"
    root = world.root("unbroken")
    for found in root.walk():
        path = found.uri[len(root.path) + 1 :]
        if not path.startswith(tuple(f"{stage}-" for stage in without)):
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            (here / path).write_bytes(root.read(path))
    return here


def times(root: Path) -> dict[str, int]:
    """When each part was written."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("part-*.parquet")}


IN_NAMESPACE = """
mkdir -p "$DISK" && eval "$BEFORE" || exit 99
"${@}" 2>"$OUT/said-0"; echo $? >"$OUT/code-0"; date +%s.%N >"$OUT/time"; cp -a "$DISK" "$OUT/stopped"
eval "$BETWEEN" || exit 99
"${@}" 2>"$OUT/said-1"; echo $? >"$OUT/code-1"; cp -a "$DISK" "$OUT/ended"
"""
FULL = ('mount -t tmpfs -o size=$SIZE none "$DISK" && cp -a "$OUT/root/." "$DISK"', 'mount -o remount,size=64m "$DISK"')
READ_ONLY = (
    'cp -a "$OUT/root/." "$DISK" && mount --bind "$DISK" "$DISK" && mount -o remount,bind,ro "$DISK"',
    'mount -o remount,bind,rw "$DISK"',
)


def disk(world: World, scenario: Scenario, *, mounts: tuple[str, str]) -> Outcome:
    """In a mount namespace of its own, so that nothing needs cleaning up. Room for half of score's parts, where it counts."""
    start = copied(world, scenario.name, without=("score", "select"))
    out, score = (
        start.parent,
        [f.size for f in world.root("unbroken").walk() if "/score-" in f.uri and "/part-" in f.uri],
    )
    sizes = [path.stat().st_size for path in start.rglob("*") if path.is_file()]
    room = sum(-(-size // PAGE_BYTES) for size in sizes) + sum(-(-size // PAGE_BYTES) for size in score) // 2 + 2
    places = {"OUT": str(out), "DISK": str(out / "disk"), "SIZE": str(room * PAGE_BYTES)}
    environment = os.environ | world.proxy.environment | places | dict(zip(("BEFORE", "BETWEEN"), mounts, strict=True))
    command = [sys.executable, "-m", "raypipe.cli", *world.words(out / "disk")]
    script, began = ["unshare", "--map-root-user", "--mount", "bash", "-c", IN_NAMESPACE, "bash"], time.time()
    done = subprocess.run([*script, *command], env=environment, cwd=PROJECT, capture_output=True, text=True)
    ended, cut = time.time(), float((out / "time").read_text()) if (out / "time").exists() else time.time()
    assert (out / "ended").exists(), done.stderr
    codes, said = ([(out / f"{what}-{n}").read_text() for n in (0, 1)] for what in ("code", "said"))
    results = [subprocess.CompletedProcess(command, int(codes[n]), "", said[n]) for n in (0, 1)]
    before, after = times(out / "stopped"), times(out / "ended")
    kept = bool(before) and before.items() <= after.items()
    runs = list(zip(results, (cut - began, ended - cut), strict=True))
    return judged(world, scenario, Folder.at(str(out / "ended")), runs, {scenario.name: 1}, kept)


def truncated(path: Path, column: str) -> bytes:
    return path.read_bytes()[: path.stat().st_size // 2]


def flipped_data(path: Path, column: str) -> bytes:
    group = pq.read_metadata(path).row_group(0)
    chunk = next(group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == column)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return flipped(path.read_bytes(), start + chunk.total_compressed_size - 3)


def flipped_footer(path: Path, column: str) -> bytes:
    data = path.read_bytes()
    return flipped(data, data.rindex(b'"counts"') + 20)


def replaced(path: Path, column: str) -> bytes:
    """By a sound part of the same stage."""
    return next(other for other in sorted(path.parent.glob("part-*")) if other != path).read_bytes()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


Damage = Callable[[Path, str], bytes]


def damage(
    world: World, scenario: Scenario, *, ways: tuple[Damage, ...], stage: str = "score", column: str = "ifd"
) -> Outcome:
    """One part for each way; of ingest it is one in the middle of a file's parts. Stages after it are still to come."""
    root = copied(world, scenario.name, without=STAGES[STAGES.index(stage) + 1 :])
    parts = sorted(root.glob(f"{stage}-*/part-*.parquet"))
    hit = [part for part in parts if "-0001-" in part.name and not part.name.endswith("-end.parquet")]
    hit = (hit + [part for part in parts if part not in hit])[: len(ways)]
    changed = {part: way(part, column) for part, way in zip(hit, ways, strict=True)}
    for part, data in changed.items():
        part.write_bytes(data)
    before = times(root)
    runs = [world.run(root)]
    untold = before.items() <= times(root).items() and all(part.read_bytes() == data for part, data in changed.items())
    runs.append(world.run(root, "--repair", stage))
    again = {path for path, written in times(root).items() if before.get(path, written) != written}
    only_those = again == {str(part.relative_to(root)) for part in hit}
    named = any(str(part) in runs[0][0].stderr for part in hit)
    outcome = judged(world, scenario, Folder.at(str(root)), runs, {"damaged parts": len(hit)}, untold and only_those)
    outcome.wrong += [] if named else ["the damaged object is not named"]
    shutil.rmtree(root)
    return outcome


def proxied(name: str, fault: str, rate: str, *rules: dict[str, Any]) -> Scenario:
    return Scenario(name, fault, rate, partial(network, rules=list(rules)))


SLOWDOWN, RESET, LOST = {"action": "slowdown"}, {"action": "reset"}, {"action": "reset_after_upload", "method": "PUT"}
CUT, SILENT = {"action": "truncate", "method": "GET"}, {"action": "blackhole", "seconds": 10}
LATE, EXPIRED, BROKEN = {"action": "latency", "seconds": 5}, {"action": "expired_token"}, {"action": "error500"}
MIXED = (SLOWDOWN | {"p": 0.1}, RESET | {"p": 0.05}, CUT | {"p": 0.1}, LOST | {"p": 0.2}, EXPIRED | {"p": 0.05},
         BROKEN | {"p": 0.05}, LATE | {"p": 0.01}, SILENT | {"p": 0.02, "times": 2})  # fmt: skip
REPAIR = ("it is not what was committed", "raypipe run CONFIG --repair")
SCENARIOS = (
    proxied("slowdown", "503 SlowDown, listings too", "40 % of requests", SLOWDOWN | {"p": 0.4}),
    proxied("error500", "500 InternalError", "20 % of requests", BROKEN | {"p": 0.2}),
    proxied("reset", "connection reset", "20 % of requests", RESET | {"p": 0.2}),
    proxied("truncate", "body cut in half, then a reset", "30 % of GETs, listings too", CUT | {"p": 0.3}),
    proxied("latency", "5 s of latency", "3 % of requests", LATE | {"p": 0.03}),
    proxied("lost_answer", "PUT committed, then reset", "30 % of PUTs", LOST | {"p": 0.3}),
    proxied("blackhole", "10 s of nothing, then a reset", "2 % of requests, 6 at most", SILENT | {"p": 0.02, "times": 6}),
    proxied("expired", "400 ExpiredToken", "10 % of requests", EXPIRED | {"p": 0.1}),
    proxied("mixed", "all of these mixed", "503, cut bodies 10 %; lost answers 20 % of PUTs; others 1 to 5 %", *MIXED),
    Scenario("gone", "503 for good, and back for the rerun", "all requests after 60 % of them; `RAYPIPE_RETRY_S=10`",
             partial(network, rules=[SLOWDOWN | {"skip": 0.6}], retry_s=10), 5, ("failed for 10 s", "committed parts are kept")),
    Scenario("disk_full", "disk full, then larger", "after half of score's parts", partial(disk, mounts=FULL), 4, ("disk is full", "committed parts are kept")),
    Scenario("read_only", "root read-only, then writable", "from the start", partial(disk, mounts=READ_ONLY), 4, ("read-only", "storage.root")),
    Scenario("truncated", "a committed part truncated", "1 of 12 of score", partial(damage, ways=(truncated,)), 3, REPAIR),
    Scenario("flipped_data", "one bit flipped in a data page", "1 of 12 of score", partial(damage, ways=(flipped_data,)), 3, REPAIR),
    Scenario("flipped_footer", "one bit flipped in a footer", "1 of 12 of score", partial(damage, ways=(flipped_footer,)), 3, REPAIR),
    Scenario("replaced", "a part replaced by another's bytes", "1 of 12 of score", partial(damage, ways=(replaced,)), 3, REPAIR),
    Scenario("damaged", "one each of these four kinds of damage", "4 of 12 of score", partial(damage, ways=(truncated, flipped_data, flipped_footer, replaced)), 3, REPAIR),
    Scenario("ingest_middle", "one bit flipped in a part in the middle of a file's", "1 of 12 of ingest", partial(damage, ways=(flipped_data,), stage="ingest", column="sample_id"), 3, REPAIR),
)  # fmt: skip
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def meet(world: World, scenario: Scenario) -> Outcome:
    return scenario.meets(world, scenario)

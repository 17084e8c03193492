"""`raypipe doctor`: everything a run needs, asked before it runs. One line a check; it goes on after a failure.

A config adds its models, its lake and its root, all asked as a run would ask them. What it writes is one probe in the
root, which it removes. No credential is ever shown, only of which kind it is.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from raypipe import reach
from raypipe.config import Config
from raypipe.config_file import load_config
from raypipe.container import cpus
from raypipe.errors import ConfigError, RaypipeError, Stopped
from raypipe.identity import object_digest
from raypipe.machine import MACHINE, Doubt, disk, gpus
from raypipe.nodes import Nodes, alive_at, at_most
from raypipe.ops.trackers import check_installed
from raypipe.resources import Shape
from raypipe.s3 import patience
from raypipe.sandbox.supervisor import find_sandbox
from raypipe.sizing import demand, fit, limits
from raypipe.store import Folder

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Check:
    state: Literal["ok", "warn", "FAIL"]
    what: str
    detail: str
    exit_code: int = 0  # of the error, where it failed

    def __str__(self) -> str:
        return f"{self.state:<4}  {self.what:<16}  {self.detail}"


def checks(path: str | None = None, overrides: list[str] | tuple[str, ...] = ()) -> Iterator[Check]:
    """Each as soon as it is known."""
    for what, ask in MACHINE.items():
        yield _checked(what, ask)
    yield (cluster := _checked("ray", reach.ray_address))
    if path is not None:
        try:
            config = load_config(path, overrides)
        except ConfigError as error:
            yield _failed("config", error)
        else:
            yield Check("ok", "config", f"{path}: run {config.name}")
            asked = partial(_resources, config)
            yield _unasked("resources", "Ray", cluster.exit_code) if cluster.exit_code else _checked("resources", asked)
            yield from _of_config(config)


def _of_config(config: Config) -> Iterator[Check]:
    root, endpoint = config.storage.root, config.storage.endpoint
    models = {"model": config.model} | ({"embed.model": config.embed.model} if config.embed.model else {})
    if config.score_model != config.model and config.score.given is None:
        models["score.model"] = config.score_model
    centers = config.cluster.centers
    given = {f"{name}.given": getattr(config, name).given or () for name in ("embed", "cluster", "score")}
    own = (*models.values(), *filter(None, [centers]), *config.evaluate.tasks.values(), *config.clean.decontaminate)
    places = (root, *config.ingest.paths, *own, *itertools.chain(*given.values()))
    remote, answers = [place for place in places if _is_remote(place)], True
    if config.train.report_to:
        yield _checked("trackers", partial(_trackers, config))
    if config.evaluate.execute:
        yield _checked("sandbox", partial(_sandbox, config))
    yield _checked("nodes", partial(_nodes, places))
    if remote:
        yield _checked("credentials", reach.credentials)
        yield (server := _checked("S3 and clock", partial(reach.server, remote[0], endpoint)))
        answers = server.exit_code != Stopped.exit_code
    asked = {key: (place, partial(reach.model, key, place, endpoint)) for key, place in models.items()}
    if centers:
        asked["cluster.centers"] = (centers, partial(object_digest, "cluster.centers", centers, endpoint))
    for name, path in config.evaluate.tasks.items():
        asked[f"task {name}"] = (path, partial(reach.problems, f"evaluate.tasks.{name}", path, endpoint))
    if sets := config.clean.decontaminate:
        place = next(filter(_is_remote, sets), sets[0])
        asked["evaluation sets"] = (place, partial(reach.evaluation_sets, config))
    for key, paths in given.items():
        if paths:
            asked[key] = (next(filter(_is_remote, paths), paths[0]), partial(reach.files, key, paths, endpoint))
    lake = next(filter(_is_remote, config.ingest.paths), config.ingest.paths[0])
    for what, (place, ask) in {**asked, "lake": (lake, partial(reach.lake, config))}.items():
        yield _checked(what, ask) if answers or not _is_remote(place) else _unasked(what)
    if answers or not _is_remote(root):
        yield from _of_root(Folder.at(root, endpoint))
    else:
        yield _unasked("root")


def _of_root(root: Folder) -> Iterator[Check]:
    """By one probe, which is gone afterwards whatever happened."""
    yield _checked("root: list", lambda: f"{len(root.list()):,} names in {root.path}")
    if not _is_remote(root.path):
        yield _checked("root: disk", partial(disk, root.path))
    probe = reach.Probe(root, f".doctor.{uuid.uuid4().hex}", uuid.uuid4().bytes)
    written = deleted = _checked("root: write", probe.write)
    try:
        yield written
        if written.state != "FAIL":
            yield _checked("root: read", probe.read)
            yield _checked("root: write once", probe.write_once)
    finally:
        if written.exit_code in (0, Stopped.exit_code):  # a write that was not answered may have been done
            deleted = _checked("root: delete", probe.delete)
    if deleted is not written:
        yield deleted


def _resources(config: Config) -> str:
    """What each stage will ask of the cluster, and whether the cluster can ever give it."""
    pools = config.resources
    asked: dict[str, Shape] = {
        "embed": pools.embed,
        "cluster": pools.cluster,
        "score": pools.score,
        "train": pools.train,
    }
    asked |= {"generate": pools.evaluate} if config.evaluate.tasks else {}
    address = os.environ.get("RAY_ADDRESS")
    try:
        nodes = at_most(alive_at(address)) if address else [({"CPU": cpus(), "GPU": len(gpus())}, 1)]
        return "; ".join(_demand(name, pool, nodes, kinds=bool(address)) for name, pool in asked.items())
    except ConfigError as error:
        if address:
            raise
        return Doubt(f"{error}; here, that is. For a cluster set RAY_ADDRESS")


def _demand(name: str, pool: Shape, nodes: Nodes, *, kinds: bool) -> str:
    """Ray alone knows `kinds` of accelerators by name."""
    low, high = limits(pool)
    named = pool if kinds else pool.model_copy(update={"accelerator": None})
    most = fit(low, high, named, "training workers" if name == "train" else f"actors for {name}", nodes)
    return f"{name} {low} to {most} x ({demand(pool)})"


def _trackers(config: Config) -> str:
    check_installed(config.train.report_to)
    return f"{', '.join(config.train.report_to)}: installed here"


def _sandbox(config: Config) -> str:
    """Of this machine: others may allow another."""
    found = find_sandbox(config.evaluate.execute_without_sandbox)
    return Doubt(f"{found.kind}: {found.why_not}") if found.why_not else f"{found.kind}: for what models wrote"


def _nodes(places: Sequence[str]) -> str:
    local = sorted({place for place in places if os.path.isabs(place)})
    if os.environ.get("RAY_ADDRESS") and local:
        return Doubt(f"every node of the cluster must see, under the same path, {', '.join(local)}")
    return "every path is on storage that all nodes see" if not local else "no cluster: paths are those of this machine"


def _is_remote(place: str) -> bool:
    return place.startswith("s3://")


def _checked(what: str, ask: Callable[[], str]) -> Check:
    try:
        with patience(PATIENCE_S):
            detail = ask()
    except RaypipeError as error:
        return _failed(what, error)
    return Check("warn" if isinstance(detail, Doubt) else "ok", what, detail)


def _failed(what: str, error: RaypipeError) -> Check:
    return Check("FAIL", what, "; ".join(line.strip() for line in str(error).splitlines()), error.exit_code)


def _unasked(what: str, silent: str = "S3", exit_code: int = Stopped.exit_code) -> Check:
    return Check("FAIL", what, f"not asked, as {silent} does not answer", exit_code)

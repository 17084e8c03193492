"""The stages in order: what a run is made of, what of it is done, and running what is left.

Every folder's name is known before anything runs: recipes chain from the config and the files it names, and the lake's
digest stands for the part list (equal lakes give equal parts). Ray, torch and the stage modules are imported only when a
stage is due, so a finished run answers at once.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raypipe import cost, gauges, stopping
from raypipe.config import Config
from raypipe.errors import ConfigError
from raypipe.growth import since_last_run
from raypipe.identity import pinned_model, resolved_backend
from raypipe.lake import Lake, list_lake
from raypipe.ops.trackers import check_installed
from raypipe.part import Table
from raypipe.recipes import STAGE_NAMES, STAGES
from raypipe.s3 import patience
from raypipe.session import ray_session
from raypipe.stage import Inputs, Stage, folder_name, manifest_name, open_table, read_manifest, recipe, run_stage
from raypipe.store import Folder, storage_of

log = logging.getLogger("raypipe")
PLAN_PATIENCE_S = 20.0  # of a person who waits for the plan


@dataclass(frozen=True)
class Planned:
    """A stage of a run: its recipe, its folder, its manifest where it is finished for this lake."""

    stage: Stage
    recipe: Mapping[str, Any]
    folder: Folder
    manifest: Mapping[str, Any] | None

    @property
    def done(self) -> bool:
        return self.manifest is not None

    @property
    def table(self) -> Table:
        """Of a finished stage."""
        assert self.manifest is not None
        return open_table(self.folder, self.manifest)


@dataclass(frozen=True)
class Plan:
    config: Config
    lake: Lake
    stages: tuple[Planned, ...]

    @property
    def folders(self) -> dict[str, str]:
        return {planned.stage.name: planned.folder.name for planned in self.stages}

    def __getitem__(self, stage: str) -> Planned:
        return self.stages[STAGE_NAMES.index(stage)]

    def having(self, stage: str, manifest: Mapping[str, Any] | None) -> Plan:
        """The same plan with another manifest of a stage."""
        stages = (replace(step, manifest=manifest) if step.stage.name == stage else step for step in self.stages)
        return replace(self, stages=tuple(stages))


Lakes = dict[str, Lake]  # by what was listed


def plan(
    config: Config, from_stage: str | None = None, *, asked: str | None = None, lakes: Lakes | None = None
) -> Plan:
    """What a run of this config is made of. Starts nothing; lists the lake unless `from_stage` takes it from the run file.

    Errors about what is not prepared begin with what was `asked` for, where that is not --from. Plans that are given the same `lakes`, empty
    at first, list each once: to list 100,000 objects takes a while, and runs that are compared must not see a lake grow.
    """
    _check_names(from_stage)
    root = root_of(config)
    config = _resolved(config)
    is_listed = from_stage in (None, "ingest")
    lake = _listed_lake(config, lakes) if is_listed else _recorded_lake(root, config, str(from_stage))
    folders: dict[str, str] = {}
    stages = []
    for stage in STAGES:
        made_of = recipe(stage, config, {name: folders[name] for name in stage.reads}, lake.digest)
        folders[stage.name] = folder_name(made_of)
        folder = root / folders[stage.name]
        stages.append(Planned(stage, made_of, folder, read_manifest(folder, lake.digest)))
    planned = Plan(config, lake, tuple(stages))
    if not is_listed:
        _check_recorded(root, planned, str(from_stage), asked or f"--from {from_stage}")
    return planned


def _resolved(config: Config) -> Config:
    """With what depends on this machine or the Hub made explicit: the scoring backend, and revisions of Hub models."""
    endpoint = config.storage.endpoint
    model = pinned_model("model", config.model, endpoint)
    score = {}
    if config.score.given is None:
        same = config.score_model == config.model
        score_model = model if same else pinned_model("score.model", config.score_model, endpoint)
        score = {"backend": resolved_backend("score.backend", config.score.backend), "model": score_model}
    evaluate = {}
    if config.evaluate.tasks:
        evaluate = {"backend": resolved_backend("evaluate.backend", config.evaluate.backend)}
    embed = {"model": config.embed.model and pinned_model("embed.model", config.embed.model, endpoint)}
    return config.model_copy(
        update={
            "model": model,
            "embed": config.embed.model_copy(update=embed),
            "score": config.score.model_copy(update=score),
            "evaluate": config.evaluate.model_copy(update=evaluate),
        }
    )


def run(config: Config, *, from_stage: str | None = None, until: str | None = None, repair: str | None = None) -> Plan:
    """Run what is left of the stages up to `until`; returns the plan as it then is.

    `repair` names a stage whose parts are first checked, and made again where they are damaged.
    """
    return run_all([config], from_stage=from_stage, until=until, repair=repair)[0]


def run_all(
    configs: Sequence[Config], *, from_stage: str | None = None, until: str | None = None, repair: str | None = None
) -> list[Plan]:
    """As `run`, one after the other, with one start of Ray; what they share is made once.

    Whatever storage refuses, it refuses before Ray starts: planning lists and reads, and naming the runs' folders writes.
    """
    _check_names(until, repair)
    wanted = STAGE_NAMES[: STAGE_NAMES.index(until) + 1] if until else STAGE_NAMES
    with patience(PLAN_PATIENCE_S):
        lakes: Lakes = {}
        plans = [_prepared(config, from_stage, wanted, repair, lakes) for config in configs]
    if not any(_is_due(planned, wanted, repair) for planned in plans):
        return plans
    with ray_session():
        return [_carried_out(planned, wanted, repair) for planned in plans]


def _prepared(config: Config, from_stage: str | None, wanted: Sequence[str], repair: str | None, lakes: Lakes) -> Plan:
    planned = plan(config, from_stage, lakes=lakes)
    if "score" in wanted and not planned["score"].done:
        _check_budget(planned)
    if "train" in wanted and not planned["train"].done:
        check_installed(config.train.report_to)
    _check_lake_can_be_read(planned)
    _record(planned, rewrite=_is_due(planned, wanted, repair))
    return planned


def _is_due(planned: Plan, wanted: Sequence[str], repair: str | None) -> bool:
    return repair is not None or not all(planned[name].done for name in wanted)


def _carried_out(planned: Plan, wanted: Sequence[str], repair: str | None) -> Plan:
    if repair:
        from raypipe.repair import remove_damaged

        remove_damaged(planned[repair].folder)
        planned = planned.having(repair, read_manifest(planned[repair].folder, planned.lake.digest))
    for name in wanted:
        stopping.check(planned.config.storage.root)
        planned = planned.having(name, _finished(planned, planned[name]))
    return planned


def cost_of_scoring(planned: Plan) -> cost.Cost | None:
    """None while nobody knows how many rows there are."""
    ingest = planned["ingest"].manifest
    return None if ingest is None else cost.cost_of_scoring(planned["score"].folder, ingest)


def measure(planned: Plan) -> None:
    """Scores some rows in this process, and remembers what that took for whoever plans or runs this scoring."""
    from raypipe.stages import score

    ingest, clean = planned["ingest"], planned["clean"]
    if planned.config.score.given is not None:
        raise ConfigError("--measure: nothing is scored, as score.given brings the scores. Leave one of the two out")
    if not ingest.done:
        raise ConfigError(
            "--measure: ingest is not finished, wanted its rows. Make them by: raypipe run CONFIG --until clean   (no GPU needed)"
        )
    status = clean.table if clean.done else None
    cost.remember(planned["score"].folder, score.measure(planned.config, ingest.table, status), platform.node())


def _check_budget(planned: Plan) -> None:
    resources = planned.config.resources
    if resources.max_gpu_hours is not None and resources.score.gpus and planned.config.score.given is None:
        known = cost_of_scoring(planned)
        if known is None:
            raise ConfigError(
                "resources.max_gpu_hours: how many rows there are is unknown. Make them by: raypipe run CONFIG --until clean"
                "   (no GPU needed)"
            )
        cost.check_budget(known, resources.score, resources.max_gpu_hours)


def _finished(planned: Plan, step: Planned) -> Mapping[str, Any]:
    """The manifest of a stage, run where it was not finished, by another driver meanwhile either."""
    if there := step.manifest or read_manifest(step.folder, planned.lake.digest):
        return there
    with gauges.at_work(planned.config.name, step.stage.name):
        return run_stage(step.stage, step.recipe, planned.config, _inputs(planned, step.stage), step.folder).manifest


def _inputs(planned: Plan, stage: Stage) -> Inputs:
    tables: dict[str, Table] = {}
    for name in stage.reads:
        step = planned[name]
        if not step.done:
            raise ConfigError(
                f"{stage.name} reads {name}, and {step.folder.uri(manifest_name(planned.lake.digest))} is missing. Run without --from"
            )
        tables[name] = step.table
    return Inputs(planned.lake, tables)


def root_of(config: Config) -> Folder:
    return Folder.at(config.storage.root, config.storage.endpoint)


def _listed_lake(config: Config, lakes: Lakes | None) -> Lake:
    lakes = {} if lakes is None else lakes
    paths, partitions, endpoint = config.ingest.paths, config.ingest.partitions, config.storage.endpoint
    wanted = json.dumps([paths, partitions, endpoint])
    if wanted not in lakes:
        lakes[wanted] = list_lake(paths, partitions=partitions, endpoint=endpoint)
    return lakes[wanted]


def _check_lake_can_be_read(planned: Plan) -> None:
    """Who may list may not always read; on S3 that is known only by asking."""
    if planned.lake.slices and not planned["ingest"].done:
        first = next(file for file in planned.lake.files if file.size)
        with storage_of(first.uri, planned.config.storage.endpoint).open(first.uri) as file:
            file.read(1)


def _record(planned: Plan, *, rewrite: bool) -> None:
    """Name the run's folders before any of them gets its first object; also where they are all there, but of another run."""
    config, before = planned.config, recorded(planned.config)
    for said in since_last_run(before, planned.lake, planned["ingest"].folder):
        log.info(said)
    record = {"name": config.name, "lake": planned.lake.digest, "folders": planned.folders}
    data = json.dumps({**record, "config": config.model_dump(mode="json")}, indent=1).encode()
    if rewrite or before != data:
        (root_of(config) / "runs").replace(f"{config.name}.json", data)


def recorded(config: Config) -> bytes | None:
    return (root_of(config) / "runs").find(f"{config.name}.json")


def _recorded_lake(root: Folder, config: Config, from_stage: str) -> Lake:
    if (data := recorded(config)) is None:
        before = STAGE_NAMES[STAGE_NAMES.index(from_stage) - 1]
        raise ConfigError(
            f"{root.path}/{before}-*/manifest-*.json is missing, and {root.path}/runs/{config.name}.json too: nothing was prepared "
            f"for run {config.name!r}. {_remedy(before)}"
        )
    return Lake((), (json.loads(data)["lake"],))


def _check_recorded(root: Folder, planned: Plan, from_stage: str, asked: str) -> None:
    """ConfigError unless all that `from_stage` needs is of this config's recipes and finished."""
    recorded = json.loads((root / "runs").read(f"{planned.config.name}.json"))["folders"]
    before = planned.stages[: STAGE_NAMES.index(from_stage)]
    for step in before:
        name = step.stage.name
        if planned.folders[name] != recorded.get(name):
            raise ConfigError(
                f"{asked}: {name} was prepared as {recorded.get(name)}, but this config asks for {planned.folders[name]}. "
                f"Give the config it was prepared with. Or: {_remedy(before[-1].stage.name)}"
            )
        if not step.done:
            raise ConfigError(
                f"{asked}: {step.folder.uri(manifest_name(planned.lake.digest))} is missing: {name} is not finished. "
                f"{_remedy(before[-1].stage.name)}"
            )


def _remedy(until: str) -> str:
    return f"Make it by: raypipe run CONFIG --until {until}" + (
        "   (or: python jobs/prepare.py CONFIG)" if until == "pack" else ""
    )


def _check_names(*names: str | None) -> None:
    for name in names:
        if name is not None and name not in STAGE_NAMES:
            raise ConfigError(f"no stage {name!r}. The stages: {' '.join(STAGE_NAMES)}")

"""`raypipe ablate`: the runs of an experiment, what they differ by, and whether that is more than chance.

Runs are ordinary runs, so what arms share is made once, and a rerun does what is left. First all are selected and packed, and held-out samples
compared, which no training may find out at its end; then they are trained, seed by seed, so that a stopped experiment has whole pairs.
What was found is put in `ablate-{recipe}/`, results.json last; one that is there is read and shown, without Ray.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raypipe import comparison, pipeline
from raypipe.config import Config
from raypipe.errors import ConfigError, DataError
from raypipe.experiment_file import Cell, Experiment, comparisons
from raypipe.identity import package_versions
from raypipe.ops import experiment as statistics
from raypipe.ops.experiment_page import OUTCOMES, render
from raypipe.ops.selection import SELECTED
from raypipe.ops.style import STYLES
from raypipe.packs import HELD_OUT_PACKS
from raypipe.part import read_part
from raypipe.pipeline import Plan
from raypipe.recipes import STAGE_NAMES
from raypipe.sampled import LANGUAGE, values_of
from raypipe.session import ray_session
from raypipe.stage import folder_name
from raypipe.store import Folder

log = logging.getLogger("raypipe")
VERSION = 1  # raised whenever the same runs give other numbers
GUESSES = {"held_out_loss": 0.01, "pass_at_1": 0.02}  # standard deviation of a seed's difference, before any is known
TRAINED = ("samples", "target_tokens", "steps", "epochs", "train_s", "peak_memory_bytes", "padding", "tokens_per_s")

Plans = Mapping[str, Plan]  # by the name of the run
Results = Mapping[str, Any]  # what is in results.json


def plan(experiment: Experiment, cells: Sequence[Cell]) -> Plans:
    """Starts nothing. ConfigError for what would be found out too late."""
    lakes: pipeline.Lakes = {}
    plans = {config.name: pipeline.plan(config, lakes=lakes) for config in _in_order(cells)}
    _check_outcome(experiment, cells)
    _check_arms_differ(cells, plans)
    return plans


def ablate(experiment: Experiment, cells: Sequence[Cell], plans: Plans) -> tuple[Results, Folder]:
    """Run what is left, and compare."""
    root = pipeline.root_of(cells[0].configs[0])
    is_done = all(planned[last_stage(experiment)].done for planned in plans.values())
    if not is_done and not (root / folder_name(recipe(experiment, plans))).has("results.json"):
        plans = _carried_out(experiment, cells)
    made_of = recipe(experiment, plans)  # a lake may have grown
    folder = root / folder_name(made_of)
    if (there := folder.find("results.json")) is not None:
        return json.loads(there), folder
    started = time.monotonic()
    found = {
        "name": experiment.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": package_versions().get("raypipe"),
        "root": cells[0].configs[0].storage.root,
        "recipe": made_of,
        **_compared(experiment, cells, plans),
    }
    folder.put("index.html", render(found).encode())
    folder.put("results.json", json.dumps(found, indent=1).encode())
    log.info("ablate: %d runs compared in %.1f s", len(plans), time.monotonic() - started)
    return json.loads(folder.read("results.json")), folder


def recipe(experiment: Experiment, plans: Plans) -> dict[str, Any]:
    """All that decides the numbers."""
    runs = {
        name: {"lake": planned.lake.digest, **{stage: planned.folders[stage] for stage in stages_of(experiment)}}
        for name, planned in plans.items()
    }
    return {"stage": "ablate", "version": VERSION, "experiment": experiment.content(), "runs": runs}


def stages_of(experiment: Experiment) -> Sequence[str]:
    """Up to the one that has the outcome."""
    return STAGE_NAMES[: STAGE_NAMES.index(last_stage(experiment)) + 1]


def last_stage(experiment: Experiment) -> str:
    return "train" if outcome_of(experiment) == "held_out_loss" else "evaluate"


def outcome_of(experiment: Experiment) -> str:
    return experiment.outcome if isinstance(experiment.outcome, str) else "pass_at_1"


def power(experiment: Experiment, cells: Sequence[Cell], plans: Plans) -> dict[str, Any]:
    """The smallest difference that this design would show, by what finished seeds say of chance, or else by a guess."""
    stage, known = last_stage(experiment), []
    for cell, versus in comparisons(experiment, cells):
        pairs = [
            pair
            for pair in zip(cell.configs, versus.configs, strict=True)
            if all(plans[config.name][stage].done for config in pair)
        ]
        if len(pairs) > 1:
            (_, arm_SN), (_, versus_SN) = (_values(experiment, side, plans) for side in zip(*pairs, strict=True))
            known.append(statistics.spread(arm_SN - versus_SN))
    count = len(experiment.seeds)
    spread = statistics.pooled(known) if known else statistics.Spread(count, 1, GUESSES[outcome_of(experiment)], 0.0)
    return {
        "num_seeds": count,
        "finished": max((one.num_seeds for one in known), default=0),
        "sd_of_seeds": spread.of_seeds,
        "sd_of_units": spread.of_units,
        "difference": statistics.smallest_difference(spread, count),
    }


def _in_order(cells: Sequence[Cell]) -> list[Config]:
    return [config for seed in zip(*(cell.configs for cell in cells), strict=True) for config in seed]


def _check_outcome(experiment: Experiment, cells: Sequence[Cell]) -> None:
    for config in _in_order(cells):
        if isinstance(experiment.outcome, str):
            if not config.select.held_out_fraction:
                raise ConfigError(
                    f"run {config.name}: select.held_out_fraction is 0, and held_out_loss needs samples that are held out. Raise it"
                )
            if experiment.split not in (None, LANGUAGE, *config.ingest.carry):
                raise ConfigError(
                    f"split: {experiment.split} is not carried. Add it to ingest.carry, which has {list(config.ingest.carry)}, or take "
                    f"{LANGUAGE}, which is guessed where it is not carried"
                )
        elif experiment.outcome.pass_at_1 not in config.evaluate.tasks or not config.evaluate.execute:
            raise ConfigError(
                f"run {config.name}: outcome pass_at_1 needs evaluate.execute=true and {experiment.outcome.pass_at_1} among "
                f"evaluate.tasks, got {config.evaluate.execute} and {sorted(config.evaluate.tasks)}. Add what is missing to the base"
            )


def _check_arms_differ(cells: Sequence[Cell], plans: Plans) -> None:
    seen: dict[str, str] = {}
    for cell in cells:
        for config in cell.configs:
            other = seen.setdefault(plans[config.name].folders["train"], config.name)
            if other != config.name:
                raise ConfigError(
                    f"runs {other} and {config.name} are the same training, so that they differ by nothing. Leave one out, or change its `set`"
                )


def _carried_out(experiment: Experiment, cells: Sequence[Cell]) -> Plans:
    configs = _in_order(cells)
    with ray_session():
        packed = pipeline.run_all(configs, until="pack")
        if outcome_of(experiment) == "held_out_loss":
            _check_held_out(packed)
        done = pipeline.run_all(configs, until=last_stage(experiment))
    return {planned.config.name: planned for planned in done}


def _check_held_out(packed: Sequence[Plan]) -> None:
    """Before anything is trained."""
    ids: dict[str, dict[str, float]] = {}
    for planned in packed:
        pack = planned["pack"]
        if pack.folder.name not in ids:
            parts = (read_part(pack.folder / HELD_OUT_PACKS, part, ["sample_ids"]) for part in pack.table.parts)
            ids[pack.folder.name] = {
                name: 0.0 for part in parts for names in part.column(0).to_pylist() for name in names
            }
    _aligned([(planned.config.name, ids[planned["pack"].folder.name]) for planned in packed])


def _values(experiment: Experiment, configs: Sequence[Config], plans: Plans) -> tuple[list[str], statistics.Values]:
    """Units in order, and [runs, N]."""
    return _aligned([(config.name, _outcome(experiment, plans[config.name])) for config in configs])


def _aligned(runs: Sequence[tuple[str, Mapping[str, float]]]) -> tuple[list[str], statistics.Values]:
    if len(runs[0][1]) < 2:
        raise DataError(
            f"run {runs[0][0]}: got {len(runs[0][1])} held-out samples or problems, wanted two at least. Hold out more"
        )
    try:
        return statistics.aligned_values(runs)
    except ValueError as error:
        raise DataError(
            f"held-out samples or problems must be the same in all runs: {error}. Leave alone, in an arm's `set`, the texts of held-out "
            "samples, clean and pack.max_length"
        ) from error


def _outcome(experiment: Experiment, planned: Plan) -> dict[str, float]:
    """Of each held-out sample its NLL a token after training, in nats; of each problem the share of completions that pass."""
    if isinstance(experiment.outcome, str):
        held_out = json.loads(planned["train"].folder.read("held_out.json"))
        last = held_out["nll"][max(held_out["nll"], key=int)]
        nll, tokens = Counter[str](), Counter[str]()
        for name, total, count in zip(held_out["sample_ids"], last, held_out["num_tokens"], strict=True):
            nll[name] += total  # a sample that was split has several pieces
            tokens[name] += count
        return {name: nll[name] / tokens[name] for name in nll}
    table = planned["evaluate"].table.only("model", "task", "problem_id", "passed")
    passed: dict[str, list[float]] = {}
    for row in (row for part in table.parts for row in table.read(part).to_pylist()):
        if (row["model"], row["task"]) == ("tuned", experiment.outcome.pass_at_1):
            passed.setdefault(row["problem_id"], []).append(float(row["passed"]))
    return {name: float(np.mean(values)) for name, values in passed.items()}


def _compared(experiment: Experiment, cells: Sequence[Cell], plans: Plans) -> dict[str, Any]:
    configs, lower = [config for cell in cells for config in cell.configs], outcome_of(experiment) == "held_out_loss"
    units, values_RN = _values(experiment, configs, plans)
    of_cell = dict(zip((cell.label for cell in cells), np.split(values_RN, len(cells)), strict=True))
    groups = dict(_groups(experiment, units, plans[cells[0].configs[0].name]))
    drift = _drift(plans)
    pairs = []
    for cell, other in comparisons(experiment, cells):
        arm_SN, versus_SN = of_cell[cell.label], of_cell[other.label]
        found = statistics.compare(arm_SN, versus_SN, lower_is_better=lower)
        said = statistics.sentence(cell.label, other.label, OUTCOMES[outcome_of(experiment)], found)
        split = {
            name: statistics.by_group(arm_SN, versus_SN, of_unit, lower_is_better=lower)
            for name, of_unit in groups.items()
        }
        pairs.append({"arm": cell.label, "versus": other.label, **found, "sentence": said, "by": split})
    return {
        "outcome": outcome_of(experiment),
        "lower_is_better": lower,
        "num_units": len(units),
        "power": power(experiment, cells, plans),
        "all_scored": drift.pop(None),
        "arms": [_row(cell, of_cell[cell.label], plans, drift) for cell in cells],
        "comparisons": pairs,
    }


def _row(
    cell: Cell, values_SN: statistics.Values, plans: Plans, drift: Mapping[str | None, Mapping[str, Any]]
) -> dict[str, Any]:
    """An arm: means over its seeds."""
    names = [config.name for config in cell.configs]
    trained = [plans[name]["train"].table.manifest["summary"] for name in names]
    kept = [plans[name]["select"].table.manifest["counts"].get(SELECTED, 0) for name in names]
    return {
        "arm": cell.label,
        "runs": names,
        "outcome": {**statistics.mean_with_interval(values_SN), "by_seed": values_SN.mean(1).tolist()},
        "kept": float(np.mean(kept)),
        **{name: _mean([summary.get(name) for summary in trained]) for name in TRAINED},
        "drift": {name: _mean([drift[run][name] for run in names]) for name in drift[names[0]]},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _drift(plans: Plans) -> dict[str | None, dict[str, Any]]:
    """Length and style of what each run keeps, and under None of all that was scored."""
    compared = comparison.compare(list(plans.values()))
    assert compared is not None  # all have selected
    return {
        row["run"]: {
            "median_response_tokens": (row["response_tokens"] or {}).get("median"),
            **{name: row[name] for name in STYLES},
        }
        for row in compared[0]["rows"]
    }


def _groups(experiment: Experiment, units: Sequence[str], first: Plan) -> Iterator[tuple[str, list[str | None]]]:
    """Of held-out samples: clusters as the first run has them, as another seed's have other numbers; and values of `split`."""
    if outcome_of(experiment) == "held_out_loss":
        held_out = json.loads(first["train"].folder.read("held_out.json"))
        clusters = dict(zip(held_out["sample_ids"], held_out["cluster_ids"], strict=True))
        yield "cluster", [None if clusters[unit] is None else str(clusters[unit]) for unit in units]
    if experiment.split is not None:
        tables = {name: first[name].table for name in ("ingest", "clean")}
        values = values_of(tables, experiment.split, units, first.config.ingest.carry)
        yield experiment.split, [values.get(unit) for unit in units]

"""An experiment's YAML file: arms, fractions and seeds over one base config, and the runs they are.

A run is the base config with the overrides of the experiment, of its arm, its fraction and its seed, in this order, as the command line
has them. An arm that says itself how much to keep has no fraction.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raypipe.config import SIZES, Budget, Config
from raypipe.config_file import load_config, read_yaml, validated
from raypipe.errors import ConfigError
from raypipe.section import Section

ALL = {
    "select.keep_fraction": 1.0,
    "select.num_samples": None,
    "select.num_tokens": None,
    "select.min_ifd": 0.0,
    "select.max_ifd": 1e9,
}
STRATEGIES = {"full": "random", **{name: name for name in ("random", "cluster_random", "global_ifd", "paper")}}
KNOWN: dict[str, dict[str, Any]] = {  # arms that need no `set`
    name: {"select.strategy": strategy, "select.column": None, **(ALL if name == "full" else {})}
    for name, strategy in STRATEGIES.items()
}
OWN = ("name", "seed", "train.budget")  # the experiment says these
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Arm(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._]*$")]
    set: dict[str, Any] = Field(default_factory=dict)  # key.path: value, after those of the known arm of this name
    seeds: tuple[Seed, ...] | None = None  # null: the experiment's; else as many: to compare an arm with itself

    @model_validator(mode="after")
    def _is_something(self) -> Arm:
        if not self.set and self.name not in KNOWN:
            near = difflib.get_close_matches(self.name, KNOWN, 1)
            raise ValueError(
                f"no arm {self.name!r} is known{f'. Did you mean {near[0]}?' if near else ''} Known are {', '.join(KNOWN)}; "
                "any other needs `set`: what differs in it"
            )
        _check_own(self.set)
        return self

    @property
    def overrides(self) -> dict[str, Any]:
        return {**KNOWN.get(self.name, {}), **self.set}


class PassAt1(Section):
    pass_at_1: str  # a task of evaluate.tasks


class Experiment(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._]*$")]
    base: str  # path of a config
    set: dict[str, Any] = Field(default_factory=dict)  # key.path: value, for all arms
    arms: Annotated[tuple[Arm, ...], Field(min_length=2)]  # a known arm's name alone is one too
    fractions: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.4,)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=2)] = (1, 2, 3)  # one seed cannot tell chance from effect
    budget: Budget | None = None  # of training, the same for all arms; null: the base's
    versus: str = "random"  # the arm that others are compared with
    outcome: Literal["held_out_loss"] | PassAt1 = "held_out_loss"
    # of ingest.carry, or language, which is guessed where it is not carried: the difference is shown for each of its values too
    split: str | None = None

    @model_validator(mode="after")
    def _coherent(self) -> Experiment:
        _check_own(self.set)
        names = [arm.name for arm in self.arms]
        given: dict[str, Sequence[Any]] = {"arms": names, "fractions": self.fractions, "seeds": self.seeds}
        for what, values in given.items():
            if twice := [value for place, value in enumerate(values) if value in values[:place]]:
                raise ValueError(f"{what}: {twice[0]} is there twice. Leave one out, or give it another name")
        if self.versus not in names:
            raise ValueError(
                f"versus: {self.versus} is no arm. The arms: {', '.join(names)}. Add it, or compare with one of these"
            )
        for arm in self.arms:
            if arm.seeds is not None and len(arm.seeds) != len(self.seeds):
                raise ValueError(
                    f"arms.{arm.name}.seeds: got {len(arm.seeds)}, wanted {len(self.seeds)} as of the experiment: they are paired in order"
                )
        if self.split is not None and self.outcome != "held_out_loss":
            raise ValueError("split: problems have no carried columns. Leave it out, or take outcome: held_out_loss")
        return self


def _check_own(overrides: Mapping[str, Any]) -> None:
    for key in overrides:
        if any(key == own or key.startswith(f"{own}.") for own in OWN):
            raise ValueError(f"set.{key}: name, seeds and budget are keys of the experiment. Give it there")


@dataclass(frozen=True)
class Cell:
    """An arm at a fraction, with a run for each seed."""

    arm: str
    fraction: float | None
    configs: tuple[Config, ...]

    @property
    def label(self) -> str:
        return self.arm if self.fraction is None else f"{self.arm}@{self.fraction:g}"


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Experiment, list[Cell]]:
    """`overrides`, of the command line, come after the experiment's `set` and before an arm's. ConfigError lists all faults."""
    tree = read_yaml(path)
    experiment = validated(Experiment, {**tree, "arms": _named(tree.get("arms"))}, str(path))
    cells = []
    for arm in experiment.arms:
        sized = any(name.removeprefix("select.") in SIZES for name in [*experiment.set, *arm.overrides])
        for fraction in [None] if sized else experiment.fractions:
            made = (_config(path, experiment, arm, fraction, seed, overrides) for seed in arm.seeds or experiment.seeds)
            cells.append(Cell(arm.name, fraction, tuple(made)))
    _check_roots(path, cells)
    return experiment, cells


def comparisons(experiment: Experiment, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """Of each arm with the one it is set against, at the same fraction; an arm without one, at every fraction of the other."""
    for cell in cells:
        for other in cells:
            if other.arm == experiment.versus != cell.arm and (
                None in (cell.fraction, other.fraction) or cell.fraction == other.fraction
            ):
                yield cell, other


def _config(
    path: str | Path, experiment: Experiment, arm: Arm, fraction: float | None, seed: int, overrides: Sequence[str]
) -> Config:
    at = "" if fraction is None else f"-{fraction:g}"
    kept = (
        {}
        if fraction is None
        else {"select.keep_fraction": fraction, "select.num_samples": None, "select.num_tokens": None}
    )
    own = {"seed": seed, "name": f"{experiment.name}-{arm.name}{at}-s{seed}"}
    budget = {"train.budget": experiment.budget.given()} if experiment.budget else {}
    try:
        return load_config(
            experiment.base, [*_words(experiment.set), *overrides, *_words({**arm.overrides, **kept, **own, **budget})]
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: arm {arm.name}: {error}") from error


def _named(arms: Any) -> Any:
    return [{"name": arm} if isinstance(arm, str) else arm for arm in arms] if isinstance(arms, list) else arms


def _words(overrides: Mapping[str, Any]) -> list[str]:
    """As on the command line: JSON is YAML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]


def _check_roots(path: str | Path, cells: Sequence[Cell]) -> None:
    """What is compared is in one root, and held out alike."""
    configs = [config for cell in cells for config in cell.configs]
    found_by_key = {
        "storage.root": {config.storage.root for config in configs},
        "select.held_out_fraction": {str(config.select.held_out_fraction) for config in configs},
    }
    for key, values in found_by_key.items():
        if len(found := sorted(values)) > 1:
            raise ConfigError(
                f"{path}: {key}: got {' and '.join(found)}, wanted one of all arms. Give it in the experiment's `set`"
            )

"""Reading the one YAML file: dotted overrides, every fault in one message, local paths made absolute.

YAML goes through JSON into pydantic, because only its JSON mode is strict (no "1" for 1) and still takes a list for a tuple.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from raypipe.config import Config
from raypipe.errors import ConfigError
from raypipe.section import Section
from raypipe.store import location

S = TypeVar("S", bound=Section)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML), check every key. ConfigError lists all faults."""
    configs = load_configs(path, overrides)
    if len(configs) > 1:
        raise ConfigError(
            f"got {len(configs)} runs ({', '.join(c.name for c in configs)}), wanted one. Only `run` and `plan` take several"
        )
    return configs[0]


def load_configs(path: str | Path, overrides: Sequence[str] = ()) -> list[Config]:
    """As `load_config`; one for each value of a list where one value is expected, named NAME@VALUE, and for each pair of two such keys."""
    tree = read_yaml(path)
    choices = [
        [(key, v, f"@{v}") for v in value] if _several(key, value) else [(key, value, "")]
        for key, value in map(_parsed, overrides)
    ]
    configs = []
    for chosen in itertools.product(*choices):
        mine = json.loads(json.dumps(tree, default=str))  # what a YAML anchor shares is shared no more
        for key, value, _ in chosen:
            _override(mine, key, value)
        if suffix := "".join(suffix for *_, suffix in chosen):
            mine["name"] = f"{mine.get('name')}{re.sub('[^A-Za-z0-9._@-]', '-', suffix)}"
        configs.append(_absolute(validated(Config, mine, str(path))))
    return configs


def read_yaml(path: str | Path) -> dict[str, Any]:
    """What is in a file of keys. ConfigError where it is none."""
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(
            f"{path}: the configuration cannot be read ({error.strerror}). Give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML in UTF-8: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: got {type(tree).__name__}, wanted a mapping of sections. See README, 'One file'")
    return tree


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-5 as the number that YAML 1.2 says it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parsed(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: wanted section.key=value, for example select.keep_fraction=0.2")
    try:
        return key, yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _override(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node[parent] = {} if node.get(parent) is None else node[parent]
        if not isinstance(child, dict):
            raise ConfigError(f"override {key}={value}: {parent} is a value, not a section")
        node = child
    node[leaf] = value


def _several(key: str, value: Any) -> bool:
    """A list, for a key that takes one number or word."""
    section: Any = Config
    for name in key.split("."):
        field = getattr(section, "model_fields", {}).get(name)
        section = field and field.annotation
    kinds = [section, *typing.get_args(section)]
    return (
        isinstance(value, list)
        and section is not None
        and not any(typing.get_origin(kind) in (tuple, dict) for kind in kinds)
    )


def validated(kind: type[S], tree: dict[str, Any], where: str) -> S:
    """ConfigError with every fault."""
    try:
        return kind.model_validate_json(json.dumps(tree, default=str))
    except pydantic.ValidationError as error:
        faults = [_fault(kind, fault) for fault in error.errors()]
        raise ConfigError(f"{where}: " + "\n  ".join(faults)) from error


def _fault(kind: type[Section], fault: Any) -> str:
    names = [str(name) for name in fault["loc"]]
    key = ".".join(names)
    if fault["type"] == "extra_forbidden":
        near = _nearest(kind, names)
        return f"{key}: unknown key" + (f". Did you mean {near}?" if near else "")
    if fault["type"] == "missing":
        return f"{key}: missing, and has no default. Add it"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], dict):  # of several keys together
        return ": ".join(filter(None, [key, message]))
    got = "" if names[-1] == "endpoint" else f", got {json.dumps(fault['input'])}"  # it may hold a password
    return f"{key}: {message}{got}"


def _nearest(kind: type[Section], names: list[str]) -> str | None:
    """The valid key closest to an unknown one: first in its own section, then anywhere."""
    parent, keys = ".".join(names[:-1]), all_keys(kind)
    siblings = {_leaf(key): key for key in keys if key == f"{parent}.{_leaf(key)}".lstrip(".")}
    for known, likeness in ((siblings, 0.6), ({_leaf(key): key for key in keys}, 0.75)):
        if near := difflib.get_close_matches(names[-1], known, 1, likeness):
            return known[near[0]]
    return None


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def all_keys(section: type[Section], prefix: str = "") -> list[str]:
    """Every key of the file, dotted, sections included."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _absolute(config: Config) -> Config:
    """Local paths made absolute: actors run in other working directories. A model that is no path stays a Hub id."""

    def model(name: str) -> str:
        is_path = "://" in name or os.path.exists(os.path.expanduser(name))
        return location(name) if is_path else name

    def paths(given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return given and tuple(map(location, given))

    root = location(config.storage.root)
    return config.model_copy(
        update={
            "model": model(config.model),
            "ingest": config.ingest.model_copy(update={"paths": tuple(map(location, config.ingest.paths))}),
            "embed": config.embed.model_copy(
                update={"model": config.embed.model and model(config.embed.model), "given": paths(config.embed.given)}
            ),
            "cluster": config.cluster.model_copy(
                update={
                    "centers": config.cluster.centers and location(config.cluster.centers),
                    "given": paths(config.cluster.given),
                }
            ),
            "score": config.score.model_copy(
                update={"model": model(config.score_model), "given": paths(config.score.given)}
            ),
            "evaluate": config.evaluate.model_copy(
                update={"tasks": {name: location(path) for name, path in config.evaluate.tasks.items()}}
            ),
            "storage": config.storage.model_copy(update={"root": root}),
        }
    )

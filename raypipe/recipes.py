"""The stages in order, each with what decides its content: that is what names its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from raypipe.config import Config
from raypipe.identity import model_identity, object_digest, read_object, read_objects, resolved_backend
from raypipe.lake import chain_digests, list_slices
from raypipe.ops.leaks import grams_of
from raypipe.ops.problems import read_problems
from raypipe.stage import Stage


def _given(key: str, config: Config, paths: Sequence[str]) -> dict[str, Any]:
    """Files are told apart as those of a lake are."""
    return {"given": chain_digests(list_slices(key, paths, endpoint=config.storage.endpoint))[-1]}


def _clean_content(config: Config) -> dict[str, Any]:
    """What is not looked for names nothing."""
    clean, content = config.clean, dict[str, Any]()
    if clean.near_duplicate_similarity is not None:
        content["near_duplicate_similarity"] = clean.near_duplicate_similarity
    if clean.secrets:
        content["secrets"] = clean.secrets
    if clean.decontaminate:
        sets = read_objects("clean.decontaminate", clean.decontaminate, config.storage.endpoint)
        grams_of(sets, clean.ngram_words)  # what is wrong with them is better said now
        content |= {
            "ngram_words": clean.ngram_words,
            "sets": [hashlib.sha256(data).hexdigest() for data in sets.values()],
        }
    return content


def _embed_content(config: Config) -> dict[str, Any]:
    embed = config.embed
    if embed.given is not None:
        return _given("embed.given", config, embed.given)
    return {**embed.content(), "model": model_identity("embed.model", str(embed.model))}


def _score_content(config: Config) -> dict[str, Any]:
    if config.score.given is not None:
        return _given("score.given", config, config.score.given)
    named = {"template": config.score_template, "backend": resolved_backend("score.backend", config.score.backend)}
    return {**config.score.content(), **named, "model": model_identity("score.model", config.score_model)}


def _cluster_content(config: Config) -> dict[str, Any]:
    """With frozen centres a row follows from them alone."""
    cluster, content = config.cluster, config.cluster.content()
    similarity = content.pop("semantic_similarity")
    asked = {} if similarity is None else {"semantic_similarity": similarity}
    if cluster.given is not None:
        return {"metric": cluster.metric, **_given("cluster.given", config, cluster.given), **asked}
    if cluster.centers is not None:
        centers = object_digest("cluster.centers", cluster.centers, config.storage.endpoint)
        return {"metric": cluster.metric, "centers": centers, **asked}
    return {**content, **asked, "seed": config.seed}


def _select_content(config: Config) -> dict[str, Any]:
    draws = {"seed": config.seed} if "random" in config.select.strategy else {}
    return {**config.select.content(), **draws}


def _pack_content(config: Config) -> dict[str, Any]:
    draws = {} if config.pack.strategy == "best_fit" else {"seed": config.seed}
    model = model_identity("model", config.model)
    return {**config.pack.content(), **draws, "template": config.template, "tokenizer": model}


def _train_content(config: Config) -> dict[str, Any]:
    return {**config.train.content(), "model": model_identity("model", config.model), "seed": config.seed}


def _generate_content(config: Config) -> dict[str, Any]:
    """Without tasks nothing is generated, whatever else is asked for."""
    evaluate, tasks = config.evaluate, config.evaluate.tasks
    if not tasks:
        return {"tasks": {}}
    digests = {}
    for name in sorted(tasks):
        data = read_object(f"evaluate.tasks.{name}", tasks[name], config.storage.endpoint)
        read_problems(tasks[name], data)  # what is wrong with it is better said now than after training
        digests[name] = hashlib.sha256(data).hexdigest()
    draws = {"seed": config.seed, "temperature": evaluate.temperature} if evaluate.num_completions > 1 else {}
    named = {"template": config.template, "backend": resolved_backend("evaluate.backend", evaluate.backend)}
    content = {name: value for name, value in evaluate.content().items() if name != "temperature"}
    return {**content, **named, **draws, "tasks": digests, "model": model_identity("model", config.model)}


def _evaluate_content(config: Config) -> dict[str, Any]:
    return {"execute": config.evaluate.execute and bool(config.evaluate.tasks)}


def _always(config: Config) -> bool:
    return True


STAGES = (
    Stage("ingest", (), lambda c: c.ingest.content(), version=2),
    Stage("clean", ("ingest",), _clean_content),
    Stage(
        "embed",
        ("ingest", "clean"),
        _embed_content,
        version=2,
    ),
    Stage("cluster", ("embed",), _cluster_content, version=3, whole_lake=lambda c: c.cluster.centers is None),
    Stage("score", ("ingest", "clean"), _score_content, version=2),
    Stage("select", ("clean", "cluster", "score"), _select_content, version=2, whole_lake=_always),
    Stage("pack", ("ingest", "cluster", "select"), _pack_content, version=2, whole_lake=_always),
    Stage("train", ("pack",), _train_content, version=3, whole_lake=_always),
    Stage("generate", ("train",), _generate_content),
    Stage("evaluate", ("generate",), _evaluate_content),
    Stage(
        "report",
        ("ingest", "clean", "embed", "cluster", "score", "select", "pack", "train", "evaluate"),
        lambda c: {**c.report.content(), "name": c.name},
        version=4,
        whole_lake=_always,
    ),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)

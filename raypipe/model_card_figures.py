"""What a released model says of itself: the figures of its run, gathered from manifests, for the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raypipe.config import Config
from raypipe.identity import git_commit, package_versions
from raypipe.ops.held_out import losses_by_cluster
from raypipe.ops.model_card import model_card
from raypipe.stage import Inputs, read_manifest
from raypipe.store import Folder


def card(config: Config, inputs: Inputs, out: Folder, training: Mapping[str, Any]) -> str:
    """README.md of `out`/model; `training` is the summary of train's manifest."""
    packs = inputs["pack"]
    reads = packs.manifest["recipe"]["reads"]
    root = Folder.at(config.storage.root, config.storage.endpoint)
    ingest, select = (read_manifest(root / reads[name], inputs.lake.digest) for name in ("ingest", "select"))
    clean = select and read_manifest(root / select["recipe"]["reads"]["clean"], inputs.lake.digest)
    rule, versions, held_out = config.train, package_versions(), dict(training["held_out"])
    return model_card(
        {
            "name": config.name,
            "base_model": config.model,
            "adapter": rule.lora is not None and rule.lora.export == "adapter",
            "paths": list(config.ingest.paths),
            "rows_read": ingest and sum(ingest["counts"].values()),
            "samples": clean and clean["counts"].get("ok"),
            "kept": packs.manifest["counts"].get("ok"),
            "strategy": config.select.strategy,
            "keep_fraction": config.select.keep_fraction,
            "num_clusters": None if config.cluster.given or config.cluster.centers else config.cluster.num_clusters,
            "seed": config.seed,
            "lora_r": rule.lora and rule.lora.r,
            "lora_alpha": rule.lora and float(rule.lora.alpha),
            "epochs": training["epochs"],
            "steps": training["steps"],
            "samples_per_step": rule.samples_per_step,
            "learning_rate": rule.learning_rate,
            "schedule": "linear warm-up, then cosine to 0",
            "warmup_steps": rule.warmup_steps,
            "max_length": config.pack.max_length,
            "packing": config.pack.strategy,
            "dtype": rule.dtype,
            "num_workers": training["num_workers"],
            "template": config.template,
            "first_loss": training["first_loss"],
            "last_loss": training["last_loss"],
            "held_out_samples": held_out.pop("num_samples"),
            **held_out,
            "cluster_losses": losses_by_cluster(json.loads(out.read("held_out.json"))),
            "tokens_per_s": training["tokens_per_s"],
            "target_tokens_per_s": training["target_tokens_per_s"],
            "seconds": training["train_s"],
            "peak_memory_bytes": training["peak_memory_bytes"],
            "padding": training["padding"],
            "raypipe_version": versions.get("raypipe"),
            "commit": git_commit(),
            "folders": [*reads.values(), packs.folder.name, out.name],
            "packages": versions,
        }
    )

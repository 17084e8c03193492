"""The model card, README.md of the fine-tuned model: front matter for the Hub, then words and numbers for people.

Only named figures are taken, so no setting, and no secret in one, gets in by chance. What is absent is left out with
its line and heading: nothing is guessed. What users gave is fenced as in the dataset card: YAML's own quoting in front,
in ASCII, as PyYAML loses U+0085 otherwise; code spans and blocks below. Tables hold numbers only, as a backslash before
a pipe means different things to readers of Markdown. The words are in model_card.md.j2; its variables are the names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, meta

from raypipe.ops.dataset_card import block, code
from raypipe.ops.hub import split_revision

CARD = "model_card.md.j2"
NEEDED = frozenset({"name", "base_model"})
ABSENT: tuple[Any, ...] = (None, "", [], (), {})
CLUSTERS_SHOWN = 20  # those with the most held-out samples
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


def model_card(figures: Mapping[str, Any]) -> str:
    """README.md. ValueError for an unknown or missing key; None, or nothing in a list, is as good as absent. The keys:

    - needed: name: str, of the run; base_model: str, a directory, a Hub id, or NAME@REVISION
    - adapter: bool, the folder holds LoRA weights alone (absent: a whole model, any LoRA weights merged into it)
    - data: paths: list[str], of the lake; datasets: list[str], Hub ids; rows_read, samples (clean), kept (trained on),
      num_clusters, seed: int; strategy: str; keep_fraction: float
    - recipe: lora_r: int (absent: full fine-tuning); lora_alpha: float; epochs, steps (of the optimiser),
      samples_per_step, warmup_steps, num_workers: int; max_length: int, tokens per pack; learning_rate: float, peak;
      schedule, packing: str; dtype: str, of compute; template: str, text with {instruction}, or chat
    - losses: float, token means in nats: first_loss, last_loss, of a step; loss_before, loss_after, held out;
      mean_difference, of the held_out_samples: int: NLL per token, after minus before, mean over samples;
      standard_error, of that; cluster_losses: list of {cluster: int, num_samples: int, loss_before, loss_after}
    - cost: tokens_per_s, target_tokens_per_s (responses and EOS): float, over all workers; seconds: float, of training;
      peak_memory_bytes: int, of the worker with most; device: str, of a worker; padding: float, share of positions
    - provenance: raypipe_version, commit: str; folders: list[str], of the stages; packages: dict[str, str], versions
    """
    present = {key: value for key, value in figures.items() if value not in ABSENT}
    if wrong := (figures.keys() - _known()) | (NEEDED - present.keys()):
        raise ValueError(f"model card: {', '.join(sorted(wrong))}: unknown, or missing. See model_card for the keys")
    clusters = sorted(present.pop("cluster_losses", ()), key=lambda row: (-row["num_samples"], row["cluster"]))
    base, revision = split_revision(present["base_model"])
    own = {
        "front": yaml.safe_dump(front_matter(present), sort_keys=False, width=120),
        "base": base,
        "revision": revision,
        "on_hub": re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) is not None,
        "lora_rank": next((rank for rank in LORA_RANKS if rank >= present.get("lora_r", math.inf)), None),
        "clusters_shown": CLUSTERS_SHOWN,
    }
    values = {"adapter": False, **present, "cluster_losses": clusters, "own": own}
    return _environment().get_template(CARD).render(values)


def front_matter(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Of fields that the Hub knows (hub-docs, modelcard.md); no licence, as raypipe does not know it."""
    adapter = figures.get("adapter", False)
    lora = ["lora"] if adapter or "lora_r" in figures else []
    return {
        "base_model": split_revision(figures["base_model"])[0],
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["code", "instruction-tuning", "sft", *lora, "raypipe"],
        **({"datasets": list(figures["datasets"])} if "datasets" in figures else {}),
    }


@cache
def _known() -> set[str]:
    source, *_ = PackageLoader("raypipe", "ops").get_source(_environment(), CARD)
    return meta.find_undeclared_variables(_environment().parse(source)) - {"own"}


@cache
def _environment() -> Environment:
    loader = PackageLoader("raypipe", "ops")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    formats = {
        "count": "{:,}",
        "number": "{:.4g}",
        "nats": "{:.4g} nats per token",
        "signed": "{:+.4g}",
        "rate": "{:,.1f}",
    }
    environment.filters |= {name: form.format for name, form in formats.items()}
    environment.filters |= {"code": code, "block": block, "literal": repr}
    environment.filters["codes"] = lambda texts: ", ".join(map(code, texts))
    environment.filters["gib"] = lambda num_bytes: f"{num_bytes / 2**30:,.2f} GiB"
    environment.filters["percent"] = lambda share: f"{100 * share:.3g} %"
    return environment

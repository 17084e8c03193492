"""The dataset card of an export, as the Hub reads it: front matter for programs, then words for people.

What users gave (paths, templates, column names, licences) is hostile until fenced: YAML's own quoting in front, and below code spans
and blocks whose fences are longer than any run of backticks in them. The same account gives the same text. The words are in
dataset_card.md.j2; `split` names the files of a split by the Hub's own pattern, and the numbers of samples let `load_dataset` find that
a shard is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from raypipe.config import Select
from raypipe.ops.ifd import num_scored
from raypipe.ops.selection import (
    BELOW_CUT,
    BY_CLUSTER,
    HELD_OUT,
    IFD_TOO_HIGH,
    IFD_TOO_LOW,
    NO_CLUSTER,
    NO_VALUE,
    SELECTED,
)

LEAST = 3  # the smallest category of the Hub ends at 10^3
REASONS = {  # others speak for themselves
    SELECTED: "kept: split train",
    HELD_OUT: "held out before any selection, to measure loss: split test",
    BELOW_CUT: "ranked below what was kept",
    IFD_TOO_HIGH: "the instruction does not help to foretell the response",
    IFD_TOO_LOW: "IFD below the band",
    NO_VALUE: "no number in the column that ranks",
    NO_CLUSTER: "its embedding or cluster was not among the given rows",
    "not_given": "its score was not among the given rows",
    "duplicate": "repeats an earlier row",
    "semantic_duplicate": "an embedding nearly that of an earlier sample of its cluster",
    "secret": "keys, tokens or personal data",
    "near_duplicate": "nearly the same words as an earlier row",
    "contaminated": "shares a run of words with an evaluation set",
}
LICENCES_SHOWN = 50  # of each column, the most frequent first


def render(account: Mapping[str, Any]) -> str:
    config, select = account["config"], account["manifests"]["select"]
    counts = {stage: manifest["counts"] for stage, manifest in account["manifests"].items()}
    num_clusters = len(account["manifests"]["cluster"]["summary"]["cluster_sizes"])
    text: str = _template().render(
        account,
        front=front_matter(account),
        counts=counts,
        rows_read=sum(counts["ingest"].values()),
        scored=num_scored(account["manifests"]["score"]),
        num_clusters=num_clusters,
        rule=rule_words(config.select, config.seed, num_clusters),
        lake=select["lake"],
        finished=select["finished"],
        version=select["packages"].get("raypipe"),
        settings=_yaml(account["settings"]),
        reasons=REASONS,
        shown=LICENCES_SHOWN,
    )
    return text


def front_matter(account: Mapping[str, Any]) -> str:
    """YAML, of fields that https://github.com/huggingface/hub-docs/blob/main/datasetcard.md knows. Sizes are those of the files."""
    splits = account["splits"]
    num_bytes = sum(split["bytes"] for split in splits.values())
    sizes = [
        {"name": name, "num_bytes": split["bytes"], "num_examples": split["samples"]} for name, split in splits.items()
    ]
    return _yaml(
        {
            "pretty_name": account["config"].name,
            "license": "other",
            "language": ["code"],
            "task_categories": ["text-generation"],
            "tags": ["code", "instruction-tuning", "sft", "raypipe"],
            "size_categories": [size_category(sum(split["samples"] for split in splits.values()))],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": name, "path": f"data/{name}-*"} for name in splits],
                }
            ],
            "dataset_info": {
                "features": account["features"],
                "splits": sizes,
                "download_size": num_bytes,
                "dataset_size": num_bytes,
            },
        }
    )


def size_category(num_samples: int) -> str:
    """Of the Hub: n<1K, 1K<n<10K, ..., n>1T."""
    ends = [f"{10**power}{unit}" for unit in "KMB" for power in range(3)] + ["1T"]
    place = max(len(str(num_samples)) - LEAST, 0)
    if place == 0:
        return f"n<{ends[0]}"
    return f"{ends[place - 1]}<n<{ends[place]}" if place < len(ends) else f"n>{ends[-1]}"


def rule_words(rule: Select, seed: int, num_clusters: int) -> str:
    """Which samples were kept, in a sentence or two."""
    where = f"In each of the {num_clusters:,} clusters" if rule.strategy in BY_CLUSTER else "In the whole lake"
    where += f", and in it for every value of {code(rule.per)}" if rule.per else ""
    order = {
        "random": f"in an order drawn with seed {seed}",
        "cluster_random": f"in an order drawn with seed {seed}",
        "longest": "with the longest responses first",
        "column": f"with the highest {code(rule.column or '')} first",
    }.get(rule.strategy, "with the highest IFD first")
    if rule.keep_fraction is not None:
        share = f"{_percent(rule.keep_fraction)} of"
        survivors = rule.fraction_of == "survivors"
        size = f"the first {share} them" if survivors else f"as many of the first as are {share} all samples there"
    else:
        budget = f"{rule.num_samples:,} samples" if rule.num_samples else f"{rule.num_tokens:,} tokens"
        size = f"as many of the first as make {budget} in all, everywhere the same share"
    band = f"samples with an IFD of at least {rule.min_ifd:g} and below {rule.max_ifd:g}"
    return f"{where} the {band} were taken {order}; {size} were kept."


def code(text: str) -> str:
    """A code span of any text; ends of lines become spaces."""
    text = " ".join(text.split())
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(text: str, language: str) -> str:
    """A code block of any text."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=120)  # ASCII: PyYAML loses U+0085 otherwise


@cache
def _template() -> Any:
    loader = PackageLoader("raypipe", "ops")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"code": code, "block": block, "count": "{:,}".format, "literal": repr, "percent": _percent}
    return environment.get_template("dataset_card.md.j2")

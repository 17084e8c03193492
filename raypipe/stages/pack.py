"""Pack: selected samples, tokenised, into windows of pack.max_length tokens; held-out ones into packs of their own.

Groups of contiguous parts with at least 10,000 selected samples are packed apart, one task each, so memory is bounded and
work spreads; a short last group joins its neighbour.

Columns: input_ids, labels (targets: response and EOS), sequence_lengths, sample_ids, cluster_ids; one row a pack. Held-out
packs are in `_held_out/`. A sample longer than the window or the model's positions is dropped and counted as too_long.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.config import Config
from raypipe.errors import DataError
from raypipe.identity import fetched_model
from raypipe.items import map_items
from raypipe.models.pretrained import load_tokenizer, max_positions
from raypipe.ops.packing import best_fit, group_parts, padding_share
from raypipe.ops.selection import HELD_OUT, SELECTED
from raypipe.ops.tokens import prompt_ids, text_ids, training_sequence
from raypipe.ops.warnings import of_packs
from raypipe.part import Footer, commit_part, read_part
from raypipe.stage import HELD_OUT_PACKS, Inputs, Result
from raypipe.store import Folder

GROUP_SAMPLES = 10_000
ROW_GROUP = 64  # packs that training reads at once
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("sequence_lengths", pa.list_(pa.int32())),
        ("sample_ids", pa.list_(pa.string())),
        ("cluster_ids", pa.list_(pa.int32())),
    ]
)


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    counts = [part["counts"].get(SELECTED, 0) for part in inputs["select"].manifest["parts"]]
    groups = [(place, inputs["select"].parts[a:b]) for place, (a, b) in enumerate(group_parts(counts, GROUP_SAMPLES))]
    parts: dict[str, Footer | None] = {part_name(place): None for place, _ in groups}
    present = set(out.list())
    todo = [group for group in groups if part_name(group[0]) not in present]
    made = map_items(
        partial(pack_group, config=config, inputs=inputs.bare(), out=out),
        todo,
        label=out.name,
        name=lambda g: part_name(g[0]),
    )
    parts |= {footer["name"]: footer for footer in made if footer}
    figures = [_figures(out, name) for name in parts]
    total = {key: sum(figure[key] for figure in figures) for key in ("packs", "tokens", "target_tokens", "samples")}
    if not total["packs"]:
        raise DataError(
            f"pack: none of the {sum(counts)} selected samples fits pack.max_length={config.pack.max_length} tokens. Raise it"
        )
    lengths = [length for figure in figures for length in figure["lengths"]]
    fill = total["tokens"] / (total["packs"] * config.pack.max_length)
    padding = padding_share(lengths, np.random.default_rng(0))
    said = of_packs(lengths, fill, padding, total["packs"], config.pack.max_length)
    return Result(parts, {**total, "fill": round(fill, 5), "padding_otherwise": round(padding, 5), "warnings": said})


def part_name(group: int) -> str:
    return f"part-{group:07d}.parquet"


def pack_group(group: tuple[int, Sequence[str]], *, config: Config, inputs: Inputs, out: Folder) -> Footer | None:
    """The held-out packs are put first: whatever has its part has them too. None where another driver was first."""
    started = time.perf_counter()
    place, parts = group
    if out.has(part_name(place)):
        return None
    samples = pa.concat_tables([_samples(inputs, part) for part in parts])
    model = fetched_model(config.model, config.storage.endpoint)
    tokenizer, longest = load_tokenizer(model), min(config.pack.max_length, max_positions(model))
    for reason, folder in ((HELD_OUT, out / HELD_OUT_PACKS), (SELECTED, out)):
        table, counts = _packed(samples, reason, tokenizer, longest, config)
        seconds = time.perf_counter() - started
        footer, _ = commit_part(
            folder, part_name(place), table, counts=counts, seconds=seconds, row_group_size=ROW_GROUP
        )
    return footer


def _samples(inputs: Inputs, part: str) -> pa.Table:
    """Rows of a part that go into packs of either kind. Held out means a clean sample that selection never saw."""
    table = inputs["ingest"].only("sample_id", "instruction", "response").read(part)
    table = table.append_column("cluster_id", inputs["cluster"].only("cluster_id").read(part).column("cluster_id"))
    table = table.append_column("reason", inputs["select"].only("reason").read(part).column("reason"))
    return table.filter(pc.is_in(table.column("reason"), pa.array([SELECTED, HELD_OUT])))


def _packed(
    samples: pa.Table, reason: str, tokenizer: Any, longest: int, config: Config
) -> tuple[pa.Table, dict[str, int]]:
    chosen = samples.filter(pc.equal(samples.column("reason"), reason))
    prompts = prompt_ids(tokenizer, config.template, chosen.column("instruction").to_pylist())
    responses = text_ids(tokenizer, chosen.column("response").to_pylist())
    sequences = [training_sequence(p, r, tokenizer.eos_token_id) for p, r in zip(prompts, responses, strict=True)]
    fitting = [n for n, (ids, _) in enumerate(sequences) if len(ids) <= longest]
    ids, clusters = chosen.column("sample_id").to_pylist(), chosen.column("cluster_id").to_pylist()
    rows = []
    for places in best_fit([len(sequences[n][0]) for n in fitting], config.pack.max_length):
        members = [fitting[place] for place in places]
        rows.append(
            {
                "input_ids": [token for n in members for token in sequences[n][0]],
                "labels": [label for n in members for label in sequences[n][1]],
                "sequence_lengths": [len(sequences[n][0]) for n in members],
                "sample_ids": [ids[n] for n in members],
                "cluster_ids": [clusters[n] for n in members],
            }
        )
    counts = {"ok": len(fitting), "too_long": len(sequences) - len(fitting)}
    return pa.Table.from_pylist(rows, SCHEMA), {name: count for name, count in counts.items() if count}


def _figures(out: Folder, part: str) -> dict[str, Any]:
    table = read_part(out, part, ["labels", "sequence_lengths"])
    lengths = pc.list_flatten(table.column("sequence_lengths")).to_pylist()
    targets = pc.sum(pc.greater_equal(pc.list_flatten(table.column("labels")), 0)).as_py() or 0
    return {
        "packs": len(table),
        "tokens": sum(lengths),
        "target_tokens": targets,
        "samples": len(lengths),
        "lengths": lengths,
    }

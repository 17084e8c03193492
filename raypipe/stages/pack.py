"""Pack: selected samples, tokenised, into packs of segments as pack.strategy says (`ops.packing`); held-out ones always by best_fit.

Groups of contiguous parts with at least 10,000 selected samples are packed apart, one task each, so memory is bounded and
work spreads; a short last group joins its neighbour.

One row a pack: input_ids, labels (targets: response and EOS), sequence_lengths (of its segments, padding included), and of each
sample sample_ids, cluster_ids. Held-out packs are in `_held_out/`, shapes of both in `_shapes/` (`raypipe.packs`). A sample longer than the window or
the model's positions is dropped and counted as too_long, or split: its pieces count as samples, and one without targets is left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.errors import DataError
from raypipe.identity import fetched_model
from raypipe.items import map_items
from raypipe.models.pretrained import load_tokenizer, max_positions
from raypipe.ops.packing import Segment, Strategy, fill, lay_out, padding_share
from raypipe.ops.selection import HELD_OUT, SELECTED
from raypipe.ops.tokens import IGNORED, prompt_ids, text_ids, training_sequence
from raypipe.ops.warnings import of_packs
from raypipe.packs import HELD_OUT_PACKS, PACKS, ROW_GROUP, SHAPES, pack_groups, shapes_of
from raypipe.part import Footer, add_up, commit_part, read_footers
from raypipe.stage import Inputs, Result
from raypipe.store import Folder


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    groups = pack_groups(inputs["select"])
    parts: dict[str, Footer | None] = dict.fromkeys(groups)
    present = set(out.list())
    todo = [(place, name, its) for place, (name, its) in enumerate(groups.items()) if name not in present]
    made = map_items(
        partial(pack_group, config=config, inputs=inputs.bare(), out=out),
        todo,
        label=out.name,
        name=lambda group: group[1],
    )
    parts |= {footer["name"]: footer for footer in made if footer}
    parts |= read_footers(out, [name for name, footer in parts.items() if footer is None])
    return Result(parts, _summary(config, [footer for footer in parts.values() if footer]))


def _summary(config: Config, footers: Sequence[Footer]) -> dict[str, Any]:
    rule, total = config.pack, add_up(footers)
    figures, packs = total["figures"], total["rows"]
    if not packs:
        raise DataError(
            f"pack: none of the {sum(total['counts'].values()):,} selected samples fits pack.max_length={rule.max_length} tokens. Raise it"
        )
    padding = {name: 1 - figures["tokens"] / figures[f"{name}_tokens"] for name in get_args(Strategy)}
    filled = 1 - padding[rule.strategy]
    said = of_packs(
        figures["long"] / figures["samples"], figures["tokens"] / figures["samples"], padding, packs, rule.max_length
    )
    named = {name: int(figures[name]) for name in ("samples", "tokens", "target_tokens")}
    rounded = {name: round(share, 5) for name, share in padding.items()}
    return {"packs": packs, **named, "fill": round(filled, 5), "padding": rounded, "warnings": said}


def pack_group(group: tuple[int, str, Sequence[str]], *, config: Config, inputs: Inputs, out: Folder) -> Footer | None:
    """The held-out packs and the shapes are put first: whatever has its part has them too. None where another driver was first."""
    started = time.perf_counter()
    place, name, parts = group
    if out.has(name):
        return None
    samples = pa.concat_tables([_samples(inputs, part) for part in parts])
    model = fetched_model(config.model, config.storage.endpoint)
    tokenizer, longest = load_tokenizer(model), min(config.pack.max_length, max_positions(model))
    for reason, folder in ((HELD_OUT, out / HELD_OUT_PACKS), (SELECTED, out)):
        chosen = samples.filter(pc.equal(samples.column("reason"), reason))
        pieces, counts = _pieces(chosen, tokenizer, longest, config)
        lengths = np.array([len(piece.ids) for piece in pieces], dtype=np.int64)
        rng = partial(np.random.default_rng, [config.seed, place])
        strategy: Strategy = config.pack.strategy if reason == SELECTED else "best_fit"
        capacity: dict[Strategy, int] = {  # positions start anew in each segment, and dynamic_pack's are whole rows
            "best_fit": config.pack.max_length,
            "dynamic_pack": longest,
            "pad": longest,
        }
        table, targets = _table(lay_out(strategy, lengths, capacity[strategy], rng()), pieces, tokenizer)
        padding = {kind: padding_share(kind, lengths, window, rng()) for kind, window in capacity.items()}
        commit_part(folder / SHAPES, name, shapes_of(table, targets), counts={})
        footer, _ = commit_part(
            folder,
            name,
            table,
            counts=counts,
            seconds=time.perf_counter() - started,
            figures=_figures(targets, lengths, longest, padding),
            row_group_size=ROW_GROUP,
        )
    return footer


@dataclass(frozen=True)
class _Piece:
    """A sample, or what is a segment of one that was split."""

    sample_id: str
    cluster_id: int | None
    ids: NDArray[np.int32]
    labels: NDArray[np.int32]


def _samples(inputs: Inputs, part: str) -> pa.Table:
    """Rows of a part that go into packs of either kind. Held out means a clean sample that selection never saw."""
    table = inputs["ingest"].only("sample_id", "instruction", "response").read(part)
    table = table.append_column("cluster_id", inputs["cluster"].only("cluster_id").read(part).column("cluster_id"))
    table = table.append_column("reason", inputs["select"].only("reason").read(part).column("reason"))
    return table.filter(pc.is_in(table.column("reason"), pa.array([SELECTED, HELD_OUT])))


def _pieces(chosen: pa.Table, tokenizer: Any, longest: int, config: Config) -> tuple[list[_Piece], dict[str, int]]:
    prompts = prompt_ids(tokenizer, config.template, chosen.column("instruction").to_pylist())
    responses = text_ids(tokenizer, chosen.column("response").to_pylist())
    pieces, too_long = [], 0
    for sample_id, cluster_id, prompt, response in zip(
        chosen.column("sample_id").to_pylist(), chosen.column("cluster_id").to_pylist(), prompts, responses, strict=True
    ):
        ids, labels = (
            np.array(tokens, np.int32) for tokens in training_sequence(prompt, response, tokenizer.eos_token_id)
        )
        if len(ids) > longest and config.pack.on_overflow == "drop":
            too_long += 1
            continue
        for begin in range(0, len(ids), longest):
            its = labels[begin : begin + longest]
            if (its[1:] != IGNORED).any():  # nothing predicts a segment's first token
                pieces.append(_Piece(sample_id, cluster_id, ids[begin : begin + longest], its))
    counts = {"ok": len(chosen) - too_long, "too_long": too_long}
    return pieces, {name: count for name, count in counts.items() if count}


def _table(packs: Sequence[Sequence[Segment]], pieces: Sequence[_Piece], tokenizer: Any) -> tuple[pa.Table, pa.Array]:
    """And the target tokens of each pack."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    samples = [(piece.ids, piece.labels) for piece in pieces]
    laid = [fill(pack, samples, pad) for pack in packs]
    ids, labels = [tokens for tokens, _ in laid], [targets for _, targets in laid]
    places = [[place for segment in pack for place in segment.places] for pack in packs]
    lists = (
        [[segment.length for segment in pack] for pack in packs],
        [[pieces[place].sample_id for place in pack] for pack in places],
        [[pieces[place].cluster_id for place in pack] for pack in places],
    )
    columns = [_lists(ids), _lists(labels), *map(pa.array, lists, PACKS.types[2:])]
    targets = pa.array([int((its != IGNORED).sum()) for its in labels], pa.int32())
    return pa.Table.from_arrays(columns, schema=PACKS), targets


def _lists(arrays: Sequence[NDArray[np.int32]]) -> pa.Array:
    offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(arrays) if arrays else np.empty(0, np.int32))


def _figures(
    targets: pa.Array, lengths: NDArray[np.int64], longest: int, padding: Mapping[Strategy, float]
) -> dict[str, float]:
    """With the tokens that each strategy would lay out: `plan`, report and manifest compare them."""
    tokens = int(lengths.sum())
    return {
        "samples": len(lengths),
        "tokens": tokens,
        "target_tokens": pc.sum(targets).as_py() or 0,
        "long": int((lengths > longest / 2).sum()),
        **{f"{name}_tokens": round(tokens / (1 - share)) for name, share in padding.items()},
    }

"""Packs as training reads them, from a part of each input: every sample whole, once, where it belongs."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.config import Config
from raypipe.errors import DataError
from raypipe.lake import Lake
from raypipe.models.pretrained import load_tokenizer
from raypipe.ops.tokens import IGNORED, prompt_ids, text_ids
from raypipe.packs import HELD_OUT_PACKS, ROW_GROUP, PackReader
from raypipe.part import Table, commit_part
from raypipe.stage import Inputs
from raypipe.stages.pack import pack_group
from raypipe.store import Folder

PARTS = ("part-0000000.parquet", "part-0000001.parquet")
WINDOW, PACKED = 256, "part-0000000.parquet"


def rows(number, count=90):
    """Reasons take turns; every 17th sample is longer than the window, every 30th is in no cluster."""
    rng = np.random.default_rng(number)
    for n in range(count):
        words = int(rng.integers(400, 600)) if n % 17 == 3 else int(rng.integers(1, 60))
        yield {
            "sample_id": f"{number}-{n:03d}",
            "instruction": f"Task {number} {n}: sort {rng.integers(99)} numbers",
            "response": "".join(f"x{rng.integers(9)} = {rng.integers(9)}\n" for _ in range(words)),
            "cluster_id": None if n % 30 == 7 else n % 3,
            "reason": ["selected", "selected", "below_cut", "held_out", "selected"][n % 5],
        }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for number, part in enumerate(PARTS):
        table = pa.Table.from_pylist(list(rows(number)))
        for stage, columns in {
            "ingest": ["sample_id", "instruction", "response"],
            "cluster": ["sample_id", "cluster_id"],
            "select": ["sample_id", "reason"],
        }.items():
            commit_part(Folder(str(folder / stage)), part, table.select(columns), counts={})
    return Inputs(Lake((), ("a",)), {s: Table(Folder(str(folder / s)), PARTS) for s in ("ingest", "cluster", "select")})


def packed(inputs, model, out, **keys):
    tree = {
        "name": "t", "model": str(model), "ingest": {"paths": ["x"]}, "embed": {"model": "e"}, "storage": {"root": str(out)},
        "pack": {"max_length": WINDOW, **keys},
    }  # fmt: skip
    config, folder = Config.model_validate_json(json.dumps(tree)), Folder(str(out))
    return pack_group((0, PACKED, PARTS), config=config, inputs=inputs, out=folder), folder


def sequences(model, config_template="### Instruction:\n{instruction}\n### Response:\n"):
    """What each sample is trained on: (ids, labels)."""
    tokenizer = load_tokenizer(str(model))
    made = {}
    for row in [*rows(0), *rows(1)]:
        (prompt,), (response,) = (
            prompt_ids(tokenizer, config_template, [row["instruction"]]),
            text_ids(tokenizer, [row["response"]]),
        )
        ids = [*prompt, *response, tokenizer.eos_token_id]
        made[row["sample_id"]] = ids, [IGNORED] * len(prompt) + ids[len(prompt) :], row
    return made


def read(folder, *, divisible=True):
    reader = PackReader(folder, [PACKED], divisible=divisible)
    return reader, [reader[n] for n in range(len(reader.shapes))]


def pieces(pack):
    """(ids, labels) of each segment."""
    bounds = np.cumsum([0, *pack.lengths])
    return [(pack.input_ids[a:b].tolist(), pack.labels[a:b].tolist()) for a, b in pairwise(bounds)]


def test_every_fitting_sample_is_there_once_and_whole(inputs, random_model, tmp_path):
    """Selected ones in the packs, held-out ones in packs of their own, none in both, and no others."""
    footer, folder = packed(inputs, random_model, tmp_path)
    wanted = sequences(random_model)
    for reason, place in (("selected", folder), ("held_out", folder / HELD_OUT_PACKS)):
        reader, packs = read(place)
        assert len(packs) > 2
        fitting = {name for name, (ids, _, row) in wanted.items() if row["reason"] == reason and len(ids) <= WINDOW}
        found = {}
        for pack in packs:
            assert len(pack.input_ids) <= WINDOW
            for name, cluster, (ids, labels) in zip(pack.sample_ids, pack.cluster_ids, pieces(pack), strict=True):
                assert name not in found
                found[name] = ids
                assert (ids, labels) == wanted[name][:2] and cluster == wanted[name][2]["cluster_id"]
        assert found.keys() == fitting
        targets = sum(sum(label >= 0 for label in labels) for pack in packs for _, labels in pieces(pack))
        assert reader.shapes.target_tokens.sum() == targets and reader.shapes.num_samples.sum() == len(fitting)
        assert reader.shapes.lengths.tolist() == [n for pack in packs for n in pack.lengths]
    selected = sum(row["reason"] == "selected" for *_, row in wanted.values())
    counts = footer["counts"]
    assert counts["ok"] + counts["too_long"] == selected and counts["too_long"] > 3
    assert footer["figures"]["samples"] == counts["ok"]


def test_long_samples_are_split(inputs, random_model, tmp_path):
    """Pieces follow one another; each is a segment whose first token nothing predicts, and one without targets is left out."""
    footer, folder = packed(inputs, random_model, tmp_path, on_overflow="split")
    assert "too_long" not in footer["counts"] and footer["figures"]["samples"] > footer["counts"]["ok"]
    wanted, found = sequences(random_model), {}
    for pack in read(folder)[1]:
        for name, piece in zip(pack.sample_ids, pieces(pack), strict=True):
            found.setdefault(name, []).append(piece)
    assert found.keys() == {name for name, (*_, row) in wanted.items() if row["reason"] == "selected"}
    long = {name: its for name, its in found.items() if len(wanted[name][0]) > WINDOW}
    assert len(long) > 3
    for name, its in long.items():
        ids, labels, _ = wanted[name]
        cut = [(ids[n : n + WINDOW], [IGNORED, *labels[n + 1 : n + WINDOW]]) for n in range(0, len(ids), WINDOW)]
        assert sorted(its) == sorted(piece for piece in cut if any(label >= 0 for label in piece[1]))


@pytest.mark.parametrize("strategy", ["pad", "dynamic_pack"])
def test_padded_rows_hold_the_same_samples(strategy, inputs, random_model, tmp_path):
    """Padding counts nothing: the same target tokens as best_fit, in rows as long as their micro-batch's longest."""
    footer, folder = packed(inputs, random_model, tmp_path / strategy, strategy=strategy)
    best, _ = packed(inputs, random_model, tmp_path / "best")
    assert footer["figures"] == best["figures"] and footer["counts"] == best["counts"]
    reader, packs = read(folder, divisible=False)
    wanted, names = sequences(random_model), []
    for pack in packs:
        assert len(set(pack.lengths)) == 1 and len(pack.sample_ids) <= 16
        names += pack.sample_ids
        texts = iter(pack.sample_ids)
        for ids, labels in pieces(pack):
            rest, place = True, 0
            while rest and (name := next(texts, None)) is not None:
                own, targets, _ = wanted[name]
                assert ids[place : place + len(own)] == own and labels[place : place + len(own)] == targets
                place += len(own)
                rest = strategy == "dynamic_pack" and any(label >= 0 for label in labels[place:])
            assert set(labels[place:]) <= {IGNORED}
    assert len(names) == len(set(names)) == footer["counts"]["ok"]
    assert int(reader.shapes.lengths.sum()) == footer["figures"][f"{strategy}_tokens"]


def test_packs_are_read_alone_and_in_any_order(inputs, random_model, tmp_path):
    """A rank reads only what it trains on, by threads: a neighbour's row would train it on other samples."""
    from concurrent.futures import ThreadPoolExecutor

    _, folder = packed(inputs, random_model, tmp_path, max_length=WINDOW)
    whole = Table(folder, (PACKED,)).read(PACKED).to_pylist()
    assert len(whole) > 12
    reader = PackReader(folder, [PACKED, PACKED], divisible=True)
    order = np.random.default_rng(0).permutation(2 * len(whole)).tolist()
    with ThreadPoolExecutor(8) as threads:
        for place, pack in zip(order, threads.map(reader.__getitem__, order), strict=True):
            row = whole[place % len(whole)]
            assert (pack.input_ids.tolist(), pack.sample_ids) == (row["input_ids"], row["sample_ids"])
    assert len(whole) * 2 > ROW_GROUP


def test_a_changed_byte_is_found(inputs, random_model, tmp_path):
    """A rank reads row groups alone, so no column's digest tells: other tokens would be trained on without a word."""
    _, folder = packed(inputs, random_model, tmp_path / f"pack-{'0' * 12}")
    path = tmp_path / f"pack-{'0' * 12}" / PACKED
    data, chunk = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0).column(0)
    data[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(data)
    reader = PackReader(folder, [PACKED], divisible=True)
    with pytest.raises(DataError, match=r"row group 0 cannot be read .*--repair pack"):
        reader[0]


def test_a_second_driver_changes_nothing(inputs, random_model, tmp_path):
    packed(inputs, random_model, tmp_path)
    before = (tmp_path / PACKED).read_bytes()
    assert packed(inputs, random_model, tmp_path)[0] is None and (tmp_path / PACKED).read_bytes() == before

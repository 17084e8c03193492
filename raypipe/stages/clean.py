"""Clean: which rows are samples. A row is a duplicate only of an earlier one, so old parts never change when the lake grows.

One map puts each part's sample_ids aside, sorted (`_ids/`, 16 bytes a row: whole ids, so that no two samples are ever taken
for one); one task per bucket of leading bits finds the later rows; one map marks. Growth reads `_ids` of old parts, never
their text. Near duplicates go the same way, on band keys of MinHash (`_looks/`, 180 bytes a row, of which a task reads 40), and what leaks
from an evaluation set is found in the map that makes those.

Columns: sample_id, status (the first that applies of duplicate, contaminated, secret, near_duplicate, ok), evidence (of a duplicate: part and row of the
first; of a leak: where, of which problem, and the words; of a secret: its kind), and those of ingest.carry, so that who wants them does not read the texts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.identity import read_objects
from raypipe.items import map_items
from raypipe.ops.leaks import Grams, find_leaks, grams_of
from raypipe.ops.minhash import PERMUTATIONS, bands_and_sketches, near_pairs, rows_a_band
from raypipe.ops.repeats import repeats
from raypipe.ops.secrets import secret_kinds
from raypipe.ops.text import id_words
from raypipe.ops.warnings import of_secrets
from raypipe.pairs import Pairs, first_each, put_pairs
from raypipe.part import Table, add_up, read_columns, with_figures
from raypipe.parts import map_parts
from raypipe.resources import Pool
from raypipe.sources import Clean
from raypipe.stage import Inputs, Result, all_footers
from raypipe.store import Folder

BUCKET_ROWS = 4_000_000  # of ids, or band keys, that one task sorts: about 300 MB
SKETCH = tuple(f"sketch_{place}" for place in range(4))


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    samples, rule = inputs["ingest"].only("sample_id", *config.ingest.carry), config.clean
    parts, num_rows = samples.parts, inputs["ingest"].manifest["rows"]
    found = {"duplicate": Table(out / "_duplicates", parts)}
    looks = Table(out / "_looks", parts)
    todo = set(parts) - set(out.list())
    if todo:
        ids = Table(out / "_ids", parts)
        map_parts(SortIds, [samples.only("sample_id")], ids.folder, pool=Pool(), light=True)
        _put(find_duplicates, ids, _buckets([0], num_rows), todo, out / "_duplicates")
    if todo and (rule.decontaminate or rule.secrets or rule.near_duplicate_similarity is not None):
        make = partial(Look, rule, _grams(config))
        map_parts(make, [inputs["ingest"].only("instruction", "response")], looks.folder, pool=Pool(), light=True)
    if rule.decontaminate:
        found["contaminated"] = looks.only("leak")
    if rule.secrets:
        found["secret"] = looks.only("secret")
    if rule.near_duplicate_similarity is not None:
        found["near_duplicate"] = Table(out / "_near", parts)
        if todo:
            bands = range(PERMUTATIONS // rows_a_band(rule.near_duplicate_similarity))
            near = partial(find_near, similarity=rule.near_duplicate_similarity)
            _put(near, looks, _buckets(bands, num_rows), todo, out / "_near")
    mark = partial(Mark, tuple(found), drops_secrets=rule.secrets == "drop")
    marked = all_footers(out, map_parts(mark, [samples, *found.values()], out, pool=Pool(), light=True), inputs.lake)
    return Result(marked, {"warnings": of_secrets(add_up(marked.values())["figures"], rule.secrets)})


class SortIds:
    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        words_N2 = id_words(tables[0].column("sample_id"))
        order = np.lexsort([words_N2[:, 1], words_N2[:, 0]])
        return pa.table({"high": words_N2[order, 0], "low": words_N2[order, 1], "row": order.astype(np.int32)})


class Look:
    """Looks at texts: what leaks from an evaluation set, secrets, and the band keys and sketches by which near duplicates are found."""

    def __init__(self, rule: Clean, grams: Grams | None) -> None:
        self.rule, self.grams = rule, grams

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        instructions, responses = (tables[0].column(name).combine_chunks() for name in ("instruction", "response"))
        both = pc.binary_join_element_wise(instructions, responses, "\n")
        made: dict[str, Any] = {}
        if self.grams is not None:
            made["leak"] = pa.array(self._leaks(instructions, responses), pa.string())
        if self.rule.secrets:
            made["secret"] = pa.array(secret_kinds(both.to_pylist()), pa.string())
        if self.rule.near_duplicate_similarity is not None:
            keys, sketches = bands_and_sketches(both, self.rule.near_duplicate_similarity)
            made |= dict(zip(SKETCH, sketches, strict=True)) | {_band(place): key for place, key in enumerate(keys)}
        return pa.table(made)

    def _leaks(self, instructions: pa.StringArray, responses: pa.StringArray) -> list[str | None]:
        assert self.grams is not None
        asked, answered = find_leaks(instructions, self.grams), find_leaks(responses, self.grams)
        pairs = zip(asked, answered, strict=True)
        return [(one and f"instruction, {one}") or (other and f"response, {other}") for one, other in pairs]


def _band(place: int) -> str:
    return f"band_{place:03d}"


def _grams(config: Config) -> Grams | None:
    rule = config.clean
    sets = read_objects("clean.decontaminate", rule.decontaminate, config.storage.endpoint)
    return grams_of(sets, rule.ngram_words) if sets else None


class Mark:
    """`tables`: sample_ids and carried columns of a part, then for each of `statuses` its rows (`row`, `first`), or a column of evidence."""

    def __init__(self, statuses: Sequence[str], *, drops_secrets: bool = False) -> None:
        self.statuses, self.drops_secrets = statuses, drops_secrets

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        samples, *found = tables
        status = np.full(len(samples), "ok", object)
        evidence = np.full(len(samples), None, object)
        figures = Counter[str]()
        for name, table in reversed([*zip(self.statuses, found, strict=True)]):  # the first one has the last word
            rows, said = _evidence(table)
            if name == "secret":
                figures.update(f"secrets: {kind}" for kinds in said for kind in kinds.split(", "))
            if name != "secret" or self.drops_secrets:
                status[rows], evidence[rows] = name, said
        columns = {"status": pa.array(status, pa.string()), "evidence": pa.array(evidence, pa.string())}
        carried = {name: samples.column(name) for name in samples.column_names[1:]}
        return with_figures(pa.table({"sample_id": samples.column("sample_id"), **columns, **carried}), **figures)


def _evidence(table: pa.Table) -> tuple[NDArray[np.int64], list[str]]:
    if "row" in table.column_names:
        return table.column("row").to_numpy(), table.column("first").to_pylist()
    return np.flatnonzero(table.column(0).is_valid()), table.column(0).drop_null().to_pylist()


@dataclass(frozen=True)
class Bucket:
    """Of some bands, the keys in [low, high)."""

    bands: Sequence[int]
    low: int
    high: int

    def slice(self, keys_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return np.asarray((keys_N >= np.uint64(self.low)) & (keys_N <= np.uint64(self.high - 1)))


def _buckets(bands: Sequence[int], num_rows: int) -> list[Bucket]:
    """Each of BUCKET_ROWS at most, as keys are spread evenly; several bands where rows are few."""
    ranges = -(-max(num_rows, 1) // BUCKET_ROWS)
    together = max(1, BUCKET_ROWS // max(num_rows, 1))
    edges = [2**64 * n // ranges for n in range(ranges + 1)]
    runs = [bands[first : first + together] for first in range(0, len(bands), together)]
    return [Bucket(run, low, high) for run in runs for low, high in itertools.pairwise(edges)]


def find_duplicates(bucket: Bucket, table: Table) -> Pairs:
    """Rows whose id is an earlier one's."""
    pieces = []
    for place, part in enumerate(table.parts):
        ids = table.read(part)
        high = ids.column("high").to_numpy()
        a, b = np.searchsorted(high, np.uint64(bucket.low)), np.searchsorted(high, np.uint64(bucket.high - 1), "right")
        low, row = ids.column("low").to_numpy()[a:b], ids.column("row").to_numpy()[a:b]
        pieces.append(np.stack([high[a:b], low, np.full(b - a, place, np.uint64), row.astype(np.uint64)]))
    high, low, place, row = np.concatenate(pieces, axis=1)
    later, first = repeats(high, low)  # of a part's equal ids the earlier row comes first
    return np.stack([place[later], row[later], place[first], row[first]]).astype(np.int64)


def find_near(bucket: Bucket, table: Table, *, similarity: float) -> Pairs:
    """Rows that meet an earlier one in a band, and whose sketches are as near as that. Of several earlier ones the first."""
    met: dict[str, list[NDArray[np.uint64]]] = {_band(place): [] for place in bucket.bands}
    for place, part in enumerate(table.parts):
        looks = read_columns(table.folder, part, [*met, *SKETCH])
        sketch = [looks.column(name).to_numpy() for name in SKETCH]
        for name, pieces in met.items():
            key = looks.column(name).to_numpy()
            (row,) = np.nonzero(bucket.slice(key))
            columns = [key[row], *(word[row] for word in sketch), np.full(len(row), place), row]
            pieces.append(np.stack(columns).astype(np.uint64))
    return first_each(
        np.concatenate([_near(np.concatenate(pieces, axis=1), similarity) for pieces in met.values()], axis=1)
    )


def _near(rows_CN: NDArray[np.uint64], similarity: float) -> Pairs:
    """Of rows of one band: key, sketch, part and row, one column each."""
    key, *sketch, place, row = rows_CN
    later, first = near_pairs(key, np.stack(sketch), similarity)
    return np.stack([place[later], row[later], place[first], row[first]]).astype(np.int64)


def _put(find: Callable[..., Pairs], table: Table, buckets: list[Bucket], todo: set[str], out: Folder) -> None:
    found = map_items(partial(find, table=table), buckets, label=out.name)
    put_pairs(np.concatenate(found, axis=1), Table(out, table.parts), todo)

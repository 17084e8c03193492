"""Samples that share n words in a row with an evaluation set: what it was tuned on it cannot be judged by (Brown et al. 2020, appendix C: 13 words).

Texts of a set are all strings of its rows but `test`, whose numbers and names say nothing of the problem; those of fewer than n words cannot be looked for,
and n numbers in a row are no evidence: `[1, 2, 3, ...` is in everybody's examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.errors import DataError
from raypipe.ops.problems import numbered_lines
from raypipe.ops.shingles import shingles

IDS = ("task_id", "problem_id", "question_id", "id", "name")
LETTER = re.compile(rb"[A-Za-z\x80-\xff]")
LEFT_OUT = {"test", *IDS}


@dataclass(frozen=True)
class Grams:
    """Hashes of all n-grams of evaluation sets, sorted, and the problem that each is of: the first one, where there are several."""

    words: int
    hashes: NDArray[np.uint64]
    problems: NDArray[np.int64]
    names: Sequence[str]


def grams_of(sets: Mapping[str, bytes], words: int) -> Grams:
    """`sets`: by name, JSONL, plain or gzipped. DataError for what is none, or where no text has so many words."""
    names, owners, texts = list[str](), list[int](), list[str]()
    for name, data in sets.items():
        for problem, found in _texts(name, data):
            owners += [len(names)] * len(found)
            texts += found
            names.append(problem)
    made, data = shingles(pa.array(texts, pa.string()), words, short=False), "".join(texts).encode()
    hashes, first = np.unique(made.hashes, return_index=True)
    told = np.array([LETTER.search(data, made.starts[at], made.ends[at]) is not None for at in first], bool)
    hashes, first = hashes[told], first[told]
    if not len(hashes):
        raise DataError(f"clean.decontaminate: no text of {', '.join(sets)} has {words} words. Lower clean.ngram_words")
    owner_G = np.repeat(np.array(owners, np.int64), np.diff(made.edges))
    return Grams(words, hashes, owner_G[first], names)


def find_leaks(texts: pa.StringArray, grams: Grams) -> list[str | None]:
    """Of each text, without nulls, the problem and the words of its first n-gram that an evaluation set has."""
    made, found = shingles(texts, grams.words, short=False), list[str | None]([None]) * len(texts)
    at = np.minimum(np.searchsorted(grams.hashes, made.hashes), len(grams.hashes) - 1)
    (hits,) = np.nonzero(grams.hashes[at] == made.hashes)
    owners, first = np.unique(np.searchsorted(made.edges, hits, "right") - 1, return_index=True)
    if not len(owners):
        return found
    data = "".join(texts.to_pylist()).encode()
    for owner, hit in zip(owners, hits[first], strict=True):
        said = " ".join(data[made.starts[hit] : made.ends[hit]].decode().split())
        found[owner] = f"{grams.names[grams.problems[at[hit]]]}: {said}"
    return found


def _texts(where: str, data: bytes) -> Iterator[tuple[str, list[str]]]:
    """Name of a problem, and its texts."""
    for number, line in numbered_lines(where, data):
        row = _row(f"{where}: line {number}", line)
        name = next((str(row[key]) for key in IDS if key in row), f"{where} line {number}")
        yield name, [value for key, value in row.items() if isinstance(value, str) and value and key not in LEFT_OUT]


def _row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}. Wanted one problem a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: {type(row).__name__}, wanted an object for each problem")
    return row

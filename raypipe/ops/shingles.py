"""Word n-grams of many texts as 64-bit hashes, in numpy alone: 200,000 texts of 45 words a CPU second.

A word is a run of letters, digits and underscores, of any script; letters of ASCII count in either case alike. A text of fewer than n words is one n-gram of all
of them, and one without a word a single word. A word's hash is a polynomial in its bytes modulo 2^64, so prefix sums give all of them at once.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
BYTES, A, Z = np.arange(256), ord("A"), ord("Z")
IS_WORD = np.array([byte >= 128 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)])
VALUE = (BYTES + 32 * ((BYTES >= A) & (BYTES <= Z)) + 1).astype(np.uint64)  # of a byte, in either case


class Shingles(NamedTuple):
    """Hashes of the n-grams of N texts, one text after the other; where each text's begin, [N + 1]; where in the texts each n-gram begins and ends."""

    hashes: NDArray[np.uint64]
    edges: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def shingles(texts: pa.StringArray, n: int, *, short: bool = True) -> Shingles:
    """Of texts, none of them null or empty. `starts` and `ends` are bytes of all the texts written together. `short`: texts of fewer words have one too."""
    data_B, edges = _bytes_of(texts)
    starts, ends = _words(data_B, edges)
    words = _hashes(data_B, starts, ends)
    first = np.searchsorted(starts, edges)  # word of each text
    place, last = np.arange(len(words)), np.repeat(first[1:], np.diff(first))
    hashes, until = np.zeros(len(words), np.uint64), np.minimum(place + n, last)
    for step, weight in enumerate(powers(BASE, n + 1)[1:]):
        there = until > place + step
        hashes[there] += words[place[there] + step] * weight
    whole = place + n <= last
    if short:
        whole[first[:-1]] = True
    counts = np.concatenate([[0], np.cumsum(whole)])
    return Shingles(mixed(hashes[whole]), counts[first], starts[whole], ends[until[whole] - 1])


def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a sum reaches every bit: the end of splitmix64."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(hashes ^ (hashes >> np.uint64(31)))


def powers(base: int, count: int) -> NDArray[np.uint64]:
    """base ** 0, 1, ... modulo 2^64."""
    return _powers(base, 1 << max(0, count - 1).bit_length())[:count]


@cache
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    made = np.full(count, base % 2**64, np.uint64)
    made[0] = 1
    return np.multiply.accumulate(made)


def _bytes_of(texts: pa.StringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    _, offsets, data = texts.buffers()
    edges = np.frombuffer(offsets, np.int32)[texts.offset :][: len(texts) + 1].astype(np.int64)
    return np.frombuffer(data or b"", np.uint8)[edges[0] : edges[-1]], edges - edges[0]


def _words(data_B: NDArray[np.uint8], edges: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First byte of each word, and the one after its last; a word ends with its text."""
    is_word = np.zeros(len(data_B) + 2, bool)
    is_word[1:-1] = IS_WORD[data_B]
    begins, ends = is_word[1:] & ~is_word[:-1], is_word[:-1] & ~is_word[1:]
    joint = is_word[:-1] & is_word[1:]
    inner = edges[joint[edges]]  # where two texts would be one word
    begins[inner] = ends[inner] = True
    starts, ends = np.flatnonzero(begins), np.flatnonzero(ends)
    without = np.flatnonzero(np.searchsorted(starts, edges[:-1]) == np.searchsorted(starts, edges[1:]))
    if len(without):
        starts = np.sort(np.append(starts, edges[without]))
        ends = np.sort(np.append(ends, edges[without + 1]))
    return starts, ends


def _hashes(data_B: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A word at another place is the same polynomial times a power of BASE, which its inverse takes away."""
    sums = np.zeros(len(data_B) + 1, np.uint64)
    np.cumsum(VALUE[data_B] * powers(BASE, len(data_B)), out=sums[1:])
    return mixed((sums[ends] - sums[starts]) * powers(pow(BASE, -1, 2**64), len(data_B) + 1)[starts])

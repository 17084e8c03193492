"""The two texts of a sample, normalised, and its id: what that is made of, and how ids are used as numbers."""

from __future__ import annotations

import binascii
import hashlib
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.ops.digests import text_bytes

ASCII_SPACES = " \t\n\v\f\r\x1c\x1d\x1e\x1f"  # what str.strip takes away of ASCII


def normalise(text: str) -> str:
    """NFC, outer whitespace stripped. ASCII needs no NFC (a tenth of the time)."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def sample_id(instruction: str, response: str) -> str:
    """Hex blake2b-128 of `instruction \\0 response`, both normalised: 32 digits. UnicodeEncodeError for lone surrogates."""
    return hashlib.blake2b(f"{instruction}\0{response}".encode(), digest_size=16).hexdigest()


def normalise_all(texts: pa.StringArray) -> pa.StringArray:
    """The same of many: those of ASCII at once, the others one by one, as two libraries seldom know the same version of Unicode."""
    others_N = pc.invert(pc.string_is_ascii(texts))
    others = [normalise(text) for text in texts.filter(others_N).to_pylist()]
    trimmed = pc.ascii_trim(texts, characters=ASCII_SPACES)
    return pc.replace_with_mask(trimmed, others_N, pa.array(others, pa.string())) if others else trimmed


def sample_ids(instructions: pa.StringArray, responses: pa.StringArray) -> pa.StringArray:
    """The same of many, none of them null: 0.7 us each."""
    joined = pc.binary_join_element_wise(instructions, responses, "\0")
    _, offsets, data = joined.buffers()
    edges, text = np.frombuffer(offsets, np.int32)[joined.offset :][: len(joined) + 1].tolist(), memoryview(data or b"")
    empty, digests = hashlib.blake2b(digest_size=16), list[bytes]()
    for begin, end in itertools.pairwise(edges):
        digest = empty.copy()  # a fifth less than a new one
        digest.update(text[begin:end])
        digests.append(digest.digest())
    places = np.arange(0, 32 * len(joined) + 1, 32, np.int32)
    return pa.StringArray.from_buffers(
        len(joined), pa.py_buffer(places), pa.py_buffer(binascii.hexlify(b"".join(digests)))
    )


def id_words(sample_ids: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """[N, 2]: sample_ids as pairs of 64-bit words, the leading one first; sorted as the hex strings are."""
    array = sample_ids.combine_chunks() if isinstance(sample_ids, pa.ChunkedArray) else sample_ids
    return np.frombuffer(binascii.unhexlify(text_bytes(array)), ">u8").astype(np.uint64).reshape(-1, 2)


def id_hex(words: Sequence[Any]) -> str:
    """The sample_id of two 64-bit words."""
    return f"{int(words[0]):016x}{int(words[1]):016x}"


def is_held_out(sample_ids: pa.ChunkedArray | pa.Array, fraction: float) -> NDArray[np.bool_]:
    """The same samples in every arm and for every seed: those whose leading 64 bits lie below fraction * 2^64."""
    return np.asarray(
        pc.less(sample_ids, f"{min(int(fraction * 2**64), 2**64 - 1):016x}").to_numpy(zero_copy_only=False)
    )


def draw(words_N2: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """[N] uniform 64-bit numbers, a function of (sample_id, seed) alone: splitmix64 of the second word, which the held-out split leaves alone."""
    mixed = words_N2[:, 1] + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))

"""From a line of a lake to a sample: parse, join columns, normalise, identify. A reject carries its reason."""

from __future__ import annotations

import binascii
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.ops.digests import text_bytes


@dataclass(frozen=True)
class Sample:
    sample_id: str
    instruction: str
    response: str
    carried: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Reject:
    reason: str


def parse_line(
    line: bytes, instruction: Sequence[str], response: Sequence[str], carry: Sequence[str] = ()
) -> Sample | Reject:
    """`instruction` and `response` name the fields joined for each, `carry` others. The reasons are those of `_rejected/`."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return Reject("invalid_utf8")
    except (ValueError, RecursionError):
        return Reject("not_json")
    if not isinstance(row, dict):
        return Reject("not_an_object")
    texts = []
    for name, fields in (("instruction", instruction), ("response", response)):
        if not any(field in row for field in fields):
            return Reject(f"no_{name}_column")
        values = [row[field] for field in fields if row.get(field) is not None]
        if not all(isinstance(value, str) for value in values):
            return Reject(f"{name}_not_text")
        texts.append(normalise("\n".join(value for value in values if value)))
        if not texts[-1]:
            return Reject(f"empty_{name}")
    return _identified(texts[0], texts[1], tuple(_as_text(row.get(field)) for field in carry))


def _as_text(value: Any) -> str | None:
    """Text as it is, anything else as its JSON: a column has one type, whatever the lines hold."""
    return value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _identified(instruction: str, response: str, carried: tuple[str | None, ...]) -> Sample | Reject:
    try:
        for text in filter(None, carried):
            text.encode()
        return Sample(sample_id(instruction, response), instruction, response, carried)
    except UnicodeEncodeError:
        return Reject("lone_surrogate")


def normalise(text: str) -> str:
    """NFC, outer whitespace stripped. ASCII needs no NFC (a tenth of the time)."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def sample_id(instruction: str, response: str) -> str:
    """Hex blake2b-128 of `instruction \\0 response`, both normalised: 32 digits. UnicodeEncodeError for lone surrogates."""
    return hashlib.blake2b(f"{instruction}\0{response}".encode(), digest_size=16).hexdigest()


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

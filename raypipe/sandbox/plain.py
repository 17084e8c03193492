"""Plain data between two processes that do not trust each other: frames of JSON in which other types are tagged.

Reading never runs code of the other side. What is no plain data becomes an Opaque, which equals nothing. Subclasses become what they
are at heart: a named tuple a tuple, a numpy number a number, an array nested lists.
"""

from __future__ import annotations

import json
import math
import os
import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Rational, Real
from typing import Any

MAX_FRAME = 64 << 20  # bytes
MAX_VALUES = 4_000_000  # in one value; a larger one is told by its fingerprint
MAX_DEPTH = 200
HEADER = struct.Struct(">I")
SAFE_INT = 1 << 62  # beyond it as hexadecimal: decimal digits take time with their square


class Opaque:
    """What is no plain data; equals nothing, itself neither."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Print(Opaque):
    """Of what is too large to be sent."""

    def __init__(self, fingerprint: int) -> None:
        super().__init__("too large to be sent")
        self.fingerprint = fingerprint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Print) and self.fingerprint == other.fingerprint

    __hash__ = Opaque.__hash__


def fingerprint(value: Any) -> int:
    """Python's hash, also of lists: equal values have the same, in processes that were started with the same PYTHONHASHSEED.

    TypeError for what holds a set, a dictionary or another thing that has none.
    """
    if isinstance(value, list):
        return hash(("list", *map(fingerprint, value)))
    try:
        return hash(value)
    except TypeError:
        if not isinstance(value, tuple):
            raise
        return hash(("tuple", *map(fingerprint, value)))


def packed(value: Any) -> Any:
    """As `pack`; a fingerprint of what is too large."""
    try:
        return pack(value)
    except TooLarge:
        return {"print": fingerprint(value)}


class Gone(Exception):
    """The other side closed its end, or sent what is no frame."""


class TooLate(Exception):
    """No answer in time."""


class TooLarge(ValueError):
    """More than MAX_VALUES, or than MAX_FRAME."""


def pack(value: Any) -> Any:
    """JSON for a value. ValueError where it is too deep, TooLarge where it is too large."""
    left = [MAX_VALUES]

    def one(value: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise TooLarge(f"more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} deep")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind in (float, str):
            return value
        if kind is int:
            return value if -SAFE_INT < value < SAFE_INT else {"int": hex(value)}
        return tagged(value, depth)

    def items(values: Any, depth: int) -> list[Any]:
        return [one(item, depth + 1) for item in values]

    def tagged(value: Any, depth: int) -> Any:
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value).hex()}
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, tuple):
            return {"tuple": items(tuple.__iter__(value), depth)}
        if isinstance(value, list):
            return items(list.__iter__(value), depth)
        if isinstance(value, dict):
            return {"dict": [[one(key, depth + 1), one(item, depth + 1)] for key, item in dict.items(value)]}
        if isinstance(value, (set, frozenset, type({}.keys()), type({}.items()))):
            return {"set": items(value, depth)}
        if isinstance(value, range):
            return {"range": items([value.start, value.stop, value.step], depth)}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, Decimal):
            return {"decimal": str(value)}
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return one(value.tolist(), depth + 1)
        if isinstance(value, Integral):
            return one(int(value), depth + 1)
        if isinstance(value, Rational):
            return {"fraction": [one(int(value.numerator), depth), one(int(value.denominator), depth)]}
        if isinstance(value, Real):
            return float(value)
        return {"opaque": f"{type(value).__module__}.{type(value).__qualname__}"[:100]}

    return one(value, 0)


def unpack(packed: Any) -> Any:
    """ValueError for what `pack` never makes: the other side may send anything."""
    try:
        return _unpacked(packed)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"no packed value: {error}") from error


def _unpacked(packed: Any) -> Any:
    if isinstance(packed, list):
        return [_unpacked(item) for item in packed]
    if isinstance(packed, dict):
        ((tag, content),) = packed.items()
        return TAGS[tag](content)
    return packed


TAGS: dict[str, Callable[[Any], Any]] = {
    "int": lambda content: int(content, 16),
    "bytes": bytes.fromhex,
    "tuple": lambda content: tuple(map(_unpacked, content)),
    "set": lambda content: set(map(_unpacked, content)),
    "dict": lambda content: {_unpacked(key): _unpacked(item) for key, item in content},
    "range": lambda content: range(*map(_unpacked, content)),
    "complex": lambda content: complex(*content),
    "decimal": Decimal,
    "fraction": lambda content: Fraction(*map(_unpacked, content)),
    "opaque": Opaque,
    "print": Print,
}


@dataclass(frozen=True)
class Pipe:
    """Frames in and out, each a value of JSON."""

    source: int  # file descriptors
    sink: int

    def send(self, value: Any, seconds: float = math.inf) -> None:
        """TooLate where it is not read in so many seconds, Gone where nobody reads; TooLarge above MAX_FRAME."""
        data = json.dumps(value).encode()
        if len(data) > MAX_FRAME:
            raise TooLarge(f"a frame of {len(data):,} bytes")
        rest, deadline = memoryview(HEADER.pack(len(data)) + data), time.monotonic() + seconds
        try:
            os.set_blocking(self.sink, False)
            while rest:
                _wait([], [self.sink], deadline)
                rest = rest[os.write(self.sink, rest) :]
        except OSError as error:
            raise Gone("nobody reads") from error

    def receive(self, seconds: float = math.inf) -> Any:
        """The next frame. TooLate after so many seconds; Gone at the end, or at what is no frame."""
        deadline = time.monotonic() + seconds
        (length,) = HEADER.unpack(self._read(HEADER.size, deadline))
        if length > MAX_FRAME:
            raise Gone("a frame too large")
        try:
            return json.loads(self._read(length, deadline))
        except (ValueError, RecursionError) as error:
            raise Gone("no frame") from error

    def _read(self, length: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < length:
            _wait([self.source], [], deadline)
            piece = os.read(self.source, min(length - len(data), 1 << 20))
            if not piece:
                raise Gone("closed")
            data += piece
        return bytes(data)


def _wait(sources: list[int], sinks: list[int], deadline: float) -> None:
    """Until one is ready. TooLate after the deadline."""
    left = deadline - time.monotonic()
    if left <= 0 or not any(select.select(sources, sinks, [], None if math.isinf(left) else left)):
        raise TooLate

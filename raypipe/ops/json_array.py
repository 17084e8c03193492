"""Elements of a JSON array of any length, found in a stream without parsing them.

Only strings, brackets and commas are looked at, so an element that is no JSON ends where the next one begins, and spoils no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

STRING = rb'(?:[^"\\]+|\\.)*+(")?'  # after its first quote; the group is missing where it goes on in the next chunk
TOKEN = re.compile(rb'"' + STRING + rb"|[][{},]", re.DOTALL)
REST = re.compile(STRING, re.DOTALL)


class Element(NamedTuple):
    offset: int  # of its first byte, in the stream
    data: bytes  # without space around it; what was kept of one that is not whole
    is_whole: bool  # False: it is longer than the limit


class Elements:
    """Feed it the stream, chunk by chunk; each gives the elements that end in it. Empty ones, as after a last comma, are left out."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of an element that are kept."""
        self.limit, self.depth, self.in_string, self.is_over = limit, 0, False, False
        self.place, self.escape = (
            0,
            b"",
        )  # of the chunk, in the stream; a backslash at its end, whose other half is to come
        self.offset, self.size, self.pieces = 0, 0, list[bytes]()  # of the element that is not complete

    def feed(self, chunk: bytes) -> Iterator[Element]:
        """Once it `is_over`, feed it no more; `begun` is then what stands after the array."""
        chunk, self.escape = self.escape + chunk, b""
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:
            chunk, self.escape = chunk[:-1], b"\\"
        at = begun = 0
        if self.in_string and (rest := REST.match(chunk)):
            at, self.in_string = rest.end(), rest[1] is None
        for token in TOKEN.finditer(chunk, at):
            char = token[0][:1]
            if char == b'"':
                self.in_string = token[1] is None
                continue
            self.depth += (char in b"[{") - (char in b"]}")
            if char == b"[" and self.depth == 1:
                begun = self._begins(token.end())
            elif self.depth == 0 or (char == b"," and self.depth == 1):
                yield from self._ends(chunk[begun : token.start()])
                begun = self._begins(token.end())
                if self.depth == 0:
                    self.is_over = True
                    break
        self._keep(chunk[begun:])
        self.place += len(chunk)

    @property
    def begun(self) -> bytes:
        """What is kept of the element that is not complete, or stands after the array."""
        return b"".join(self.pieces)

    def _begins(self, at: int) -> int:
        self.offset, self.size, self.pieces = self.place + at, 0, []
        return at

    def _keep(self, piece: bytes) -> None:
        self.pieces.append(piece[: max(0, self.limit - self.size)])
        self.size += len(piece)

    def _ends(self, piece: bytes) -> Iterator[Element]:
        self._keep(piece)
        if data := self.begun.strip():
            self.offset += len(self.begun) - len(self.begun.lstrip())
            yield Element(self.offset, data, self.size <= self.limit)

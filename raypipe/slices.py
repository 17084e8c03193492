"""The rows of a slice, as blocks, whatever its format: JSON lines and arrays, plain, gzip or zstd; Parquet; Arrow's IPC, as `datasets` saves.

The format is told by a file's first bytes; its name only says whether it may be cut (lake.CUT). A slice has the rows that begin in its bytes, so
every row is in one slice, wherever the cuts are. What cannot be read is a `Lost` block, never an exception, but for storage's own.
Memory: a few blocks, or for Arrow's IPC a record batch.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

from raypipe.lake import Slice
from raypipe.ops.blocks import RAW_BYTES, Block, Lost, Records, elements_of, lines_of
from raypipe.ops.json_array import Elements
from raypipe.ops.rows import Fields
from raypipe.store import storage_of

BLOCK_BYTES = 2 << 20  # that are parsed at once: they fit into a core's cache
ROW_BYTES = 32 << 20  # of a row of JSON at most: of more a tokenizer makes nothing that a model could read
EXPANSION = 250  # of a compressed file at most, and
EXPANSION_BYTES = 256 << 20  # what is beyond both is a bomb. Text seldom gets to 50
BLOCK_ROWS = 8_192  # of a table
PAGES_BYTES = 4 << 20  # of each column of a Parquet file that are read at once
UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OSError)  # what changed bytes lead to
GZIP, ZSTD, ARROW_FILE, ARROW_STREAM = NO_TEXT = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"ARROW1", b"\xff\xff\xff\xff")
ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*([{\]]|$)")


class _Broken(Exception):
    """Its argument is the reason."""


def read_slice(piece: Slice, fields: Fields, endpoint: str | None) -> Iterator[Block]:
    """Stopped where the object is seen to be another than the one listed; StorageError where storage refuses."""
    with storage_of(piece.uri, endpoint).stream(piece.uri, piece.size, piece.version) as file:
        head = file.read(4096)
        file.seek(0)
        if head.startswith(b"PAR1"):
            yield from _parquet(getattr(file, "raw", file), piece, fields)
        elif piece.start == 0:
            yield from _from_front(file, piece, head)
        elif not head.startswith(NO_TEXT) and not ARRAY.match(head):
            yield from _after_cut(file, piece)
        file.seek(0, io.SEEK_END)
        file.read(1)  # at the end of a file its version is looked at


def _from_front(file: BinaryIO, piece: Slice, head: bytes) -> Iterator[Block]:
    """What cannot be read from the middle on: of several slices of it, the first one has all."""
    if head.startswith(GZIP):
        yield from _rows_of(_chunks(gzip.GzipFile(fileobj=file), piece, "broken_gzip"), piece.uri)
    elif head.startswith(ZSTD):
        yield from _rows_of(_chunks(zstd.ZstdFile(file), piece, "broken_zstd"), piece.uri)
    elif head.startswith(ARROW_FILE) or (head.startswith(ARROW_STREAM) and head[7:8] == b"\0"):  # the schema's length
        yield from _arrow(file, piece.uri, is_file=head.startswith(ARROW_FILE))
    else:
        yield from _rows_of(_chunks(file, piece), piece.uri, end=piece.end)


def _chunks(file: Any, piece: Slice, broken: str = "") -> Iterator[bytes]:
    """Of a compressed file all that can be had, then _Broken; a bomb ends so too."""
    pieces, total = list[bytes](), 0
    try:
        while read := file.read1(BLOCK_BYTES):
            pieces.append(read)
            total += len(read)
            if broken and total > max(EXPANSION * piece.size, EXPANSION_BYTES):
                raise _Broken("expands_too_far")
            if sum(map(len, pieces)) >= BLOCK_BYTES:
                yield b"".join(pieces)
                pieces = []
    except (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError) as error:
        yield b"".join(pieces)
        raise _Broken(broken) from error
    yield b"".join(pieces)


def _rows_of(chunks: Iterator[bytes], uri: str, *, end: int | None = None) -> Iterator[Block]:
    """Of a text from its beginning: an array, and what comes after it, or lines."""
    first = next(chunks)
    chunks = itertools.chain([first], chunks)
    yield from _array(chunks, uri) if ARRAY.match(first) else _lines(chunks, uri, end=end)


def _after_cut(file: BinaryIO, piece: Slice) -> Iterator[Block]:
    """Lines that begin in the slice; which lines of the file they are is not known."""
    assert piece.end is not None
    file.seek(offset := piece.start - 1)
    while offset < piece.end and (read := file.readline(BLOCK_BYTES)):
        offset += len(read)
        if read.endswith(b"\n"):
            if offset < piece.end:
                yield from _lines(_chunks(file, piece), piece.uri, offset=offset, number=None, end=piece.end)
            return


def _lines(
    chunks: Iterator[bytes], uri: str, *, offset: int = 0, number: int | None = 1, end: int | None = None
) -> Iterator[Block]:
    """`chunks` begin at `offset`, with line `number`; lines from `end` on are another slice's."""
    for data, length, reason in _whole_lines(chunks):
        block = Lost(uri, reason, number, offset, data) if reason else lines_of(data, uri, offset, number, end)
        if len(block):
            yield block
        offset += length
        number = number and number + (1 if reason else _line_ends(data))
        if end is not None and offset >= end:
            return


def _line_ends(data: bytes) -> int:
    """A third of the time of `data.count`, where there are many."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def _whole_lines(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, int, str]]:
    """Text that ends where a line does, its length in the stream, and no reason. Or the beginning of a line that is too long, or of what broke off."""
    rest = b""
    try:
        for chunk in chunks:
            if whole := chunk.rfind(b"\n") + 1:
                lines = b"".join((rest, memoryview(chunk)[:whole]))
                yield lines, len(lines), ""
                rest = chunk[whole:]
                continue
            rest += chunk
            if len(rest) > ROW_BYTES:
                beginning, length = rest[:RAW_BYTES], len(rest)
                for chunk in chunks:
                    rest = chunk[chunk.find(b"\n") + 1 :] if b"\n" in chunk else b""
                    length += len(chunk) - len(rest)
                    if b"\n" in chunk:
                        break
                yield beginning, length, "too_long"
    except _Broken as broken:
        yield rest, len(rest), str(broken)
        return
    if rest:
        yield rest, len(rest), ""


def _array(chunks: Iterator[bytes], uri: str) -> Iterator[Block]:
    elements, number = Elements(ROW_BYTES), 1
    try:
        for chunk in chunks:
            for is_whole, found in itertools.groupby(elements.feed(chunk), lambda element: element.is_whole):
                some = list(found)
                if is_whole:
                    yield elements_of(some, uri, number)
                else:
                    yield from (Lost(uri, "too_long", number + n, one.offset, one.data) for n, one in enumerate(some))
                number += len(some)
            if elements.is_over:
                rest = itertools.chain([elements.begun], chunks)
                yield from _lines(rest, uri, offset=elements.offset, number=None)
                return
        yield Lost(uri, "unclosed_array", number, elements.offset, elements.begun)
    except _Broken as broken:
        yield Lost(uri, str(broken), number, elements.offset, elements.begun)


def _parquet(file: Any, piece: Slice, fields: Fields) -> Iterator[Block]:
    """Row groups that begin in the slice, a few pages of each column at a time."""
    try:
        parquet = pq.ParquetFile(pa.PythonFile(file, "r"), pre_buffer=False, buffer_size=PAGES_BYTES)
    except UNREADABLE:
        if piece.start == 0:
            yield Lost(piece.uri, "broken_parquet")
        return
    wanted = list(fields.paths)
    known = {path.partition(".")[0] for path in wanted} <= set(parquet.schema_arrow.names)
    number = 1
    for group in range(parquet.num_row_groups):
        about = parquet.metadata.row_group(group)
        if piece.start <= _begins(about) and (piece.end is None or _begins(about) < piece.end):
            yield from _row_group(parquet, group, wanted if known else None, piece.uri, number)
        number += about.num_rows


def _begins(group: pq.RowGroupMetaData) -> int:
    first = group.column(0)
    return int(first.dictionary_page_offset or first.data_page_offset)


def _row_group(
    parquet: pq.ParquetFile, group: int, columns: list[str] | None, uri: str, number: int
) -> Iterator[Block]:
    about, done = parquet.metadata.row_group(group), 0
    rows = min(max(1, BLOCK_BYTES * about.num_rows // max(1, about.total_byte_size)), BLOCK_ROWS)
    try:
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            yield Records(uri, pa.Table.from_batches([batch]), number + done)
            done += len(batch)
    except UNREADABLE:
        for first in range(done, about.num_rows, BLOCK_ROWS):
            yield Lost(uri, "broken_page", number + first, count=min(BLOCK_ROWS, about.num_rows - first))


def _arrow(file: BinaryIO, uri: str, *, is_file: bool) -> Iterator[Block]:
    number = 1
    try:
        for batch in _batches(pa.PythonFile(file, "r"), is_file):
            for first in range(0, len(batch), BLOCK_ROWS):
                yield Records(uri, pa.Table.from_batches([batch.slice(first, BLOCK_ROWS)]), number + first)
            number += len(batch)
    except UNREADABLE:
        yield Lost(uri, "broken_arrow", number)


def _batches(file: pa.PythonFile, is_file: bool) -> Iterator[pa.RecordBatch]:
    if is_file:
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)

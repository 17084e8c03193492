"""The lake: an ordered list of input slices, listed once per run, and the chain of digests that names them.

Order is that of the configured paths, then by name, so a lake that grows at its end keeps every slice it had, and with it
the name of every part made from it. A slice is one file; its identity is its path, size and modification time (ns), which
costs one `stat` a file and reads nothing.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from raypipe.errors import ConfigError, DataError
from raypipe.ops.digests import canonical_json

CHAIN_LENGTH = 12  # hex digits


@dataclass(frozen=True)
class Slice:
    uri: str
    size: int  # bytes
    version: str  # local: mtime_ns


@dataclass(frozen=True)
class Lake:
    """`chain[i]` digests slices 0..i; the last one identifies the lake."""

    slices: tuple[Slice, ...]
    chain: tuple[str, ...]

    @property
    def digest(self) -> str:
        return self.chain[-1]


def list_lake(paths: Sequence[str]) -> Lake:
    """Files, folders (all files below; names that start with . or _ are left out) or globs (`**` crosses folders), each named once."""
    uris = list(dict.fromkeys(uri for path in paths for uri in _expand(path)))
    stats = [os.stat(uri) for uri in uris]
    slices = tuple(Slice(uri, stat.st_size, str(stat.st_mtime_ns)) for uri, stat in zip(uris, stats, strict=True))
    if not any(piece.size for piece in slices):
        raise DataError(
            f"ingest.paths: the {len(slices)} files found are all empty. Wanted lines of JSON. First: {uris[0]}"
        )
    return Lake(slices, chain_digests(slices))


def chain_digests(slices: Sequence[Slice]) -> tuple[str, ...]:
    chain, last = [], ""
    for piece in slices:
        last = hashlib.sha256((last + canonical_json(asdict(piece))).encode()).hexdigest()[:CHAIN_LENGTH]
        chain.append(last)
    return tuple(chain)


def _is_marker(uri: str) -> bool:
    """Names like _SUCCESS are about a data set, not of it."""
    return os.path.basename(uri).startswith("_")


def _expand(path: str) -> list[str]:
    pattern = f"{glob.escape(path)}/**" if os.path.isdir(path) else path
    found = glob.glob(pattern, recursive=True)
    uris = (
        [path] if os.path.isfile(path) else sorted(uri for uri in found if os.path.isfile(uri) and not _is_marker(uri))
    )
    if not uris:
        raise ConfigError(
            f"ingest.paths: {path}: no such file, and no file matches. Check the path (working directory: {os.getcwd()})"
        )
    return uris

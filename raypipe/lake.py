"""The lake: an ordered list of input slices, listed once per run, and the chain of digests that names them.

Order is that of the configured paths, then by name, so a lake that grows at its end keeps every slice it had, and with it
the name of every part made from it. A slice is one file or object; its identity is its URI, size and version (modification
time in ns, or etag), which a listing gives without reading anything.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from fsspec.utils import glob_translate

from raypipe.errors import ConfigError, DataError
from raypipe.local import Local
from raypipe.ops.digests import canonical_json
from raypipe.s3 import S3, Object

CHAIN_LENGTH = 12  # hex digits
WILDCARD = re.compile(r"[*?\[]")
PARTITION = re.compile(r"/([^/=]+)=([^/]*)(?=/)")


@dataclass(frozen=True, slots=True)
class Slice:
    uri: str
    size: int  # bytes
    version: str  # local: mtime_ns; S3: etag


@dataclass(frozen=True)
class Lake:
    """`chain[i]` digests slices 0..i; the last one identifies the lake."""

    slices: tuple[Slice, ...]
    chain: tuple[str, ...]

    @property
    def digest(self) -> str:
        return self.chain[-1]


Partitions = Mapping[str, Sequence[str]]


def list_lake(paths: Sequence[str], *, partitions: Partitions | None = None, endpoint: str | None = None) -> Lake:
    """Files, folders (all files below; names that start with . or _ are left out) or globs (`**` crosses folders), each named once.

    `partitions` keeps of hive-style names (`.../language=python/...`) those whose value of each key is listed.
    """
    slices = list_slices("ingest.paths", paths, partitions=partitions, endpoint=endpoint)
    if not any(piece.size for piece in slices):
        raise DataError(
            f"ingest.paths: the {len(slices)} files found are all empty. Wanted lines of JSON. First: {slices[0].uri}"
        )
    return Lake(slices, chain_digests(slices))


def list_slices(
    key: str, paths: Sequence[str], *, partitions: Partitions | None = None, endpoint: str | None = None
) -> tuple[Slice, ...]:
    """In order. ConfigError, naming `key`, for a path that nothing is under."""
    slices: dict[str, Slice] = {}
    for path in paths:
        found = [piece for piece in _expand(path, endpoint) if _wanted(piece.uri, partitions or {})]
        if not found:
            raise ConfigError(f"{key}: {path}: no such file, and no file matches. {_hint(path, partitions)}")
        slices |= {piece.uri: piece for piece in found if piece.uri not in slices}
    return tuple(slices.values())


def chain_digests(slices: Sequence[Slice]) -> tuple[str, ...]:
    chain, last = [], ""
    for piece in slices:
        made_of = {"uri": piece.uri, "size": piece.size, "version": piece.version}
        last = hashlib.sha256((last + canonical_json(made_of)).encode()).hexdigest()[:CHAIN_LENGTH]
        chain.append(last)
    return tuple(chain)


def _expand(path: str, endpoint: str | None) -> Iterator[Slice]:
    return _expand_s3(path, S3(endpoint)) if path.startswith("s3://") else _expand_local(path)


def _expand_local(path: str) -> Iterator[Slice]:
    if os.path.isfile(path):
        uris = [path]
    else:
        pattern = f"{glob.escape(path)}/**" if os.path.isdir(path) else path
        found = glob.glob(pattern, recursive=True)
        uris = sorted(uri for uri in found if not _is_marker(uri, path) and os.path.isfile(uri))
    for uri in uris:
        if file := Local().find(uri):
            yield Slice(uri, file.size, file.version)


def _expand_s3(path: str, storage: S3) -> Iterator[Slice]:
    """One paged listing below what stands before the first wildcard."""
    objects: Iterator[Object]
    if wildcard := WILDCARD.search(path):
        matches = re.compile(glob_translate(_as_local(path))).match
        objects = (found for found in storage.starting_with(path[: wildcard.start()]) if matches(found.uri))
    elif found := storage.find(path) if path.count("/") > 2 else None:
        objects = iter([found])
    else:
        objects = storage.walk(path)
    for found in objects:
        if found.uri == path or not _is_marker(found.uri, path):
            yield Slice(found.uri, found.size, found.version)


def _as_local(path: str) -> str:
    """A `**` beside other letters is a `*` in a local glob; fsspec refuses it."""
    return "/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in path.split("/"))


def _is_marker(uri: str, path: str) -> bool:
    """Names like _SUCCESS and _temporary/ are about a data set, not of it; those with a dot are hidden."""
    wildcard = WILDCARD.search(path)
    fixed = path[: wildcard.start()].rpartition("/")[0] if wildcard else path
    return any(name.startswith(("_", ".")) for name in uri[len(fixed) :].split("/"))


def _wanted(uri: str, partitions: Partitions) -> bool:
    if not partitions:
        return True
    values = {key: unquote(value) for key, value in PARTITION.findall(uri)}  # Hive and Spark quote what is no file name
    return all(values.get(key) in allowed for key, allowed in partitions.items())


def _hint(path: str, partitions: Partitions | None) -> str:
    where = (
        "Check bucket and prefix" if path.startswith("s3://") else f"Check the path (working directory: {os.getcwd()})"
    )
    return where + (f", and ingest.partitions: {dict(partitions)}" if partitions else "")

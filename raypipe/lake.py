"""The lake: an ordered list of input slices, listed once per run, and the chain of digests that names them.

Order is that of the configured paths, then by name, so a lake that grows at its end keeps every slice it had, and with it
the name of every part made from it. A slice is one file or object, or some of the bytes of a large one; its identity is its URI, size,
version (modification time in ns, or etag) and bytes, which a listing gives without reading anything.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from urllib.parse import unquote

from fsspec.utils import glob_translate

from raypipe.errors import ConfigError, DataError
from raypipe.local import Local
from raypipe.ops.digests import canonical_json
from raypipe.s3 import S3, Object

CHAIN_LENGTH = 12  # hex digits
WILDCARD = re.compile(r"[*?\[]")
PARTITION = re.compile(r"/([^/=]+)=([^/]*)(?=/)")
CUT = (".jsonl", ".ndjson", ".parquet")  # names of files that can be read from the middle on
CUT_BYTES = 64 << 20
ALONE = 1_000  # slices at the beginning, whatever their size
SMALL_BYTES, GROUP_BYTES = 1 << 18, 1 << 20  # later ones smaller than the first are grouped, until they are the second
# in a folder: what lies beside data, also in one that `datasets` wrote
NO_DATA = re.compile(
    r"(^|/)(README|LICENSE|NOTICE|dataset_infos?\.json|dataset_dict\.json|state\.json)$"
    r"|\.(md|txt|rst|csv|tsv|ya?ml|toml|py|ipynb|html?|pdf|png|jpe?g|svg|log|lock|zip|tar|tgz|tar\.gz|pkl|pt|bin|safetensors|crc|md5|sha256)$",
    re.IGNORECASE,
)
log = logging.getLogger("raypipe")


@dataclass(frozen=True, slots=True)
class Slice:
    """A file, or what begins in its bytes from `start` on, before `end`."""

    uri: str
    size: int  # bytes of the whole file
    version: str  # local: mtime_ns; S3: etag
    start: int = 0
    end: int | None = None  # to the end of the file


@dataclass(frozen=True)
class Lake:
    """`chain[i]` digests slices 0..i; the last one identifies the lake."""

    slices: tuple[Slice, ...]
    chain: tuple[str, ...]

    @property
    def digest(self) -> str:
        return self.chain[-1]

    @property
    def files(self) -> list[Slice]:
        """Each once."""
        return [piece for piece in self.slices if piece.start == 0]

    @property
    def num_bytes(self) -> int:
        return sum(piece.size for piece in self.files)

    def groups(self) -> list[range]:
        """Places of the slices that are ingested together. A slice is alone, but for small files where there are many.

        Where a group ends follows from what is before its end, so a lake that grows keeps all its groups but, perhaps, the last.
        """
        groups, open_bytes = list[range](), GROUP_BYTES
        for place, piece in enumerate(self.slices):
            is_small = place >= ALONE and piece.size < SMALL_BYTES
            if is_small and open_bytes < GROUP_BYTES:
                groups[-1] = range(groups[-1].start, place + 1)
            else:
                groups.append(range(place, place + 1))
                open_bytes = 0 if is_small else GROUP_BYTES
            open_bytes += piece.size
        return groups


Partitions = Mapping[str, Sequence[str]]


def list_lake(paths: Sequence[str], *, partitions: Partitions | None = None, endpoint: str | None = None) -> Lake:
    """Files, folders (all files below; names that start with . or _, and what is no data, are left out) or globs (`**` crosses folders), each named once.

    `partitions` keeps of hive-style names (`.../language=python/...`) those whose value of each key is listed.
    """
    files = list_slices("ingest.paths", paths, partitions=partitions, endpoint=endpoint)
    if not any(file.size for file in files):
        raise DataError(f"ingest.paths: the {len(files)} files found are all empty. Wanted rows. First: {files[0].uri}")
    slices = tuple(piece for file in files for piece in _cut(file))
    return Lake(slices, chain_digests(slices))


def _cut(file: Slice) -> Iterator[Slice]:
    if file.size <= CUT_BYTES or not file.uri.lower().endswith(CUT):
        yield file
        return
    for start in range(0, file.size, CUT_BYTES):
        yield replace(file, start=start, end=min(start + CUT_BYTES, file.size))


def list_slices(
    key: str, paths: Sequence[str], *, partitions: Partitions | None = None, endpoint: str | None = None
) -> tuple[Slice, ...]:
    """In order. ConfigError, naming `key`, for a path that nothing is under."""
    slices: dict[str, Slice] = {}
    for path in paths:
        found = [piece for piece in _expand(path, endpoint) if _wanted(piece.uri, partitions or {})]
        found = _without_others(key, path, found)
        if not found:
            raise ConfigError(f"{key}: {path}: no such file, and no file matches. {_hint(path, partitions)}")
        slices |= {piece.uri: piece for piece in found if piece.uri not in slices}
    return tuple(slices.values())


def chain_digests(slices: Sequence[Slice]) -> tuple[str, ...]:
    chain, last = [], ""
    for piece in slices:
        last = hashlib.sha256((last + canonical_json(asdict(piece))).encode()).hexdigest()[:CHAIN_LENGTH]
        chain.append(last)
    return tuple(chain)


def place_and_chain(part: str) -> tuple[int, str]:
    """Of the last slice that is in a part of ingest, as its name has them."""
    _, place, _, chain = part.removesuffix(".parquet").removesuffix("-end").split("-")
    return int(place), chain


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


def _without_others(key: str, path: str, found: list[Slice]) -> list[Slice]:
    """Of a folder, what may be data. What was named, or matches what was given, is taken at its word."""
    if WILDCARD.search(path):
        return found
    others = [piece.uri for piece in found if piece.uri != path and NO_DATA.search(piece.uri)]
    if not others:
        return found
    said = f"{key}: {path}: {len(others)} files are no data that raypipe reads (JSON lines or arrays, Parquet, Arrow), such as {others[0]}"
    if len(others) == len(found):
        raise ConfigError(f"{said}, and there are no others. Convert them, or name them by a glob to have them read")
    log.warning("%s: left out", said)
    return [piece for piece in found if piece.uri not in set(others)]


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

"""Objects that are files. A commit is a temporary file, flushed to the disk and linked into place.

Names that start with a dot are temporary and are never listed. A writer that is killed leaves one behind; `walk` with
`hidden` finds it for `raypipe gc`.
"""

from __future__ import annotations

import errno
import io
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from raypipe.errors import Stopped, StorageError

# of rmdir: the folder is in use, or is not ours to remove
KEPT_FOLDER = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EBUSY, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class File:
    uri: str
    size: int
    version: str  # mtime_ns
    age_s: float

    @staticmethod
    def at(uri: str) -> File:
        stat = os.stat(uri)
        return File(uri, stat.st_size, str(stat.st_mtime_ns), time.time() - stat.st_mtime)


@dataclass(frozen=True)
class Local:
    def names(self, uri: str, prefix: str = "") -> Iterator[str]:
        with refusals(uri), suppress(FileNotFoundError):
            there = os.listdir(uri) if os.path.isdir(uri) else []
            yield from (name for name in there if name.startswith(prefix) and not name.startswith("."))

    def walk(self, uri: str, *, hidden: bool = False) -> Iterator[File]:
        for entry in _entries(uri):
            if entry.is_dir(follow_symlinks=False):
                yield from self.walk(entry.path, hidden=hidden)
            elif (hidden or not entry.name.startswith(".")) and (found := self.find(entry.path)):  # not removed since
                yield found

    def find(self, uri: str) -> File | None:
        with refusals(uri), suppress(FileNotFoundError):
            return File.at(uri) if os.path.isfile(uri) else None
        return None

    def get(self, uri: str) -> bytes | None:
        with refusals(uri), suppress(FileNotFoundError):
            return Path(uri).read_bytes() if os.path.isfile(uri) else None
        return None

    def open(self, uri: str) -> BinaryIO:
        with refusals(uri):
            return open(uri, "rb")

    def stream(self, uri: str, size: int, version: str) -> BinaryIO:
        with refusals(uri):
            return io.BufferedReader(_Watched(uri, version), 1 << 20)

    def put(self, uri: str, data: bytes) -> bool:
        with _temporary(uri) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(file.name, uri)
            except FileExistsError:
                return False
        return True

    def replace(self, uri: str, data: bytes) -> None:
        with self.create(uri) as file:
            file.write(data)

    @contextmanager
    def create(self, uri: str) -> Iterator[BinaryIO]:
        """Whoever is given the file may close it."""
        with _temporary(uri) as file:
            yield file
            file.close()
            with open(file.name, "rb") as whole:
                os.fsync(whole.fileno())
            os.replace(file.name, uri)

    def delete(self, uri: str) -> None:
        """Also its folder, where that is empty now: on S3 there are no folders."""
        with refusals(uri):
            Path(uri).unlink(missing_ok=True)
            try:
                os.rmdir(os.path.dirname(uri))
            except OSError as error:
                if error.errno not in KEPT_FOLDER:
                    raise


class _Watched(io.FileIO):
    """A file that must not change while it is read: looked at before its first byte and after its last."""

    def __init__(self, uri: str, version: str) -> None:
        super().__init__(uri)
        self.version = version
        self._check()

    def readinto(self, buffer: Any) -> int | None:
        with refusals(str(self.name)):
            count = super().readinto(buffer)
        if not count:
            self._check()
        return count

    def readall(self) -> bytes:
        """By which a buffered file reads all there is."""
        with refusals(str(self.name)):
            data = super().readall()
        self._check()
        return data

    def _check(self) -> None:
        now = str(os.fstat(self.fileno()).st_mtime_ns)
        if now != self.version:
            raise Stopped(changed(str(self.name), self.version, now))


def _entries(uri: str) -> list[os.DirEntry[str]]:
    """In the order of the paths that they stand for: x.y before x/y, as on S3."""
    with refusals(uri), suppress(FileNotFoundError, NotADirectoryError), os.scandir(uri) as entries:
        return sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False))
    return []


def changed(uri: str, listed: str, now: str) -> str:
    return (
        f"{uri}: changed since the lake was listed (version {listed} then, {now} now). Run again when nobody writes there: "
        "the lake is listed anew, and parts of unchanged files before it are kept"
    )


@contextmanager
def _temporary(uri: str) -> Iterator[BinaryIO]:
    folder, _, leaf = uri.rpartition("/")
    temporary = f"{folder}/.{leaf}.{uuid.uuid4().hex}"
    with refusals(uri):
        os.makedirs(folder, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
        finally:
            Path(temporary).unlink(missing_ok=True)


_REMEDY = {
    errno.EACCES: "Give this user the right to it, or choose another place",
    errno.EPERM: "Give this user the right to it, or choose another place",
    errno.EROFS: "The file system is read-only: choose another storage.root, or DIR",
    errno.ENOSPC: "The disk is full: free space and run again, committed parts are kept",
    errno.EDQUOT: "The quota is used up: free space and run again, committed parts are kept",
    errno.ENOTDIR: "A part of this path is a file, wanted a folder: choose another storage.root, or DIR",
    errno.EEXIST: "A file stands where a folder is wanted: choose another storage.root, or DIR",
    errno.ENOENT: "It is not there. Was it removed while a run used it?",
}


@contextmanager
def refusals(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDY.get(error.errno or 0, "Run again when storage answers, committed parts are kept")
        raise StorageError(f"{uri}: storage refuses: {error.strerror or error}. {remedy}") from error

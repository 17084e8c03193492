"""A folder on storage: objects written once, whole or not at all.

`put` is the only way a stage commits: a temporary file linked into place, so that of two writers one wins and neither
leaves half an object behind. "Already there" is success, because what is put under a name is a function of its inputs.
Names that start with a dot are temporary and are never listed.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from raypipe.errors import StorageError


@dataclass(frozen=True)
class Folder:
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.path}/{name}")

    def uri(self, name: str) -> str:
        return f"{self.path}/{name}"

    def has(self, name: str) -> bool:
        return os.path.exists(self.uri(name))

    def list(self) -> list[str]:
        """Names directly inside, sorted; nothing where the folder is not there yet."""
        if not os.path.isdir(self.path):
            return []
        with _refusals(self.path):
            return sorted(name for name in os.listdir(self.path) if not name.startswith("."))

    def read(self, name: str) -> bytes:
        with _refusals(self.uri(name)):
            return Path(self.uri(name)).read_bytes()

    def open(self, name: str) -> pa.NativeFile:
        """For random access, as a Parquet reader needs it."""
        with _refusals(self.uri(name)):
            return pa.OSFile(self.uri(name))

    def put(self, name: str, data: bytes) -> bool:
        """Commit an object; False where the name was taken already (the old content stays)."""
        with self._temporary(name, data) as temporary:
            try:
                os.link(temporary, self.uri(name))
            except FileExistsError:
                return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Overwrite an object whole: only for run files and what train keeps for itself."""
        with self._temporary(name, data) as temporary:
            os.replace(temporary, self.uri(name))

    @contextmanager
    def _temporary(self, name: str, data: bytes) -> Iterator[str]:
        folder, _, leaf = self.uri(name).rpartition("/")
        temporary = f"{folder}/.{leaf}.{uuid.uuid4().hex}"
        with _refusals(self.uri(name)):
            os.makedirs(folder, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
            finally:
                Path(temporary).unlink(missing_ok=True)


_REMEDY = {
    errno.EACCES: "Give this user the right to it, or choose another storage.root",
    errno.EPERM: "Give this user the right to it, or choose another storage.root",
    errno.EROFS: "The file system is read-only: choose another storage.root",
    errno.ENOSPC: "The disk is full: free space and run again, committed parts are kept",
    errno.ENOTDIR: "A part of this path is a file, wanted a folder: choose another storage.root",
    errno.EEXIST: "A file stands where a folder is wanted: choose another storage.root",
    errno.ENOENT: "It is not there. Was it removed while a run used it?",
}


@contextmanager
def _refusals(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDY.get(error.errno or 0, "Run again when storage answers, committed parts are kept")
        raise StorageError(f"{uri}: storage refuses: {error.strerror or error}. {remedy}") from error

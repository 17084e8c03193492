"""A folder on storage: objects written once, whole or not at all.

`put` is the only way a stage commits: of two writers one wins, and neither leaves half an object behind. "Already there" is
success, because what is put under a name is a function of its inputs. What a storage must do is `Storage`; raypipe has two,
`Local` and `S3`, and a folder looks the same on both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from raypipe.errors import ConfigError, StorageError
from raypipe.local import Local
from raypipe.s3 import S3


class Found(Protocol):
    """An object as a listing shows it. `version` is another one whenever the content is: S3's etag, a file's mtime_ns."""

    @property
    def uri(self) -> str: ...
    @property
    def size(self) -> int: ...  # bytes
    @property
    def version(self) -> str: ...
    @property
    def age_s(self) -> float: ...  # by the storage's own clock


class Storage(Protocol):
    """Objects by URI. Every method raises StorageError where storage refuses, Stopped where it keeps failing."""

    def names(self, uri: str, prefix: str = "") -> Iterator[str]:
        """Of objects and folders directly inside that start so, in any order; nothing where there is no such folder."""

    def walk(self, uri: str) -> Iterator[Found]:
        """Every object below a folder, by name, in constant memory."""

    def find(self, uri: str) -> Found | None: ...

    def get(self, uri: str) -> bytes | None: ...

    def open(self, uri: str) -> BinaryIO:
        """For random access, as a Parquet reader needs it."""

    def stream(self, uri: str, size: int, version: str) -> BinaryIO:
        """From front to back; Stopped as soon as the object is seen to be another than the one listed."""

    def put(self, uri: str, data: bytes) -> bool:
        """Create; False, and nothing written, where the name is taken."""

    def replace(self, uri: str, data: bytes) -> None: ...

    def create(self, uri: str) -> AbstractContextManager[BinaryIO]:
        """A file of any size, which is put there, whole, when the context ends well."""

    def delete(self, uri: str) -> None: ...


def storage_of(uri: str, endpoint: str | None = None) -> Storage:
    return S3(endpoint) if uri.startswith("s3://") else Local()


def location(path: str) -> str:
    """A URI or an absolute local path, without a slash at its end; ConfigError for storage that raypipe does not speak."""
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|s3:", path):
        if not re.match("s3://[^/]", path):
            raise ConfigError(
                f"{path}: storage {scheme[0]} is not supported. Give a folder or s3://bucket/prefix (for other stores that "
                "speak S3, set storage.endpoint)"
            )
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path))


@dataclass(frozen=True)
class Folder:
    path: str
    storage: Storage = field(default_factory=Local)

    @staticmethod
    def at(path: str, endpoint: str | None = None) -> Folder:
        return Folder(location(path), storage_of(path, endpoint))

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.uri(name), self.storage)

    def uri(self, name: str) -> str:
        return f"{self.path}/{name}"

    def list(self, prefix: str = "") -> list[str]:
        """Names directly inside that start so, sorted; nothing where the folder is not there yet."""
        return sorted(self.storage.names(self.path, prefix))

    def walk(self) -> Iterator[Found]:
        return self.storage.walk(self.path)

    def has(self, name: str) -> bool:
        return self.storage.find(self.uri(name)) is not None

    def find(self, name: str) -> bytes | None:
        return self.storage.get(self.uri(name))

    def read(self, name: str) -> bytes:
        if (data := self.find(name)) is None:
            raise StorageError(f"{self.uri(name)}: it is not there. Was it removed while a run used it?")
        return data

    def open(self, name: str) -> BinaryIO:
        return self.storage.open(self.uri(name))

    def put(self, name: str, data: bytes) -> bool:
        """Commit an object; False where the name was taken already (the old content stays)."""
        return self.storage.put(self.uri(name), data)

    def replace(self, name: str, data: bytes) -> None:
        """Overwrite an object whole: only for run files and what train keeps for itself."""
        self.storage.replace(self.uri(name), data)

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """As `replace`, for what is too large to hold in memory."""
        return self.storage.create(self.uri(name))

    def delete(self, name: str) -> None:
        """Remove an object; no error where it is not there."""
        self.storage.delete(self.uri(name))

"""Checkpoints: torch's distributed ones, on whatever the output folder is on. Every rank writes its own shard, in a thread.

`.metadata` is written last, by rank 0, and is what makes one whole: a checkpoint without it is never resumed. A checkpoint is a
step and the digest of the plan that the step counts in, beside weights and the optimiser's state.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, Protocol

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

KEPT = 2
FOLDER = "checkpoints"


class Output(Protocol):
    """A folder whose objects are written whole or not at all."""

    def __truediv__(self, name: str) -> Output: ...
    def list(self) -> list[str]: ...
    def has(self, name: str) -> bool: ...
    def find(self, name: str) -> bytes | None: ...
    def open(self, name: str) -> BinaryIO: ...
    def create(self, name: str) -> AbstractContextManager[BinaryIO]: ...
    def replace(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...


def save(state: dict[str, Any], out: Output, step: int, group: dist.ProcessGroup) -> Future[Any]:
    """Copies the state, then writes it in a thread, whose collectives are on `group`, which nothing else may use meanwhile.

    A collective of all ranks; so is waiting for its result.
    """
    writer = FileSystemWriter(_name(step), sync_files=False)
    writer.fs, writer.path = _Objects(out / FOLDER), _name(step)
    stager = DefaultStager(StagingOptions(False, False, False, False))  # the writer's own does not copy a CPU's tensors
    saving: Future[Any] = dcp.async_save(state, storage_writer=writer, process_group=group, async_stager=stager)
    saving.add_done_callback(lambda _: stager.close())
    return saving


def load(state: dict[str, Any], out: Output, step: int) -> None:
    """Into the tensors of `state`, in place of its other values; a collective of all ranks, of any number."""
    reader = FileSystemReader(_name(step))
    reader.fs, reader.path = _Objects(out / FOLDER), _name(step)
    dcp.load(state, storage_reader=reader)


def whole(out: Output) -> list[int]:
    """Steps with a whole checkpoint, in order."""
    steps = [int(name.removeprefix("step-")) for name in (out / FOLDER).list()]
    return sorted(step for step in steps if (out / FOLDER).has(f"{_name(step)}/.metadata"))


def prune(out: Output) -> None:
    """Keep the newest; what makes one whole goes first."""
    for step in whole(out)[:-KEPT]:
        folder = out / FOLDER / _name(step)
        for name in (".metadata", *folder.list()):
            folder.delete(name)


def _name(step: int) -> str:
    return f"step-{step:08d}"


class _Objects(FileSystemBase):  # type: ignore[misc]
    """An output folder as torch's checkpoints want a file system; paths are names inside it."""

    def __init__(self, folder: Output) -> None:
        self.folder = folder

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with self.folder.create(str(path)) if "w" in mode else self.folder.open(str(path)) as stream:
            yield stream

    def concat_path(self, path: Any, suffix: str) -> str:
        return f"{path}/{suffix}"

    def rename(self, path: Any, new_path: Any) -> None:
        self.folder.replace(str(new_path), self.folder.find(str(path)) or b"")
        self.folder.delete(str(path))

    def init_path(self, path: Any) -> str:
        return str(path)

    def mkdir(self, path: Any) -> None:
        """Folders are there as soon as something is in them."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def exists(self, path: Any) -> bool:
        return self.folder.has(str(path))

    def rm_file(self, path: Any) -> None:
        self.folder.delete(str(path))

"""Reading ahead: objects are fetched in threads before they are asked for, as a GET takes longer than what is made of a light part.

They are decoded where they are asked for: several threads that decode at once take more CPU seconds than one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from raypipe.part import Table
from raypipe.store import Folder

AHEAD, THREADS = 8, 8  # objects, and of them at once


@contextmanager
def read_ahead(inputs: Sequence[Table], parts: Sequence[str]) -> Iterator[list[Table]]:
    """The same tables, to read these parts of, each once and in this order."""
    with ThreadPoolExecutor(THREADS) as threads:
        yield [replace(table, folder=_Ahead.of(table.folder, parts, threads)) for table in inputs]


@dataclass(frozen=True)
class _Ahead(Folder):
    names: Iterator[str] = field(kw_only=True)  # not asked for yet
    threads: ThreadPoolExecutor = field(kw_only=True)
    coming: dict[str, Future[bytes]] = field(default_factory=dict)

    @staticmethod
    def of(folder: Folder, names: Sequence[str], threads: ThreadPoolExecutor) -> _Ahead:
        ahead = _Ahead(folder.path, folder.storage, names=iter(names), threads=threads)
        ahead._ask(AHEAD)
        return ahead

    def _ask(self, count: int) -> None:
        for name in itertools.islice(self.names, count):
            self.coming[name] = self.threads.submit(super().read, name)

    def read(self, name: str) -> bytes:
        self._ask(1)
        return self.coming.pop(name).result()

"""A storage in memory: a `Shelf` that processes share, each through a `Memory` of its own, and may die at any operation of. A clock, too, is the shelf's."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

from hypothesis import strategies as st

from raypipe.errors import Stopped, StorageError
from raypipe.local import File, changed


class Crash(BaseException):
    """The process is killed: nothing that it does from now on reaches the shelf, its `finally` included."""


@dataclass
class Shelf:
    """`watch` is called after every change, so what it asserts holds at every instant."""

    watch: Callable[["Shelf"], object] = lambda shelf: None
    objects: dict[str, bytes] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)  # when
    stored: dict[str, list[bytes]] = field(
        default_factory=lambda: defaultdict(list)
    )  # all that was ever there, in order
    offered: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))  # to `put`, accepted or not
    now: float = 0.0

    def store(self, uri, data):
        self.objects[uri], self.written[uri] = data, self.now
        self.stored[uri].append(data)
        self.watch(self)

    def item(self, uri):
        data = self.objects[uri]
        return File(uri, len(data), hashlib.md5(data).hexdigest(), self.now - self.written[uri])


@dataclass(eq=False)
class Memory:
    """One process's way to the shelf; a `Storage`. A failure other than Crash is raised once, and the process goes on."""

    shelf: Shelf
    fails_at: int | None = None  # 2 n: before operation n, 2 n + 1: after it
    failure: type[BaseException] = Crash
    lost_answers: bool = False  # every put needs a second try, which finds the name taken
    pause: Callable[[], object] = lambda: None
    operations: int = 0
    dead: bool = False

    @contextmanager
    def _operation(self):
        if not self.dead:
            self.pause()
        if self.dead:  # also by another of its threads in the pause
            raise Crash
        place, self.operations = 2 * self.operations, self.operations + 1
        self._fail(place)
        yield
        self._fail(place + 1)

    def _fail(self, place):
        if place == self.fails_at:
            self.dead = self.failure is Crash
            raise self.failure(f"{'after' if place % 2 else 'before'} operation {place // 2}")

    def names(self, uri, prefix=""):
        with self._operation():
            below = (name.removeprefix(f"{uri}/") for name in self.shelf.objects if name.startswith(f"{uri}/{prefix}"))
            return iter({name.partition("/")[0] for name in below})

    def walk(self, uri):
        with self._operation():
            return iter([self.shelf.item(name) for name in sorted(self.shelf.objects) if name.startswith(f"{uri}/")])

    def find(self, uri):
        with self._operation():
            return self.shelf.item(uri) if uri in self.shelf.objects else None

    def get(self, uri):
        with self._operation():
            return self.shelf.objects.get(uri)

    def open(self, uri):
        if (data := self.get(uri)) is None:
            raise StorageError(f"{uri}: it is not there")
        return io.BytesIO(data)

    def stream(self, uri, size, version):
        if (now := self.shelf.item(uri).version) != version:
            raise Stopped(changed(uri, version, now))
        return self.open(uri)

    def put(self, uri, data):
        with self._operation():
            self.shelf.offered[uri].append(data)
            if uri in self.shelf.objects:
                return False
            self.shelf.store(uri, data)
            return not self.lost_answers

    def replace(self, uri, data):
        with self._operation():
            self.shelf.store(uri, data)

    @contextmanager
    def create(self, uri):
        yield (file := io.BytesIO())
        self.replace(uri, file.getvalue())

    def delete(self, uri):
        with self._operation():
            self.shelf.objects.pop(uri, None)
            self.shelf.watch(self.shelf)


FAULTY = {"fails_at": st.integers(0, 999), "failure": st.sampled_from([Crash, Stopped]), "lost_answers": st.booleans()}

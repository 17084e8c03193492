"""A storage in memory: a `Shelf` that processes share, each through a `Memory` of its own, and may die at any operation of.

`Turns` runs several processes as threads of which one moves at a time, from operation to operation, in an order that a test
draws. Sleeping costs nothing: the clock is the shelf's.
"""

import hashlib
import io
import math
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

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


@dataclass(eq=False)
class Ticket:
    wake: float
    or_when: Callable[[], bool]
    turn: threading.Event = field(default_factory=threading.Event)


class Turns:
    """`choices` are places among the threads that can move, in the order in which they came; then it is who wakes first.

    Who is not chosen when it could wake is late, as a stalled process is. Also in place of `threading` and `time` of a module.
    """

    def __init__(self, shelf, choices=()):
        self.shelf, self.choices, self.waiting = shelf, iter(choices), []

    def run(self, *functions):
        """What each was ended by: None, Crash or Stopped; anything else is raised."""
        futures = [self.spawn(function) for function in functions]
        self._next()
        errors = [future.exception(timeout=60) for future in futures]
        for error in errors:
            if not isinstance(error, Crash | Stopped | None):
                raise error
        return errors

    def spawn(self, function):
        ticket, future = self._ticket(0.0), Future()

        def body():
            ticket.turn.wait()
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  whoever asks for the result has it
                future.set_exception(error)
            self._next()

        threading.Thread(target=body, daemon=True).start()
        return future

    def sleep(self, seconds=0.0, or_when=lambda: False):
        assert self.shelf.now < 10_000, "it goes on for ever"
        ticket = self._ticket(seconds, or_when)
        self._next()
        ticket.turn.wait()

    def Event(self):
        flag = threading.Event()
        return SimpleNamespace(set=flag.set, wait=lambda seconds: self.sleep(seconds, flag.is_set) or flag.is_set())

    def Thread(self, target, args, daemon):
        begun = []
        start = lambda: begun.append(self.spawn(partial(target, *args)))  # noqa: E731
        return SimpleNamespace(start=start, join=lambda: self.sleep(math.inf, begun[0].done))

    def _ticket(self, seconds, or_when=lambda: False):
        self.waiting.append(Ticket(self.shelf.now + seconds, or_when))
        return self.waiting[-1]

    def _next(self):
        due = {ticket: self.shelf.now if ticket.or_when() else ticket.wake for ticket in self.waiting}
        if ready := [ticket for ticket, wake in due.items() if wake < math.inf]:
            choice = next(self.choices, None)
            ticket = min(ready, key=due.__getitem__) if choice is None else ready[choice % len(ready)]
            self.waiting.remove(ticket)
            self.shelf.now = max(self.shelf.now, due[ticket])
            ticket.turn.set()

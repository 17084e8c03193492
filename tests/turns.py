"""Processes that take turns, one at a time from operation to operation, in an order that is drawn; their clock is the shelf's."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

from hypothesis import strategies as st

from raypipe.errors import Stopped
from tests.memory import Crash

# The same place again and again is one process alone, or two in turn, while the others stall.
RUNS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=9)
CHOICES = RUNS.map(lambda runs: tuple(place for place, count in runs for _ in range(count)))


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

"""Ctrl-C and SIGTERM: at the first one parts in work are finished and committed, at the second one the run ends at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any

from raypipe.errors import Stopped

log = logging.getLogger("raypipe")
GRACE_S = 20.0  # for parts in work; 30 s are promised, and Ray takes a few to end
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked = threading.Event()


def asked() -> bool:
    return _asked.is_set()


def check(where: str) -> None:
    """Stopped where a stop was asked for: to be called wherever nothing would be lost."""
    if asked():
        raise Stopped(f"{where}: stopped as asked. A rerun goes on from the parts that are committed")


@contextmanager
def listening() -> Iterator[None]:
    """While this lasts, the first SIGINT or SIGTERM asks for a stop, and the next one is a KeyboardInterrupt."""
    _asked.clear()
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen_again(listened: bool) -> None:
    """After what takes the signals for itself, as `ray.init` does."""
    if listened:
        for number in SIGNALS:
            signal.signal(number, _handle)


def is_listening() -> bool:
    return signal.getsignal(signal.SIGTERM) is _handle


def in_background(call: Callable[[], Any]) -> Future[Any]:
    """Run what waits for Ray in a thread, so that the main one sees the signals; the process may end before the call does."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _handle(number: int, frame: FrameType | None) -> None:
    if asked():
        raise KeyboardInterrupt
    _asked.set()
    log.warning("stopping: parts in work get %.0f s to be committed. Once more to stop at once", GRACE_S)

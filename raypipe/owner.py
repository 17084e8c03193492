"""Who may write into a folder whose work is not idempotent: training.

`owner-{n}.json` is created once, so one driver gets it, and rewritten as a heartbeat; n counts take-overs. A driver that finds
another one alive stops with a clear line; one that finds it silent for `TAKE_OVER_S` takes over as n + 1; a writer that
sees n + 1 stops. Ages are by the storage's own clock, so machines' clocks play no part.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raypipe import stopping
from raypipe.errors import RaypipeError, Stopped
from raypipe.store import Folder

log = logging.getLogger("raypipe")
TAKE_OVER_S = float(os.environ.get("RAYPIPE_TAKE_OVER_S", 120))  # of silence
BEATS = 10  # heartbeats in that time
LOOK_S = 0.5


@dataclass(frozen=True)
class Owner:
    folder: Folder
    number: int

    def is_succeeded(self) -> bool:
        return self.folder.has(_name(self.number + 1))


@contextmanager
def owned(folder: Folder) -> Iterator[Owner]:
    """This process's ownership while it lasts; Stopped where another one is alive. Waits for one that may be dead."""
    me = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    owner = _acquire(folder, me)
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(owner, me, ended), daemon=True)
    thread.start()
    try:
        yield owner
    finally:
        ended.set()
        thread.join()
        if not owner.is_succeeded():
            folder.replace(_name(owner.number), json.dumps({**me, "ended": True}).encode())


def _acquire(folder: Folder, me: dict[str, Any]) -> Owner:
    while True:
        numbers = [int(name[len("owner-") : -len(".json")]) for name in folder.list("owner-")]
        last = max(numbers, default=0)
        if last:
            _wait_for_silence(folder, _name(last))
        folder.put(_name(last + 1), json.dumps(me).encode())
        owner = Owner(folder, last + 1)  # whose token is there tells, also where the answer to the put was lost
        if json.loads(folder.read(_name(owner.number)))["token"] == me["token"] and not owner.is_succeeded():
            return owner


def _wait_for_silence(folder: Folder, name: str) -> None:
    """Return once the owner has ended or was silent for long enough; Stopped as soon as it shows a sign of life."""
    uri, first, said = folder.uri(name), folder.read(name), False
    while True:
        stopping.check(folder.path)
        there, found = folder.read(name), folder.storage.find(uri)
        content, age_s = json.loads(there), found.age_s if found else 0.0
        if content.get("ended") or age_s > TAKE_OVER_S:
            return
        who = f"process {content['pid']} on {content['host']}"
        if there != first:
            raise Stopped(
                f"{folder.path}: {who} trains here and is alive. Let it end, or stop it; then run again, which goes on from its "
                "last checkpoint"
            )
        if not said:
            log.info(
                "%s: %s was seen %.0f s ago; taking over after %.0f s of silence", folder.name, who, age_s, TAKE_OVER_S
            )
            said = True
        time.sleep(LOOK_S)


def _beat(owner: Owner, me: dict[str, Any], ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(TAKE_OVER_S / BEATS):
        beat += 1
        try:
            if owner.is_succeeded():
                return
            owner.folder.replace(_name(owner.number), json.dumps({**me, "beat": beat}).encode())
        except RaypipeError as error:
            log.warning("heartbeat: %s", error)


def _name(number: int) -> str:
    return f"owner-{number:04d}.json"

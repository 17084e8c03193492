"""Processes of a benchmark: raypipe's commands, and what one and all that it has started use: CPU seconds, and memory as it is shared between them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.record import PROJECT

RAYPIPE = (sys.executable, "-m", "raypipe.cli")


def raypipe(*words: object) -> float:
    """Wall seconds of a command."""
    print("$ raypipe", *words, flush=True)
    started = time.monotonic()
    subprocess.run([*RAYPIPE, *map(str, words)], cwd=PROJECT, check=True)
    return time.monotonic() - started


class Cpu(threading.Thread):
    """CPU seconds of a process, this one or another, and of all that it started, ended ones too: it looks five times a second."""

    def __init__(self, pid: int | None = None) -> None:
        super().__init__(daemon=True)
        self.root = psutil.Process(pid)
        self.used: dict[tuple[int, float], float] = {}
        self.start()

    def run(self) -> None:
        while self.root.is_running():
            self.total()
            time.sleep(0.2)

    def total(self) -> float:
        for process in family(self.root):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self.used[process.pid, process.create_time()] = times.user + times.system
        return sum(list(self.used.values()))


def family(root: psutil.Process) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        yield from [root, *root.children(recursive=True)]


def memory_bytes(root: psutil.Process) -> dict[int, int]:
    """PSS by process: a page of several counts for each by its share, so that these add up."""
    found = {}
    for process in family(root):
        with suppress(OSError, psutil.NoSuchProcess):
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            found[process.pid] = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
    return found


def answer(process: subprocess.Popen[str], name: str, log: Path) -> str:
    """The next line of a contestant; the benchmark ends, with its log, where it ended."""
    assert process.stdout
    if not (line := process.stdout.readline().strip()):
        sys.exit(f"{name}: it ended. {log} says why:\n{log.read_text()[-2000:]}")
    return line

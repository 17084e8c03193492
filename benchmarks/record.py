"""Where, when and at which commit a benchmark ran, and the file that says so. Needs nothing but Python."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]


def circumstances() -> dict[str, Any]:
    """To be asked before anything is written, which makes the commit a dirty one. `load` is that of 15 minutes."""
    describe = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(describe, cwd=PROJECT, capture_output=True, text=True)
    commit = described.stdout.strip() or "not a checkout"  # as on a machine that got a copy of the files
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "hardware": f"{os.cpu_count()} x {platform.processor() or platform.machine()}, {memory} GB",
        "load": round(os.getloadavg()[2], 1),
    }


def result(name: str) -> Path:
    return PROJECT / "benchmarks" / "results" / f"{name}.json"


def record(name: str, found: Mapping[str, Any]) -> None:
    result(name).parent.mkdir(exist_ok=True)
    result(name).write_text(json.dumps(found, indent=1) + "\n")

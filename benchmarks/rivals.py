"""Environments of rivals, each its own below build/rivals: what they want beside them would change ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import PROJECT


def environment(name: str, steps: Sequence[str]) -> Path:
    """Its folder, made where it is not there: each of `steps` is what one call of pip is given."""
    folder = PROJECT / "build" / "rivals" / name
    if not (folder / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for step in steps:
            subprocess.run([folder / "bin" / "pip", "install", "--quiet", *step.split()], check=True)
        (folder / "made").touch()
    return folder

"""What this machine, or the container that limits it, lets a process have."""

from __future__ import annotations

import os
from pathlib import Path

STORE_SHARE = 0.3  # of memory, which Ray takes for its object store


def cpus() -> float:
    """As many as this process may use; a container's quota counts."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(allowed, int(quota) / int(period)) if quota.isdigit() and period else allowed


def memory_bytes() -> int:
    limit = _cgroup("memory.max")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(whole, int(limit)) if limit.isdigit() else whole


def _cgroup(name: str) -> str:
    """A limit of this container, by cgroup v2; empty where there is none."""
    path = Path("/sys/fs/cgroup", name)
    return path.read_text().strip() if path.is_file() else ""

"""What `raypipe doctor` asks of this machine. An answer is a line of text; a `Doubt` is one that deserves a look.

Torch is loaded only where there is a GPU, and Ray not at all.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from raypipe import container
from raypipe.container import STORE_SHARE, memory_bytes
from raypipe.errors import ConfigError
from raypipe.identity import package_versions
from raypipe.local import refusals
from raypipe.screen import size

STORE_BYTES = 200e9  # at most, which Ray takes for its object store
DISK_FULL = 0.95  # Ray makes no object any more on a disk that is fuller
SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
SMI_S = 10.0  # a GPU that hangs does not answer


class Doubt(str):
    """An answer to be shown as a warning."""


def versions() -> str:
    if unmet := list(_unmet()):
        raise ConfigError(f"got {'; '.join(unmet)}. Install what requirements.lock names")
    found = package_versions()
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version}" for name, version in found.items())])


def cpus() -> str:
    """As many as this process may use; a container's quota counts."""
    count = container.cpus()
    return f"{count:g}" + (f" of {os.cpu_count()}" if count != os.cpu_count() else "")


def memory() -> str:
    return size(memory_bytes())


def shared_memory(mount: str = "/dev/shm") -> str:
    if not os.path.isdir(mount):
        return f"no {mount}: Ray's object store is on disk"
    free, wanted = shutil.disk_usage(mount).free, min(STORE_SHARE * memory_bytes(), STORE_BYTES)
    said = f"{size(free)} free in {mount}"
    if free >= wanted:
        return said
    return Doubt(
        f"{said}, wanted {size(wanted)} ({STORE_SHARE:.0%} of memory): Ray's object store becomes smaller, or is on disk. "
        "Raise it: docker run --shm-size, or on Kubernetes an emptyDir of medium Memory at /dev/shm"
    )


def temporary_disk() -> str:
    """Where Ray keeps its session and spills objects, and a checkpoint stands before it is put on S3."""
    return disk(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def disk(path: str) -> str:
    """Of the file system that a path is on, or will be on."""
    with refusals(path):
        there = next(place for place in (Path(path), *Path(path).parents) if place.exists())
        usage = shutil.disk_usage(there)
    said = f"{size(usage.free)} free of {size(usage.total)} at {path}"
    full = 1 - usage.free / usage.total if usage.total else 0.0
    return Doubt(f"{said}: more than {DISK_FULL:.0%} full. Free space") if full > DISK_FULL else said


def accelerators() -> str:
    if shutil.which(SMI[0]) is None:
        return "none (there is no nvidia-smi): models compute on CPUs"
    try:
        found = gpus()
    except ConfigError as error:
        return Doubt(str(error))
    said = "; ".join(f"{found.count(gpu)} x {gpu}" for gpu in dict.fromkeys(found)) or "none"
    return Doubt(f"{said}, but {fault}") if found and (fault := _torch_fault()) else said


@cache
def gpus() -> tuple[str, ...]:
    """Name, memory and driver of every GPU that this machine shows."""
    if shutil.which(SMI[0]) is None:
        return ()
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, check=True, timeout=SMI_S)
    except (subprocess.SubprocessError, OSError) as error:
        said = " ".join(str(getattr(error, "stdout", None) or error).split())
        raise ConfigError(f"nvidia-smi fails: {said}. Mend the driver; until then models compute on CPUs") from error
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


MACHINE = {
    "versions": versions,
    "CPUs": cpus,
    "memory": memory,
    "shared memory": shared_memory,
    "accelerators": accelerators,
    "temporary disk": temporary_disk,
}


def _torch_fault() -> str | None:
    """Why torch cannot use the GPUs that are here."""
    if "+cpu" in package_versions().get("torch", ""):
        return "the torch that is installed is for CPUs. Install a CUDA build"
    import torch  # seconds: only here, where there is a GPU

    return None if torch.cuda.is_available() else "torch cannot use them: its CUDA may be newer than the driver"


def _unmet() -> Iterator[str]:
    """Requirements of raypipe, without extras, that are not installed as it wants them."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("raypipe") or ():
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not wanted.specifier.contains(found, prereleases=True):
            yield f"{wanted.name} {found}, wanted {wanted.specifier or 'any'}"

"""What `raypipe doctor` says of a machine: each fault that would cost a run its speed without an error."""

import os

import pytest

from raypipe import machine
from raypipe.errors import ConfigError
from raypipe.machine import Doubt


def test_packages_that_do_not_fit(monkeypatch):
    """Another Ray than the cluster's is refused only when the run connects."""
    assert "ray 2.60.0" in machine.versions()
    monkeypatch.setattr(
        machine.importlib.metadata, "requires", lambda name: ["ray==2.9", "nosuch>=1", "vllm; extra == 'vllm'"]
    )
    with pytest.raises(ConfigError, match=r"got ray 2\.60\.0, wanted ==2\.9; nosuch none, wanted >=1\. Install"):
        machine.versions()


def test_small_shared_memory(tmp_path, monkeypatch):
    """Docker gives 64 MB: Ray's object store is then on disk, and a run ten times slower without an error."""
    usage = type("Usage", (), {"free": 64_000_000, "total": 64_000_000})
    monkeypatch.setattr(machine, "memory_bytes", lambda: 100_000_000_000)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    said = machine.shared_memory(str(tmp_path))
    assert isinstance(said, Doubt) and said.startswith(f"64 MB free in {tmp_path}, wanted 30 GB (30% of memory)")


def test_a_full_disk(monkeypatch):
    """Ray makes no object on a disk that is over 95 % full: a run would wait for ever."""
    for free, doubtful in ((4, True), (6, False)):
        monkeypatch.setattr(
            machine.shutil, "disk_usage", lambda path, free=free: type("U", (), {"free": free, "total": 100})
        )
        assert isinstance(machine.disk("/not/there/yet"), Doubt) == doubtful


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """An nvidia-smi that says what it is told."""

    def says(text, code=0):
        (program := tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        machine.gpus.cache_clear()

    yield says
    machine.gpus.cache_clear()


def test_gpus_and_a_torch_that_cannot_use_them(smi, monkeypatch):
    """The commonest fault of a fresh GPU machine: the CPU build of torch, and models at a hundredth of the speed."""
    smi("NVIDIA H200, 143771 MiB, 570.1\nNVIDIA H200, 143771 MiB, 570.1")
    monkeypatch.setattr(machine, "package_versions", lambda: {"torch": "2.13.0+cpu"})
    said = machine.accelerators()
    assert isinstance(said, Doubt) and said.startswith("2 x NVIDIA H200, 143771 MiB, 570.1, but the torch")


def test_a_driver_that_fails(smi):
    """nvidia-smi says so on its standard output."""
    smi("NVIDIA-SMI has failed because it could not talk to the driver", code=9)
    said = machine.accelerators()
    assert isinstance(said, Doubt) and "could not talk to the driver" in said

"""How much memory an actor may take."""

from types import SimpleNamespace

import pytest

from raypipe import sizing
from raypipe.config import Pool


@pytest.mark.parametrize(
    ("available", "actors", "wanted"),
    [(90e9, None, 17.5e9), (90e9, (1, 1), 70e9), (90e9, (1, 2), 35e9), (10e9, (1, 1), 10e9)],
)
def test_an_equal_share_of_a_machine(monkeypatch, available, actors, wanted):
    """100 GB, 4 CPUs, 30 % for Ray's object store: as many actors may come as there are CPUs, if no one says fewer."""
    monkeypatch.setattr(sizing, "memory_bytes", lambda: 100_000_000_000)
    monkeypatch.setattr(sizing, "cpus", lambda: 4)
    monkeypatch.setattr(sizing.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    assert sizing.free_bytes(Pool(actors=actors)) == wanted


@pytest.mark.parametrize(("free", "gpus", "wanted"), [(140e9, 1, 140e9), (140e9, 0.5, 70e9), (60e9, 0.5, 60e9)])
def test_a_share_of_a_gpu(monkeypatch, free, gpus, wanted):
    """The second of two on one GPU finds half of it taken, and must not take half of the rest."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free, 140e9))
    assert sizing.free_bytes(Pool(gpus=gpus)) == wanted

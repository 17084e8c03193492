"""Repair takes nothing for good: what it removes is made again."""

from raypipe import repair
from raypipe.store import Folder
from tests.memory import Memory, Shelf
from tests.test_laws import BAD, GOOD, INGEST, check_lines, lake_of, session, without_ray  # noqa: F401


def test_a_repair_brings_back_rejects(monkeypatch):
    """`_rejected/` is the only account of lines that never became samples: what repair removes must be made again."""
    monkeypatch.setattr(repair, "map_items", lambda function, items, **options: [function(item) for item in items])
    slices = ((GOOD[0], BAD[0]),)
    lake = lake_of(shelf := Shelf(), slices)
    session(shelf, lake, INGEST)
    (rejected,) = [uri for uri in shelf.objects if "/_rejected/" in uri]
    shelf.objects[rejected] = shelf.objects[rejected][:40]
    repair.remove_damaged(Folder("root/ingest-000000000000", Memory(shelf)))
    session(shelf, lake, INGEST)
    check_lines(shelf, lake, slices)

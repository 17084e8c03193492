"""How a model is named: a directory, a Hub id, or a Hub id pinned as NAME@REVISION."""

from __future__ import annotations


def split_revision(model: str) -> tuple[str, str | None]:
    """(directory or id, revision) as `from_pretrained` takes them. Directories are absolute paths, and may hold an @."""
    name, at, revision = model.rpartition("@")
    return (name, revision) if at and not model.startswith("/") else (model, None)

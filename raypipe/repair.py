"""Repair: a stage's parts are read against the digests of their columns, and those that fail are made again.

Only when told: what damaged an object is for a person to find out, and to compute it again may take hours of a GPU.
"""

from __future__ import annotations

import json
import logging
from functools import partial

from raypipe.errors import DataError
from raypipe.items import map_items
from raypipe.part import read_part
from raypipe.store import Folder

log = logging.getLogger("raypipe")


def remove_damaged(folder: Folder) -> list[str]:
    """Names of the parts removed, and with them of every manifest that lists one: the stage is unfinished again.

    Manifests go first, so that there never is one without all its parts.
    """
    names = [found.uri[len(folder.path) + 1 :] for found in folder.walk()]
    parts = [name for name in names if name.endswith(".parquet")]
    sound = map_items(partial(is_sound, folder=folder), parts, label=f"{folder.name} check")
    damaged = [part for part, fine in zip(parts, sound, strict=True) if not fine]
    present = set(parts) - set(damaged)
    for name in (name for name in names if name.startswith("manifest-")):
        if not {part["name"] for part in json.loads(folder.read(name))["parts"]} <= present:
            folder.delete(name)
    for part in damaged:
        folder.delete(part)
        log.warning("%s: damaged, removed", folder.uri(part))
    log.info("%s: %d of %d parts are damaged", folder.name, len(damaged), len(parts))
    return damaged


def is_sound(part: str, *, folder: Folder) -> bool:
    inside, _, name = f"{folder.path}/{part}".rpartition("/")
    try:
        read_part(Folder(inside, folder.storage), name)
    except DataError:
        return False
    return True

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

    A damaged part of a side folder (rejects, held-out packs) takes the part of its name along, as only the two together are
    made again. Manifests go first, so that there never is one without all its parts; what is beside a part goes last.
    """
    names = [found.uri[len(folder.path) + 1 :] for found in folder.walk()]
    parts = [name for name in names if name.endswith(".parquet")]
    sound = map_items(partial(is_sound, folder=folder), parts, label=f"{folder.name} check")
    damaged = {part for part, fine in zip(parts, sound, strict=True) if not fine}
    doomed = damaged | ({part.rpartition("/")[2] for part in damaged} & set(parts))
    present = set(parts) - doomed
    for name in (name for name in names if name.startswith("manifest-")):
        if not {part["name"] for part in json.loads(folder.read(name))["parts"]} <= present:
            folder.delete(name)
    for part in sorted(doomed, key=lambda part: "/" in part):
        folder.delete(part)
        log.warning(
            "%s: %s, removed", folder.uri(part), "damaged" if part in damaged else "made together with a damaged part"
        )
    log.info("%s: %d of %d parts are damaged", folder.name, len(damaged), len(parts))
    return sorted(doomed)


def is_sound(part: str, *, folder: Folder) -> bool:
    inside, _, name = f"{folder.path}/{part}".rpartition("/")
    try:
        read_part(Folder(inside, folder.storage), name)
    except DataError:
        return False
    return True

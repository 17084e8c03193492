"""`raypipe gc`: folders of stages, sweeps and comparisons that no run names, and temporary files of killed writers. Lists; deletes only when told to.

A wrong root must never be emptied, so only `{known stage, sweep or compare}-{12 hex digits}` qualifies; a folder is kept while a run's file
names it anywhere (also as the model of another run's config), or while its youngest object is younger than `min_age_h`. A
run is recorded before its folders get their first object, and runs are read again before each folder is deleted.

Manifests go first, then the youngest objects: a folder half deleted is one of a run that was killed earlier, so a rerun, of
gc or of the run, goes on from there. Cost: a listing of every such folder, and one request an object deleted.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from raypipe.errors import ConfigError
from raypipe.local import Local
from raypipe.recipes import STAGE_NAMES
from raypipe.records import recorded_runs
from raypipe.screen import aligned, size
from raypipe.store import Folder, Found

log = logging.getLogger("raypipe")
MIN_AGE_H = 24.0
THREADS, TOGETHER = 16, 1000  # objects begun before an error ends a deletion
NAME = re.compile(rf"(?:{'|'.join([*STAGE_NAMES, 'sweep', 'compare'])})-[0-9a-f]{{12}}")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")  # as raypipe.local names them; a checkpoint's .metadata is none


@dataclass(frozen=True)
class Unnamed:
    """A stage folder that no run names."""

    folder: Folder
    size: int  # bytes
    objects: int
    age_s: float  # of its youngest object; infinite where it has none


@dataclass(frozen=True)
class Garbage:
    root: Folder
    min_age_h: float
    runs: tuple[str, ...]
    doomed: tuple[Unnamed, ...]  # the largest first, as the next
    too_young: tuple[Unnamed, ...]
    temporaries: tuple[Found, ...]  # old enough


def find_garbage(root: Folder, *, min_age_h: float = MIN_AGE_H) -> Garbage:
    """What no run under this root names. Without any run that is every stage folder."""
    if not min_age_h >= 0:
        raise ConfigError(f"--min-age-h: got {min_age_h:g}, wanted hours, 0 or more")
    runs = recorded_runs(root)
    named, leaves = _names_in(runs), [leaf for leaf in root.list() if NAME.fullmatch(leaf)]
    measured = [_measured(root / leaf) for leaf in leaves if leaf not in named]
    unnamed = sorted((found for found in measured if found), key=lambda found: -found.size)
    old = tuple(found for found in unnamed if found.age_s >= min_age_h * 3600)
    young = tuple(found for found in unnamed if found.age_s < min_age_h * 3600)
    kept = [root / "runs", *(root / leaf for leaf in leaves if leaf in named)]
    dead_s = max(min_age_h, MIN_AGE_H) * 3600  # these are in folders that a run may be writing into
    temporaries = [found for folder in kept for found in _temporaries(folder) if found.age_s >= dead_s]
    return Garbage(root, min_age_h, tuple(sorted(runs)), old, young, tuple(temporaries))


def delete_garbage(garbage: Garbage) -> Iterator[Unnamed]:
    """Delete what is old enough; yields each folder once it is gone. ConfigError where no run says what is needed."""
    _needed(garbage.root)
    _delete(garbage.root, [found.uri for found in garbage.temporaries])
    for unnamed in garbage.doomed:
        now = _measured(unnamed.folder)
        if unnamed.folder.name in _needed(garbage.root) or (now and now.age_s < garbage.min_age_h * 3600):
            log.warning("%s: kept, a run uses it by now", unnamed.folder.name)
            continue
        _empty(unnamed.folder)
        yield unnamed


def listing(garbage: Garbage) -> str:
    """In words: a table, the total, and what is kept and why."""
    states = dict.fromkeys(garbage.doomed, "no run names it")
    states |= dict.fromkeys(garbage.too_young, f"kept: younger than {garbage.min_age_h:g} h (--min-age-h)")
    rows = [("folder", "size", "objects", "age", "state")]
    for found, state in states.items():
        age = f"{found.age_s / 3600:,.1f} h" if found.objects else "-"
        rows.append((found.folder.name, size(found.size), f"{found.objects:,}", age, state))
    lines = [f"root {garbage.root.path}  runs {', '.join(garbage.runs) or 'none'}"]
    lines += [aligned(rows, right={1, 2, 3})] if states else []
    num_bytes, objects = sum(found.size for found in garbage.doomed), sum(found.objects for found in garbage.doomed)
    lines.append(f"unused: {len(garbage.doomed):,} folders, {objects:,} objects, {size(num_bytes)}")
    if garbage.temporaries:
        left = f"{len(garbage.temporaries):,} files, {size(sum(found.size for found in garbage.temporaries))}"
        lines.append(f"left by killed writers, more than {max(garbage.min_age_h, MIN_AGE_H):g} h ago: {left}")
    return "\n".join(lines)


def _names_in(runs: object) -> set[str]:
    """Every stage folder that the runs' files speak of, wherever in them."""
    return set(NAME.findall(json.dumps(runs)))


def _needed(root: Folder) -> set[str]:
    if not (runs := recorded_runs(root)):
        raise ConfigError(
            f"{root.path}: got no run in {root.uri('runs')}, wanted at least one, as runs say what is needed. Nothing more is "
            "deleted. Check the root; where really nothing in it is needed, remove it yourself"
        )
    return _names_in(runs)


def _measured(folder: Folder) -> Unnamed | None:
    """None for what is no folder, or a link to one: whoever made the link knows more."""
    total, objects, age_s = 0, 0, float("inf")
    if os.path.islink(folder.path):
        return None
    for found in _objects(folder):
        total, objects, age_s = total + found.size, objects + 1, min(age_s, max(found.age_s, 0.0))
    return Unnamed(folder, total, objects, age_s) if objects or os.path.isdir(folder.path) else None


def _objects(folder: Folder) -> Iterator[Found]:
    """With temporary ones and a checkpoint's .metadata, which a listing of local files leaves out."""
    storage = folder.storage
    return storage.walk(folder.path, hidden=True) if isinstance(storage, Local) else storage.walk(folder.path)


def _temporaries(folder: Folder) -> list[Found]:
    there = _objects(folder) if isinstance(folder.storage, Local) else ()  # on S3 there are none
    return [found for found in there if TEMPORARY.fullmatch(os.path.basename(found.uri))]


def _empty(folder: Folder) -> None:
    there = sorted(_objects(folder), key=lambda found: found.age_s)
    _delete(folder, manifests := [found.uri for found in there if found.uri.startswith(folder.uri("manifest-"))])
    _delete(folder, [found.uri for found in there if found.uri not in manifests])
    for place, _, _ in os.walk(folder.path, topdown=False):  # of files: on S3 there are no folders
        with suppress(OSError):  # one that is not empty has a new writer
            os.rmdir(place)
    log.info("%s: deleted %d objects", folder.path, len(there))


def _delete(folder: Folder, uris: Sequence[str]) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        for first in range(0, len(uris), TOGETHER):
            list(threads.map(folder.storage.delete, uris[first : first + TOGETHER]))

"""The engine on Ray, with part functions of a few lines: resume, errors, empty parts, exact counts."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest

from raypipe.envelope import ATTEMPTS, Envelope
from raypipe.errors import ConfigError, DataError
from raypipe.folds import fold_parts, groups_of, shards
from raypipe.items import map_items
from raypipe.local import Local
from raypipe.ops.text import sample_id
from raypipe.part import Table, commit_part, digest_of, read_footer
from raypipe.parts import Tally, map_parts
from raypipe.resources import Pool
from raypipe.session import ray_session
from raypipe.sizing import fit_actors
from raypipe.store import Folder
from tests.lakes import PROJECT

pytestmark = pytest.mark.usefixtures("ray_here")
BOTH_WAYS = pytest.mark.parametrize(
    "light", [False, True]
)  # through Ray Data, and by actors that read and put themselves
SIZES = [5, 0, 3, 1, 4, 0, 2, 6, 1, 1, 3, 2]  # two parts have no rows, as one whose rows were all rejected has


class Double:
    """Twice x; leaves a file for every call in `calls`, as a part that is written twice leaves no trace itself."""

    def __init__(self, bad=None, calls=None):
        self.bad, self.calls = bad, calls

    def __call__(self, tables):
        (table,) = tables
        x = table["x"].to_numpy()
        if self.calls:
            (self.calls / uuid.uuid4().hex).write_text(str(x.tolist()))
        if self.bad is not None and self.bad in x:
            raise DataError(f"row {self.bad} is bad")
        return pa.table({"sample_id": table["sample_id"], "y": 2 * x})


class SlowToPut(Local):
    def put(self, uri, data):
        time.sleep(0.3)
        return super().put(uri, data)


class Shuffled:
    def __call__(self, tables):
        return pa.table({"sample_id": tables[0]["sample_id"].take(np.arange(len(tables[0]))[::-1])})


class Slow(Double):
    """So that what is in work is little beside what is not."""

    def __call__(self, tables):
        time.sleep(0.4)
        return super().__call__(tables)


class Deadly(Double):
    """Kills its process at one row, as a crash in a library or the kernel's out-of-memory killer does."""

    def __call__(self, tables):
        if self.bad in tables[0]["x"].to_numpy():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(tables)


def never_loads():
    os.kill(os.getpid(), signal.SIGKILL)


def deadly_fold(tables):
    os.kill(os.getpid(), signal.SIGKILL)


def deadly_item(item):
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def print_an_error(source, out):
    table = Table(Folder(source), tuple(Folder(source).list()))
    try:
        with ray_session():
            map_parts(partial(Double, 30), [table], Folder(out), pool=Pool())
    except DataError as error:
        print(error)


def both_sums(tables):
    one, two = tables
    assert one["sample_id"].equals(two["sample_id"])
    return np.array([one["x"].to_numpy().sum(), two["y"].to_numpy().sum(), len(one)])


def names(tables):
    return [tables[0].schema.metadata[b"part"].decode()]


@dataclass(frozen=True)
class Group:
    names: tuple
    nbytes: int


@dataclass(frozen=True)
class MakeGroup:
    """Of a group of parts, that may be larger than any memory."""

    large: bool

    def __call__(self, parts):
        return Group(tuple(names(tables)[0] for tables in parts), 1 << 60 if self.large else 1)


def names_and_place(group):
    return [(group.names, id(group))]


def square(item):
    if item == 13:
        raise DataError("13 is refused")
    return item * item


@pytest.fixture
def source(tmp_path):
    folder, begin, parts = Folder(str(tmp_path / "in")), 0, []
    for number, size in enumerate(SIZES):
        x = np.arange(begin, begin + size)
        table = pa.table({"sample_id": pa.array([sample_id(str(n), "") for n in x], pa.string()), "x": x})
        parts.append(f"part-{number:07d}-0000-aaaaaaaaaaaa-end.parquet")
        commit_part(folder, parts[-1], table, counts={"ok": size})
        begin += size
    return Table(folder, tuple(parts))


@BOTH_WAYS
def test_part_n_comes_from_part_n_and_a_rerun_makes_only_what_is_missing(light, source, tmp_path):
    """The whole promise of resume: what is committed is neither computed nor written again."""
    out = Folder(str(tmp_path / "out"))
    map_parts(Double, [source], out, pool=Pool(), light=light)
    made = Table(out, source.parts)
    assert [made.read(part)["y"].to_pylist() for part in source.parts] == [
        [2 * x for x in source.read(part)["x"].to_pylist()] for part in source.parts
    ]
    for part in (source.parts[1], source.parts[4]):
        (tmp_path / "out" / part).unlink()
    (calls := tmp_path / "calls").mkdir()
    map_parts(partial(Double, calls=calls), [source], out, pool=Pool(), light=light)
    wanted = [str(source.read(source.parts[n])["x"].to_pylist()) for n in (1, 4)]
    assert sorted(path.read_text() for path in calls.iterdir()) == sorted(wanted)
    footers = [read_footer(out, part) for part in source.parts]
    assert [footer["rows"] for footer in footers] == SIZES
    assert footers[0]["inputs"] == {"0": digest_of(source.read(source.parts[0]))}


@BOTH_WAYS
def test_an_error_of_ours_keeps_its_class_and_text_and_leaves_no_part(light, source, tmp_path):
    """A Ray traceback of 200 lines is not a message; a part with an error must not look finished."""
    out = Folder(str(tmp_path / "out"))
    with pytest.raises(DataError, match="row 9 is bad"):
        map_parts(partial(Double, 9), [source], out, pool=Pool(), light=light)
    assert source.parts[4] not in out.list()
    map_parts(Double, [source], out, pool=Pool(actors=(1, 1)), light=light)
    assert set(source.parts) <= set(out.list())


def test_several_datasets_are_one_map(source, tmp_path, monkeypatch):
    """A lake of a million parts in one would fill the driver's memory."""
    monkeypatch.setattr("raypipe.streams.BLOCKS_AN_ACTOR", 3)
    out = Folder(str(tmp_path / "out"))
    made = map_parts(Double, [source], out, pool=Pool(actors=(2, 2)))
    assert {part: footer["rows"] for part, footer in made.items()} == dict(zip(source.parts, SIZES, strict=True))
    with pytest.raises(DataError, match="row 9 is bad"):
        map_parts(partial(Double, 9), [source], Folder(str(tmp_path / "other")), pool=Pool(actors=(2, 2)))


def test_progress_in_tokens_a_second(monkeypatch):
    """From the first part on, as a model that loads for minutes is no rate; and what was not ok."""
    monkeypatch.setattr("time.monotonic", iter([10.0, 10.0, 12.0]).__next__)
    tally = Tally()
    parts = [("p1", {"ok": 5}, 900), ("p2", {"ok": 3, "truncated": 1200, "duplicate": 2}, 4000)]
    footers = [Envelope(name, footer={"counts": counts, "figures": {"num_tokens": n}}) for name, counts, n in parts]
    assert [tally(receipt) for receipt in (Envelope("p0"), *footers)] == [
        "",
        "",
        "2,000 tokens/s, 2 duplicate, 1,200 truncated",
    ]


@pytest.mark.slow
def test_an_error_is_all_that_is_said(tmp_path):
    """Ray Data's threads, left in the middle of a map, must not meet the end of Ray with a traceback on the user's screen."""
    for number in range(60):
        table = pa.table({"sample_id": [f"{number:032x}"], "x": [number]})
        commit_part(Folder(str(tmp_path / "in")), f"part-{number:07d}.parquet", table, counts={"ok": 1})
    code = "import sys; from tests.test_parts import print_an_error; print_an_error(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "row 30 is bad" and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_task_that_ray_ends_as_memory_is_short_is_not_begun_for_ever():
    """Ray ends the youngest task of a full machine, and by default begins it again without end."""
    code = (
        "from raypipe.session import ray_session\nfrom raypipe.items import map_items\nimport time\n"
        "with ray_session():\n    map_items(lambda item: time.sleep(60), ['part-7'], label='items')"
    )
    always = {"RAY_memory_usage_threshold": "0.01", "RAY_task_oom_retries": "2"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **always}, capture_output=True, text=True)
    assert "DataError: part-7: its process died each time it was begun (out of memory" in done.stderr


@pytest.mark.slow
@BOTH_WAYS
def test_a_part_that_kills_its_process_is_named_after_a_few_times(light, source, tmp_path):
    """Ray would try for ever, or end with a traceback that names nothing; the other parts are kept."""
    out = Folder(str(tmp_path / "out"))
    with pytest.raises(DataError, match=rf"{source.parts[4]}: its process died each of the {ATTEMPTS} times"):
        map_parts(partial(Deadly, 9), [source], out, pool=Pool(actors=(1, 1)), light=light)
    assert source.parts[4] not in out.list()
    map_parts(Double, [source], out, pool=Pool(actors=(1, 1)), light=light)
    assert set(source.parts) <= set(out.list())


@pytest.mark.slow
def test_neighbours_of_a_part_that_kills_its_process_are_not_to_blame(tmp_path):
    """Light parts pass the gate ten at a time; those before the deadly one are still being put when it kills them all."""
    folder, names = Folder(str(tmp_path / "in")), [f"part-{number:07d}.parquet" for number in range(40)]
    for number, name in enumerate(names):
        commit_part(folder, name, pa.table({"sample_id": [f"{number:032x}"], "x": [number]}), counts={"ok": 1})
    out = Folder(str(tmp_path / "out"), SlowToPut())
    random.seed(1)  # the deadly one is begun late among its ten
    with pytest.raises(DataError, match=rf"{names[9]}: its process died each of the {ATTEMPTS} times"):
        map_parts(partial(Deadly, 9), [Table(folder, tuple(names))], out, pool=Pool(actors=(1, 1)), light=True)
    attempts = [read_footer(out, name)["attempt"] for name in out.list()]
    assert attempts.count(2) >= 5 and max(attempts) == 2


@pytest.mark.slow
@BOTH_WAYS
def test_a_model_that_kills_its_process_is_no_endless_loop(light, source, tmp_path):
    """A model too large for the machine dies while it is loaded, before any part is begun."""
    with pytest.raises(DataError, match="it loaded its model"):
        map_parts(never_loads, [source], Folder(str(tmp_path / "out")), pool=Pool(actors=(1, 1)), light=light)


@pytest.mark.slow
def test_items_and_folds_that_kill_their_process_are_named(source):
    with pytest.raises(DataError, match="item 2: its process died"):
        map_items(deadly_item, [1, 2, 3], label="x", name=lambda item: f"item {item}")
    with pytest.raises(DataError, match=rf"parts {source.parts[0]} to .*: its process died"):
        fold_parts(deadly_fold, [source], pool=Pool(actors=(1, 1)))


@pytest.mark.slow
@BOTH_WAYS
def test_two_maps_into_one_folder_share_the_work(light, tmp_path):
    """Two drivers that took the same parts in the same order would do everything twice: a doubled bill."""
    folder, names = Folder(str(tmp_path / "in")), [f"part-{number:07d}.parquet" for number in range(60)]
    for number, name in enumerate(names):
        commit_part(folder, name, pa.table({"sample_id": [f"{number:032x}"], "x": [number]}), counts={"ok": 1})
    table, out, calls = Table(folder, tuple(names)), Folder(str(tmp_path / "out")), tmp_path / "calls"
    calls.mkdir()
    maps = [
        partial(map_parts, partial(Slow, calls=calls), [table], out, pool=Pool(actors=(1, 1)), light=light)
        for _ in range(2)
    ]
    with ThreadPoolExecutor(2) as threads:
        made = [future.result() for future in [threads.submit(one) for one in maps]]
    assert set(names) == set(out.list()) == set(made[0]) == set(made[1])
    mine, theirs = (sum(footer is not None for footer in one.values()) for one in made)
    assert mine >= 10 and theirs >= 10, "one of them did nearly everything"
    twice = len(list(calls.iterdir())) - len(names)
    assert twice <= 20, "more was done twice than was in work, before the first writers had started and at the end"


def test_rows_out_of_order_are_refused(source, tmp_path):
    """Aligned parts are what makes joins unnecessary; a model that reorders rows would give scores to other samples."""
    with pytest.raises(DataError, match="other sample_ids"):
        map_parts(Shuffled, [source], Folder(str(tmp_path / "out")), pool=Pool(actors=(1, 1)))


def test_fold_over_aligned_tables(source, tmp_path):
    out = Folder(str(tmp_path / "out"))
    map_parts(Double, [source], out, pool=Pool(actors=(1, 1)), light=True)
    total = sum(SIZES)
    xs = total * (total - 1) // 2
    assert fold_parts(both_sums, [source, Table(out, source.parts)], pool=Pool()).tolist() == [xs, 2 * xs, total]


@pytest.mark.parametrize("actors", [(1, 1), (2, 2)])
def test_folds_merge_in_part_order_with_any_number_of_actors(source, actors):
    """What is made of a group is kept between folds where it fits, and is the same group under any number of actors."""
    with shards([source], pool=Pool(actors=actors)) as held:
        assert held.fold(names) == list(source.parts)
        for large in (False, False, True):
            made = held.fold(names_and_place, of=MakeGroup(large))
            assert [name for name, _ in made] == [(part,) for part in source.parts]
        places = [place for _, place in held.fold(names_and_place, of=MakeGroup(False))]
        assert places == [place for _, place in held.fold(names_and_place, of=MakeGroup(False))] != []


def test_groups_follow_from_the_number_of_parts():
    """With groups that followed from the actors a fit would have other bits on another cluster."""
    parts = [str(n) for n in range(100_000)]
    for count in (1, 5, 64, 65, 1000, 100_000):
        groups = groups_of(parts[:count])
        assert list(chain.from_iterable(groups)) == parts[:count]
        assert len(groups) == min(count, 64) or (count == 100_000 and len(groups) == 196)
        assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_items_in_order_and_errors(tmp_path):
    assert map_items(square, [3, 1, 2], label="x") == [9, 1, 4]
    with pytest.raises(DataError, match="13 is refused"):
        map_items(square, [1, 13], label="x")


def test_what_can_never_fit_is_refused_before_it_starts():
    """Ray would wait for thirty minutes, and then fail."""
    with pytest.raises(ConfigError, match=r"64 actors.*room for \d+"):
        fit_actors(Pool(actors=(64, 64)), 100)
    with pytest.raises(ConfigError, match="and 1 GPUs are asked for"):
        fit_actors(Pool(gpus=1, actors=(1, 1)), 100)
    assert fit_actors(Pool(), 1) == (1, 1)

"""What holds wherever a process is killed: stages in memory, without Ray and without a clock.

Ray's verbs are replaced by serial ones that take the same steps; everything else is the real code. `Memory` kills a process
before or after any operation; `Turns` runs several, one at a time from operation to operation, in an order that is drawn.
"""

import json
import random
import re
import sys
import threading
from collections import Counter
from contextlib import nullcontext, suppress
from functools import lru_cache, partial
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import envelope, slices
from raypipe.config import Config
from raypipe.errors import Stopped
from raypipe.lake import Lake, Slice, chain_digests
from raypipe.ops.digests import column_digests
from raypipe.ops.rows import Fields, parse_line
from raypipe.ops.text import sample_id
from raypipe.part import FOOTER, commit_part
from raypipe.stage import Inputs, Result, Stage, manifest_name, open_table, read_manifest, run_stage
from raypipe.stages import clean, ingest
from raypipe.store import Folder
from tests.memory import FAULTY, Crash, Memory, Shelf
from tests.turns import CHOICES, Turns

RULE = {"paths": ("lake",), "part_bytes": 1024, "max_rejected_fraction": 0.99}
CONFIG = Config(name="laws", model="m", ingest=RULE, embed={"model": "m"}, storage={"root": "root"})
READS = {"ingest": (), "clean": ("ingest",), "rowwise": ("ingest",)}
INGEST, CLEAN, ROWWISE = (Stage(name, reads, lambda config: {}) for name, reads in READS.items())
GOOD = [json.dumps({"instruction": f"do {n}", "response": "x" * n}).encode() for n in (1, 400, 700, 1100)]
BAD = [b"{", b"[1]", b'{"instruction": "x"}', b"{" * 900, b"\xff" * 600]
LINES = st.lists(st.sampled_from([*GOOD, *BAD, b" "]), max_size=9).map(tuple)
SLICES = st.lists(LINES, min_size=1, max_size=3).map(lambda slices: ((GOOD[0], *slices[0]), *slices[1:]))
FAILURE = st.fixed_dictionaries({**FAULTY, "seed": st.integers(0, 9)})  # of the order of parts and slices
TIMES = {"finished", "wall_s", "actor_s", "idle_s", "idle_share", "seconds", "made", "attempt"} | {
    "bytes"
}  # seconds are in the footer
HERE = threading.local()  # .memory: of the process that this thread plays


def serial_map_parts(make, inputs, out, **options):
    """As parts.map_parts, envelopes included, one part after the other."""
    made, there = dict.fromkeys(inputs[0].parts), set(out.list())
    todo = [part for part in made if part not in there]
    random.shuffle(todo)
    call = envelope.Call(make, out, lambda part, step: 1)
    for part in todo:
        sealed = call(envelope.Envelope.open(envelope.read(part, inputs).seal())).seal()
        made[part] = envelope.write(envelope.Envelope.open(sealed), out).check().footer
    return made


def serial_pool(threads):
    return nullcontext(SimpleNamespace(map=map))


def number_rows(tables):
    return pa.table({"sample_id": tables[0]["sample_id"], "row": range(len(tables[0]))})


def run_rowwise(config, inputs, out):
    return Result(serial_map_parts(lambda: number_rows, [inputs["ingest"]], out))


@pytest.fixture(autouse=True, scope="module")
def without_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "raypipe.stages.rowwise", SimpleNamespace(run=run_rowwise))
        patch.setattr(clean, "map_parts", serial_map_parts)
        for stage in (ingest, clean):
            patch.setattr(stage, "map_items", lambda function, items, **options: [function(item) for item in items])
        patch.setattr(slices, "storage_of", lambda uri, endpoint: HERE.memory)
        for module in ("part", "pairs"):  # so that a draw always gives the same order
            patch.setattr(f"raypipe.{module}.ThreadPoolExecutor", serial_pool)
        patch.setattr("raypipe.stage.package_versions", dict)  # 5 ms
        threads = pa.cpu_count()
        pa.set_cpu_count(1)  # a third of the time on a busy machine
        yield
        pa.set_cpu_count(threads)


def session(shelf, lake, *stages, seed=0, places=1, fails_at=None, **how):
    """A process that runs what is left of the stages; how many operations it took. It fails at a place modulo `places`."""
    memory = HERE.memory = Memory(shelf, None if fails_at is None else fails_at % places, **how)
    random.seed(seed)
    tables = {}
    for stage in stages:
        out = Folder(f"root/{stage.name}-000000000000", memory)
        done = read_manifest(out, lake.digest)
        inputs = Inputs(lake, {name: tables[name] for name in stage.reads})
        tables[stage.name] = open_table(out, done) if done else run_stage(stage, {}, CONFIG, inputs, out)
    return memory.operations


def lake_of(shelf, slices):
    found = []
    for place, lines in enumerate(slices):
        uri = f"lake/{place}.jsonl"
        shelf.objects[uri], shelf.written[uri] = b"\n".join(lines), 0.0
        found.append(Slice(uri, shelf.item(uri).size, shelf.item(uri).version))
    return Lake(tuple(found), chain_digests(found))


def lake_with_parts(shelf, sizes):
    """A finished ingest of parts of these sizes."""
    lake, folder, footers = Lake((), ("aaaaaaaaaaaa",)), Folder("root/ingest-000000000000", Memory(shelf)), []
    for place, size in enumerate(sizes):
        table = pa.table({"sample_id": pa.array([sample_id(f"{place} {row}", "") for row in range(size)], pa.string())})
        footers.append(commit_part(folder, f"part-{place:07d}-0000-{lake.digest}-end.parquet", table, counts={})[0])
    folder.put(manifest_name(lake.digest), json.dumps({"rows": sum(sizes), "parts": footers}).encode())
    return lake


@lru_cache(10_000)
def account(data):
    return json.loads(pq.read_metadata(pa.BufferReader(data)).metadata[FOOTER])


@lru_cache(10_000)
def meaning(name, data):
    """What two writers of one object must agree on: all but times."""
    if name.startswith("manifest-"):
        return without_times(json.loads(data))
    table = pq.ParquetFile(pa.BufferReader(data)).read()
    assert account(data)["columns"] == column_digests(table)
    return table.to_pylist(), without_times(account(data))


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def at_every_instant(shelf):
    """A manifest means that all its parts are there; a part of ingest, that its rejects are."""
    for uri, data in shelf.objects.items():
        folder, _, name = uri.rpartition("/")
        if name.startswith("manifest-"):
            assert all(f"{folder}/{part['name']}" in shelf.objects for part in json.loads(data)["parts"]), uri
        elif folder == "root/ingest-000000000000" and set(account(data)["counts"]) - {"ok"}:
            assert f"{folder}/_rejected/{name}" in shelf.objects, uri


def check(shelf, wanted, lake, *, alone=True):
    """Of this lake `shelf` holds what an uncrashed run left on `wanted`; nothing that differs was ever there, or put."""
    last = manifest_name(lake.digest)
    for uri in sorted({*shelf.objects, *wanted.objects}):
        folder, _, name = uri.rpartition("/")
        if folder == "lake" or not of(lake, uri):
            continue
        assert len(shelf.stored[uri]) == 1, f"{uri} was stored {len(shelf.stored[uri])} times"
        if alone and name.startswith("part-") and "/_" not in folder:
            assert len(shelf.offered[uri]) == 1, f"{uri} was made again though it was there"
        if not name.startswith("manifest-") or name == last:
            assert uri in wanted.objects, f"{uri} should not be there"
            expected = meaning(name, wanted.objects[uri])
            assert all(meaning(name, data) == expected for data in shelf.offered[uri]), uri
        if name.startswith("manifest-"):
            newest = json.loads(shelf.objects[f"{folder}/{last}"])["parts"]
            for parts in [json.loads(data)["parts"] for data in shelf.offered[uri]]:
                assert parts == newest[: len(parts)] == [footer(shelf, folder, part["name"]) for part in parts], uri


def of(lake, uri):
    """Whether a part or manifest is of this lake, or of one that it has grown from."""
    return re.search(r"([0-9a-f]{12})(-end)?\.\w+$", uri)[1] in lake.chain


def footer(shelf, folder, part):
    data = shelf.objects[f"{folder}/{part}"]
    return {"name": part, "rows": pq.read_metadata(pa.BufferReader(data)).num_rows, "bytes": len(data)} | account(data)


def check_lines(shelf, lake, slices):
    """Every line is a row or a reject, once."""
    expected, found = Counter(), Counter()
    for place, lines in enumerate(slices):
        for number, line in enumerate(lines, 1):
            if line.strip():
                parsed = parse_line(line.strip(), Fields())
                expected[f"lake/{place}.jsonl", number, getattr(parsed, "sample_id", "reject")] += 1
    for uri, data in shelf.objects.items():
        if uri.startswith("root/ingest") and uri.endswith(".parquet") and of(lake, uri):
            for row in pq.ParquetFile(pa.BufferReader(data)).read().to_pylist():
                found[row["source_uri"], row["source_line"], row.get("sample_id", "reject")] += 1
    assert found == expected


@lru_cache(10)
def uncrashed(slices):
    """What should be there in the end, and the places at which the run could have failed."""
    shelf = Shelf(at_every_instant)
    return shelf, 2 * session(shelf, lake_of(shelf, slices), INGEST, CLEAN)


def check_history(slices, mishaps):
    """Sessions that fail, each on a lake of its own; then one that does not, on these slices."""
    (wanted, places), shelf = uncrashed(slices), Shelf(at_every_instant)
    for found, how in mishaps:
        with suppress(Crash, Stopped):
            session(shelf, lake_of(shelf, found), INGEST, CLEAN, places=places, **how)
    session(shelf, lake := lake_of(shelf, slices), INGEST, CLEAN)
    check(shelf, wanted, lake)
    check_lines(shelf, lake, slices)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(FAILURE, max_size=5))
def test_a_row_wise_stage_killed_anywhere(sizes, failures):
    """Every night on preemptible machines: without it a kill costs parts, or leaves a manifest that lies."""
    wanted, shelf = Shelf(), Shelf(at_every_instant)
    lake, _ = lake_with_parts(wanted, sizes), lake_with_parts(shelf, sizes)
    places = 2 * session(wanted, lake, INGEST, ROWWISE)
    for how in failures:
        with suppress(Crash, Stopped):
            session(shelf, lake, INGEST, ROWWISE, places=places, **how)
    session(shelf, lake, INGEST, ROWWISE)
    check(shelf, wanted, lake)


@settings(deadline=None, max_examples=30)
@given(SLICES, st.lists(FAILURE, max_size=4))
def test_ingest_and_clean_killed_anywhere(slices, failures):
    """Otherwise a line is read twice or never, rejects are lost, or what a kill left is made again, hour after hour."""
    check_history(slices, [(slices, how) for how in failures])


@settings(deadline=None, max_examples=30)
@given(SLICES, st.lists(st.tuples(st.integers(1, 3), st.none() | LINES, FAILURE), max_size=4))
def test_a_lake_that_grows_between_kills(slices, mishaps):
    """Otherwise a nightly run makes old parts again, its manifest forgets them or what they cost, or a file that was replaced
    since is among its rows."""
    mishaps = sorted(mishaps, key=lambda mishap: mishap[0])
    check_history(slices, [(slices[:n] + (replaced,) * (replaced is not None), how) for n, replaced, how in mishaps])


@settings(deadline=None, max_examples=40)
@given(SLICES, CHOICES, st.integers(1, 3), st.just({}) | FAILURE)
def test_two_drivers_at_once(slices, choices, length, failure):
    """A scheduler starts a job twice, or a person reruns one that still runs; the second may see a lake that has grown."""
    (wanted, places), shelf = uncrashed(slices), Shelf(at_every_instant)
    turns, early, lake = Turns(shelf, choices), lake_of(shelf, slices[:length]), lake_of(shelf, slices)
    first = partial(session, shelf, early, INGEST, CLEAN, pause=turns.sleep, places=places, **failure)
    one, two = turns.run(first, partial(session, shelf, lake, INGEST, CLEAN, pause=turns.sleep, seed=1))
    assert two is None and (failure or one is None)
    check(shelf, wanted, lake, alone=False)
    check_lines(shelf, lake, slices)


def overwriting_put(self, uri, data):
    self.shelf.offered[uri].append(data)
    self.replace(uri, data)
    return True


def manifest_first(stage, made_of, config, inputs, out, *, run=run_stage):
    manifest = {"parts": [{"name": part} for table in inputs.tables.values() for part in table.parts]}
    out.put(manifest_name(inputs.lake.digest), json.dumps(manifest).encode())
    return run(stage, made_of, config, inputs, out)


SMALL = ((GOOD[3], BAD[3], GOOD[2]), (GOOD[3], BAD[0]))


def check_every_place(places):
    for fails_at in range(places):
        check_history(SMALL, [(SMALL, {"fails_at": fails_at})])


def test_every_place_where_a_process_can_die():
    """What is drawn above may miss one, and production does not."""
    check_every_place(uncrashed(SMALL)[1])


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (Memory, "put", overwriting_put),
        (sys.modules[__name__], "run_stage", manifest_first),
        (
            ingest,
            "read_footer",
            lambda out, part: {"inputs": {"rows_read": "0", "fields": "[]"}},
        ),  # reads the lines of its parts again
    ],
)
def test_the_laws_find_faults(monkeypatch, where, name, fault):
    """A law that no fault can break guards nothing."""
    places = uncrashed(SMALL)[1]
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(AssertionError):
        check_every_place(places)

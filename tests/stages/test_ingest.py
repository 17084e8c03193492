"""Ingest whole, without Ray: what it says of a lake, how small files are grouped, and what it costs."""

import gzip
import json
import logging
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import lake as lakes
from raypipe.config import Config
from raypipe.errors import ConfigError, DataError
from raypipe.lake import list_lake
from raypipe.part import read_part
from raypipe.stage import Inputs
from raypipe.stages import ingest
from raypipe.store import Folder
from tests.lakes import PROJECT


@pytest.fixture
def ingested(tmp_path, monkeypatch):
    """Ingests the folder lake/ into out/: (parts, summary); `made` counts parts that were committed."""
    monkeypatch.setattr(ingest, "map_items", lambda function, items, **options: [function(item) for item in items])

    def run(**rule):
        rule = {"paths": (f"{tmp_path}/lake",), "max_rejected_fraction": 0.9, **rule}
        config = Config(name="x", model="m", ingest=rule, embed={"model": "m"}, storage={"root": "root"})
        result = ingest.run(config, Inputs(list_lake(config.ingest.paths), {}), Folder(f"{tmp_path}/out"))
        return result.parts, result.summary

    (tmp_path / "lake").mkdir()
    return run


def good(first, count=3):
    return "".join(json.dumps({"instruction": f"do {n}", "response": "x"}) + "\n" for n in range(first, first + count))


def rows(tmp_path, parts, folder="out"):
    return [row for part in parts for row in read_part(Folder(f"{tmp_path}/{folder}"), part).to_pylist()]


def test_files_of_other_fields_are_named(tmp_path, ingested, caplog):
    """Two exports of one tool rarely have the same columns, and a third of the lake would be gone without a word."""
    (tmp_path / "lake/a.jsonl").write_text(good(0))
    (tmp_path / "lake/b.jsonl").write_text('{"prompt": "q", "answer": "a"}\n' * 3)
    pq.write_table(pa.table({"answer": ["a"], "prompt": ["q"]}), tmp_path / "lake/c.parquet")
    with caplog.at_level(logging.WARNING, "raypipe"):
        parts, summary = ingested()
    assert (
        f"2 of 3 files have other fields than ingest.columns names (no_instruction_column); {tmp_path}/lake/b.jsonl has 'prompt', 'answer'"
        in caplog.text
    )
    assert len(rows(tmp_path, parts)) == 3
    assert summary["kinds"] == [
        {"fields": ["instruction", "response"], "files": 1, "first": f"{tmp_path}/lake/a.jsonl"},
        {"fields": ["answer", "prompt"], "files": 2, "first": f"{tmp_path}/lake/b.jsonl"},
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "q", "answer": "a"},
            r"ingest.columns.instruction: no row has 'instruction' .* has 'prompt', 'answer'",
        ),
        ({"id": 1, "conversations": []}, r"Set ingest.columns=\{messages: conversations\}"),
        ({"id": 1, "messages": []}, r"Set ingest.columns=\{messages: messages\}"),
    ],
)
def test_a_lake_of_other_fields(tmp_path, ingested, row, said):
    """The first thing that everybody meets: what to write into the config must be on the screen."""
    (tmp_path / "lake/a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=said):
        ingested()


def test_over_the_budget_the_worst_file_is_named(tmp_path, ingested):
    """Of 100,000 files one is a log."""
    (tmp_path / "lake/a.jsonl").write_text(good(0))
    (tmp_path / "lake/log.jsonl").write_text("INFO started\n" * 3)
    with pytest.raises(
        DataError,
        match=r"3 of 6 rows rejected \(50.00%\): 3 not_json; .* most of them in .*/lake/log.jsonl.*max_rejected_fraction",
    ):
        ingested(max_rejected_fraction=0.1)


def test_what_is_no_data_is_left_out(tmp_path, ingested, caplog):
    """A folder from the Hub, or of save_to_disk, holds more than data."""
    for name in ("README.md", "dataset_info.json", "state.json", "notes/a.csv"):
        (tmp_path / "lake" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "lake" / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"4 files are no data that raypipe reads .*, and there are no others"):
        ingested()
    (tmp_path / "lake/data-00000-of-00001.jsonl").write_text(good(0))
    parts, _ = ingested()
    assert len(rows(tmp_path, parts)) == 3 and "4 files are no data" in caplog.text and "left out" in caplog.text
    assert len(list_lake([f"{tmp_path}/lake/*.json", f"{tmp_path}/lake/README.md"]).slices) == 3, "named is named"


def test_many_small_files_share_parts(tmp_path, ingested, monkeypatch):
    """100,000 objects of 20 kB would be as many parts; and each night's would be made again, were groups not kept."""
    monkeypatch.setattr(lakes, "ALONE", 4)
    monkeypatch.setattr(lakes, "GROUP_BYTES", 3 * len(good(10)))
    for n in range(15):
        (tmp_path / f"lake/{n:03d}.jsonl").write_text(good(10 + 3 * n))
    before, _ = ingested()
    assert [int(part[5:12]) for part in before] == [0, 1, 2, 3, 6, 9, 12, 14]
    for n in range(15, 17):
        (tmp_path / f"lake/{n:03d}.jsonl").write_text(good(10 + 3 * n))
    after, _ = ingested()
    assert list(after)[:7] == list(before)[:7] and [int(part[5:12]) for part in after][7:] == [15, 16]
    found = rows(tmp_path, after)
    assert [row["instruction"] for row in found] == [f"do {n}" for n in range(10, 10 + 51)]
    assert all(
        row["source_uri"].endswith(f"{place // 3:03d}.jsonl") and row["source_line"] == place % 3 + 1
        for place, row in enumerate(found)
    )


def test_rejects_keep_bytes_and_place(tmp_path, ingested):
    """Who mends a row must find it, and see it."""
    (tmp_path / "lake/a.jsonl").write_bytes(good(0, 1).encode() + b"\xff broken\n" + good(1, 1).encode())
    parts, _ = ingested()
    (reject,) = rows(tmp_path, parts, "out/_rejected")
    assert reject == {"source_uri": f"{tmp_path}/lake/a.jsonl", "source_line": 2, "source_offset": len(good(0, 1)), "reason": "invalid_utf8", "raw": b"\xff broken"}  # fmt: skip
    assert [row["source_line"] for row in rows(tmp_path, parts)] == [1, 3]


LARGE = r"""
import re, sys  # ru_maxrss is what the parent had, where that was more
from raypipe.sources import Ingest
from raypipe.lake import chain_digests, list_lake
from raypipe.stages.ingest import Work, ingest_slices
from raypipe.store import Folder
lake, out = list_lake([sys.argv[1]]), Folder(sys.argv[2])
count = 0
for place, piece in enumerate(lake.slices):
    footers = ingest_slices(Work(place, [piece], lake.chain[place]), out=out, rule=Ingest(paths=("x",)))
    count += sum(footer["counts"]["ok"] for footer in footers if footer["counts"])
    for footer in footers:
        out.delete(footer["name"])
print(count, int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) << 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gz", "parquet"])
def test_a_file_of_3_gb(tmp_path, kind):
    """One of them on a worker of 4 GB, beside three others: none may need more than 1 GB, whatever is in the file."""
    texts = [f"{n} " + ("lorem ipsum e  " if n % 10 else "lorem ipsum \u00e9 ") * 2000 for n in range(1000)]
    table, times = pa.table({"instruction": [text[:100] for text in texts], "response": texts}), 110
    path, size = tmp_path / f"a.{kind}", 0
    if kind == "parquet":
        whole = pa.concat_tables([table] * times)
        size = whole.nbytes
        with pq.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
            writer.write_table(whole, row_group_size=len(whole))
        assert pq.read_metadata(path).num_row_groups == 1
        del whole
    else:
        rows = (
            {"instruction": text[:100], "response": text[:3000], "log": text} for text in texts
        )  # most of it nobody asked for
        lines = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        size, member = len(lines) * times, gzip.compress(lines, 1)
        with open(path, "wb") as file:
            file.writelines([member] * times)
    assert size > 3 << 30
    done = subprocess.run(
        [sys.executable, "-c", LARGE, path, tmp_path / "out"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, peak = map(int, done.stdout.split())
    assert count == 1000 * times and peak < 1 << 30

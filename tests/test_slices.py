"""Every format, every cut and every way to be broken: each row is read once, or lost with a reason."""

import gzip
import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import lake, slices
from raypipe.errors import Stopped
from raypipe.lake import Slice, list_lake
from raypipe.ops.blocks import read_block
from raypipe.ops.rows import Fields
from raypipe.s3 import S3
from raypipe.slices import read_slice

ROWS = [{"instruction": f"do {n} \u00e9", "response": "x\n" * (n % 7 + 1), "id": n} for n in range(40)]
FIELDS = Fields(carry=("id",))


def write(path, data):
    path.write_bytes(data)
    return whole(path)


def whole(path):
    stat = path.stat()
    return Slice(str(path), stat.st_size, str(stat.st_mtime_ns))


def read(*pieces, fields=FIELDS):
    """(samples, rejects) as rows."""
    found = [read_block(block, fields) for piece in pieces for block in read_slice(piece, fields, None)]
    return [row for one in found for row in one.samples.to_pylist()], [
        row for one in found for row in one.rejects.to_pylist()
    ]


def texts(samples):
    return [(row["instruction"], row["response"], row["id"]) for row in samples]


WANTED = [(row["instruction"], row["response"].strip(), str(row["id"])) for row in ROWS]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def as_parquet(rows=ROWS, **options):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def as_arrow(new, rows=ROWS):
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


FORMATS = {
    "a.jsonl": LINES,
    "a.json": json.dumps(ROWS).encode(),
    "pretty.json": b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "a.jsonl.gz": gzip.compress(LINES),
    "several.jsonl.gz": gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]) + b"\0" * 100,
    "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.jsonl.zst": zstd.compress(LINES),
    "several.jsonl.zst": zstd.compress(LINES[:1000]) + zstd.compress(LINES[1000:]),
    "misnamed.jsonl": gzip.compress(LINES),
    "no-name-at-all": zstd.compress(LINES),
    "a.parquet": as_parquet(row_group_size=9),
    "data-00000-of-00001.arrow": as_arrow(pa.ipc.new_stream),
    "file.arrow": as_arrow(pa.ipc.new_file),
    "bom-and-crlf.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n") + b"\r\n  \r\n",
    "no-last-newline.jsonl": LINES.rstrip(),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    """What is in a lake is known by its bytes: names lie."""
    samples, rejects = read(write(tmp_path / name, FORMATS[name]))
    assert texts(samples) == WANTED and rejects == []
    assert [row["source_line"] for row in samples] == list(range(1, 41))
    assert {row["source_uri"] for row in samples} == {str(tmp_path / name)}


def test_alpaca_chat_and_sharegpt_are_one_lake(tmp_path):
    """The same samples in the three forms that instruction data comes in."""
    forms = {
        "alpaca": (
            Fields(("instruction", "input"), ("output",)),
            lambda q, a: {"instruction": q, "input": "", "output": a},
        ),
        "chat": (
            Fields(messages="messages"),
            lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
        ),
        "sharegpt": (
            Fields(messages="talk"),
            lambda q, a: {"talk": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
        ),
    }
    found = []
    for name, (fields, form) in forms.items():
        rows = [form(row["instruction"], row["response"]) for row in ROWS]
        for path, data in (
            (tmp_path / f"{name}.json", json.dumps(rows).encode()),
            (tmp_path / f"{name}.parquet", as_parquet(rows)),
        ):
            samples, rejects = read(write(path, data), fields=fields)
            found.append([row["sample_id"] for row in samples])
            assert len(samples) == 40 and rejects == []
    assert all(ids == found[0] for ids in found)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([b'{"instruction": "q", "response": "' + b"x" * n + b'"}' for n in (1, 30, 90)] + [b"", b"[1", b"\xff"]), max_size=12),
       st.integers(1, 120), st.integers(2, 50), st.booleans())  # fmt: skip
def test_cuts_lose_and_double_nothing(tmp_path_factory, lines, cut_bytes, block_bytes, ends):
    """A cut in the middle of a line, at its end, or several in one line: the line belongs to one slice."""
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    piece = write(path, b"\n".join(lines) + b"\n" * ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "BLOCK_BYTES", block_bytes)
        uncut, cut = read(piece), read(*cut_at(patch, piece, cut_bytes))
    for one, other in zip(uncut, cut, strict=True):
        assert [without_line(row) for row in one] == [without_line(row) for row in other]
    data = path.read_bytes()
    assert all(data[row["source_offset"] :].startswith(b'{"instruction"') for row in cut[0])


def cut_at(patch, piece, cut_bytes):
    patch.setattr(lake, "CUT_BYTES", cut_bytes)
    found = list_lake([piece.uri]).slices if piece.size else (piece,)
    assert len(found) == max(1, -(-piece.size // cut_bytes))
    return found


def without_line(row):
    return {name: value for name, value in row.items() if name not in ("row", "source_line")}


@pytest.mark.parametrize("name", ["a.parquet", "misnamed.jsonl", "array.jsonl"])
def test_cut_files_of_other_formats(tmp_path, monkeypatch, name):
    """Row groups belong to the cut they begin in; an array or a gzip that is named as lines is read once, whole."""
    data = {**FORMATS, "array.jsonl": FORMATS["pretty.json"]}[name]
    pieces = cut_at(monkeypatch, write(tmp_path / name, data), 200)
    samples, rejects = read(*pieces)
    assert texts(samples) == WANTED and rejects == [] and len(pieces) > 1
    assert [row["source_line"] for row in samples] == list(range(1, 41))


BROKEN = {  # name: (bytes, rows that are read, reasons of what is not)
    "cut.jsonl.gz": (gzip.compress(LINES)[:-200], None, ["broken_gzip"]),
    "head-only.jsonl.gz": (gzip.compress(LINES)[:5], 0, ["broken_gzip"]),
    "garbage-after.jsonl.gz": (gzip.compress(LINES) + b"garbage", 40, ["broken_gzip"]),
    "flipped.jsonl.gz": (gzip.compress(LINES)[:-8] + b"12345678", 40, ["broken_gzip"]),
    "cut.jsonl.zst": (zstd.compress(LINES * 2000)[:-200], None, ["broken_zstd"]),
    "garbage-after.jsonl.zst": (zstd.compress(LINES) + b"garbage", 40, ["broken_zstd"]),
    "cut.json": (json.dumps(ROWS).encode()[:-20], 39, ["unclosed_array"]),
    "cut.json.gz": (gzip.compress(json.dumps(ROWS).encode())[:-20], None, ["broken_gzip"]),
    "lines-after.json": (json.dumps(ROWS).encode() + b"\n" + LINES, 80, []),
    "log-before.jsonl": (b"[INFO] 40 rows\n" + LINES, 40, ["not_json"]),
    "cut.parquet": (as_parquet()[:-50], 0, ["broken_parquet"]),
    "not-at-all.parquet": (b"PAR1" + b"x" * 99, 0, ["broken_parquet"]),
    "cut.arrow": (as_arrow(pa.ipc.new_stream)[:-200], 35, ["broken_arrow"]),
    "utf16.jsonl": (LINES.decode().encode("utf-16"), 0, None),
    "empty.jsonl": (b"", 0, []),
    "empty.jsonl.gz": (b"", 0, []),
    "blank.jsonl": (b"\n \n\r\n", 0, []),
    "empty-array.json": (b"[]", 0, []),
    "no-rows.parquet": (as_parquet(ROWS[:1])[:0] or as_parquet(ROWS[:1]), 1, []),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_read_as_far_as_it_goes(tmp_path, name):
    """One file that broke off on its way would end a run of a hundred thousand files, or be half read and nobody knew."""
    data, rows, reasons = BROKEN[name]
    samples, rejects = read(write(tmp_path / name, data))
    found = texts(samples)
    assert found[:40] == WANTED[: len(found)] and (len(found) == rows or (rows is None and len(found) > 0))
    assert [row["reason"] for row in rejects] == reasons or (reasons is None and rejects)


def test_names_nobody_wants_to_see(tmp_path):
    """Names with spaces, in other scripts, with dots, and a folder named as a file."""
    for name in (
        "a b.jsonl",
        "\u00fc \u4e2d.jsonl",
        "x..y.jsonl",
        "folder.jsonl/part 0",
        "100%.jsonl",
        "q?a*[1].jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, LINES)
    found = list_lake([f"{tmp_path}/../{tmp_path.name}"]).slices
    assert len(found) == 6
    assert all(texts(read(piece)[0]) == WANTED for piece in found)


def test_a_page_that_is_damaged_costs_its_row_group(tmp_path):
    """Disks and copies flip bits; the groups after it are as good as ever, and every row of it is counted."""
    data = bytearray(as_parquet(row_group_size=10, write_page_checksum=True, compression="none", use_dictionary=False))
    about = pq.read_metadata(io.BytesIO(bytes(data))).row_group(1).column(0)
    place = about.data_page_offset
    data[place + 2 : place + 12] = b"\xff" * 10
    samples, rejects = read(write(tmp_path / "a.parquet", bytes(data)))
    assert texts(samples) == WANTED[:10] + WANTED[20:]
    assert [(row["source_line"], row["reason"]) for row in rejects] == [(line, "broken_page") for line in range(11, 21)]


def test_a_line_that_fits_no_memory(tmp_path, monkeypatch):
    """A line of 100 MB is one reject with its beginning; the lines around it are read."""
    monkeypatch.setattr(slices, "ROW_BYTES", 3000)
    monkeypatch.setattr(slices, "BLOCK_BYTES", 500)
    long = b'{"instruction": "' + b"x" * 10_000 + b'", "response": "y"}\n'
    for data in (long + LINES, LINES + long, LINES[:200] + b"\n" + long + long + LINES, LINES + long[:-1]):
        samples, rejects = read(write(tmp_path / "a.jsonl", data))
        assert len(samples) >= 40 and {row["reason"] for row in rejects} == {"too_long"} | (
            {"not_json"} if LINES[:200] + b"\n" in data else set()
        )
        (first, *_) = [row for row in rejects if row["reason"] == "too_long"]
        assert data[first["source_offset"] :].startswith(first["raw"]) and len(first["raw"]) > 3000
        lines = data.split(b"\n")
        assert all(json.loads(lines[row["source_line"] - 1])["instruction"] == row["instruction"] for row in samples)


def test_a_bomb_ends_where_it_is_seen(tmp_path, monkeypatch):
    """512 MB out of 16 kB: without a bound one object fills a worker's disk and memory."""
    monkeypatch.setattr(slices, "EXPANSION_BYTES", 20 << 20)
    for compress in (gzip.compress, zstd.compress):
        piece = write(tmp_path / "bomb.jsonl", compress(LINES + b" " * (64 << 20) + b"\n" + LINES))
        samples, rejects = read(piece)
        assert texts(samples) == WANTED
        assert [row["reason"] for row in rejects] in (["expands_too_far"], ["too_long", "expands_too_far"])


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    """Rows of two versions would be in one part, under the name of the first."""
    monkeypatch.setattr(slices, "BLOCK_BYTES", 100)
    for name in ("a.jsonl", "a.parquet"):
        piece = write(tmp_path / name, FORMATS[name])
        blocks = read_slice(piece, FIELDS, None)
        next(blocks)
        (tmp_path / name).write_bytes(FORMATS[name] + b"more")
        with pytest.raises(Stopped, match="changed since the lake was listed"):
            list(blocks)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "pretty.json", "several.jsonl.gz", "a.jsonl.zst", "a.parquet", "file.arrow"]
)
def test_objects_on_s3(bucket, monkeypatch, name):
    """They are read by ranges, Parquet from its end, and large ones from the middle on."""
    S3().put(f"{bucket}/x/{name}", FORMATS[name])
    (piece,) = list_lake([f"{bucket}/x"]).slices
    monkeypatch.setattr(lake, "CUT_BYTES", 700)
    for pieces in ([piece], list_lake([f"{bucket}/x"]).slices):
        samples, rejects = read(*pieces)
        assert texts(samples) == WANTED and rejects == []
    assert len(pieces) == (-(-piece.size // 700) if name in ("a.jsonl", "a.parquet") else 1)


WRITERS = {
    "save_to_disk": lambda data, folder: data.save_to_disk(folder, num_shards=3),
    "save_to_disk of splits": lambda data, folder: datasets.DatasetDict(
        train=data.select(range(30)), zoo=data.select(range(30, 40))
    ).save_to_disk(folder),
    "to_parquet": lambda data, folder: data.to_parquet(folder / "train.parquet", batch_size=9),
    "to_json": lambda data, folder: data.to_json(folder / "train.jsonl.gz", compression="gzip", force_ascii=False),
    "to_json, an array": lambda data, folder: data.to_json(folder / "train.json", lines=False),
}


@pytest.mark.parametrize("form", ["columns", "messages"])
@pytest.mark.parametrize("name", WRITERS)
def test_folders_that_datasets_wrote(tmp_path, name, form):
    """The library that instruction data is mostly made with: what it wrote is read as it reads it, whatever it keeps beside."""
    (folder := tmp_path / "data").mkdir()
    rows = ROWS if form == "columns" else [
        {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}], "id": row["id"]} for row in ROWS
    ]  # fmt: skip
    WRITERS[name](datasets.Dataset.from_list(rows), folder)
    fields = FIELDS if form == "columns" else Fields(messages="messages", carry=("id",))
    samples, rejects = read(*list_lake([str(folder)]).slices, fields=fields)
    assert texts(samples) == WANTED and rejects == []

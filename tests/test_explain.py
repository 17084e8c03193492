"""`raypipe explain`: its words against the tables of a finished run, what it reads on S3, what it refuses."""

import json
import re
import shutil

import pyarrow as pa
import pytest

from raypipe import explain, read
from raypipe.cli import main
from raypipe.errors import ConfigError, DataError
from raypipe.records import recorded_runs
from raypipe.s3 import S3
from raypipe.store import Folder
from tests.lakes import raypipe
from tests.s3.fake import BUCKET, moto_bucket


@pytest.fixture(scope="module")
def rows(finished):
    """Every row of the run, as the stages' columns beside each other."""
    root = str(finished[0] / "root")
    tables = {stage: read(root, stage).to_table() for stage in ("ingest", "clean", "cluster", "score", "select")}
    joined = {f"{stage}.{name}": table[name] for stage, table in tables.items() for name in table.column_names}
    return pa.table(joined).to_pylist()


def said(finished, sample_id):
    return dict(explain(str(finished[0] / "root"), "test", sample_id=sample_id))


def test_every_row_is_told_as_its_columns_are(finished, rows):
    """A wrong word here makes a person distrust the selection, or trust it."""
    reasons = set()
    for row in rows[::5]:
        found = said(finished, row["ingest.sample_id"])
        if row["clean.status"] != "ok":
            continue  # told as the sample that it repeats
        reasons.add(row["select.reason"])
        assert f"line {row['ingest.source_line']} of {row['ingest.source_uri']}\n" in found["ingest"]
        assert found["cluster"].startswith(f"cluster {row['cluster.cluster_id']} of 4, ")
        if row["score.ifd"] is not None:
            assert (
                f"IFD {row['score.ifd']:.4f}, the instruction {'helps' if row['score.ifd'] < 1 else 'does not help'}"
                in found["score"]
            )
        words = {
            "selected": "packed for training, by best_fit: in ",
            "held_out": "packed for held-out loss, by best_fit: in ",
        }
        assert found["pack"].startswith(words.get(row["select.reason"], "in no pack"))
        kept = row["select.reason"] == "selected"
        assert found["select"].startswith("kept: rank" if kept else "not kept: ")
        if row["select.reason"] in ("selected", "below_cut"):
            among = [
                other["score.ifd"]
                for other in rows
                if other["select.reason"] in ("selected", "below_cut")
                and other["cluster.cluster_id"] == row["cluster.cluster_id"]
            ]
            rank = 1 + sum(ifd > row["score.ifd"] for ifd in among)
            best, worst, eligible, keep = (
                int(number.replace(",", ""))
                for number in re.search(
                    r"rank ([\d,]+)(?: to ([\d,]+))? by IFD among the ([\d,]+) .* of which ([\d,]+) are",
                    found["select"],
                ).groups("0")
            )
            assert best <= rank <= max(worst, best) and eligible == len(among) and (rank <= keep) == kept
    assert {"selected", "below_cut", "held_out", "ifd_too_high"} <= reasons


def test_a_duplicate_names_both_lines(finished, rows):
    twice = next(row for row in rows if row["clean.status"] == "duplicate")
    first = next(row for row in rows if row["ingest.sample_id"] == twice["ingest.sample_id"])
    found = said(finished, twice["ingest.sample_id"])
    assert f"line {first['ingest.source_line']} of {first['ingest.source_uri']}\n" in found["ingest"]
    assert f"repeated by line {twice['ingest.source_line']} of {twice['ingest.source_uri']}" in found["clean"]


def test_by_the_command_line_and_by_text(finished, rows, capsys):
    row = next(row for row in rows if row["select.reason"] == "selected")
    instruction = row["ingest.instruction"]
    done = raypipe("explain", finished[1], "--text", instruction)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "ingest",
        "clean",
        "cluster",
        "score",
        "select",
        "pack",
    ]
    assert (
        "kept: rank" in lines[-2]
        and lines[-1].startswith("pack     packed for training")
        and any("near the centre: " in line for line in lines)
    )
    for words, code, wanted in (
        ([row["ingest.sample_id"][:5]], 2, "wanted a sample_id of 32"),
        ([], 2, "wanted one SAMPLE_ID, or --text TEXT"),
        (["f" * 32], 3, "no row of"),
        (["--text", "e"], 3, "more than 10 samples hold 'e'"),
        (["--text", "no instruction says this"], 3, "no instruction holds"),
        (["f" * 32, "name=other"], 2, "got run 'other', wanted one of ['test"),
    ):
        assert main(["explain", str(finished[1]), *words]) == code
        assert wanted in capsys.readouterr().err


def test_on_s3_it_reads_clean_and_the_samples_own_parts(finished, rows, tmp_path, monkeypatch):
    """Explaining one of ten million samples must not read the lake: a count of bytes, by object."""
    root, row = finished[0] / "root", next(row for row in rows if row["select.reason"] == "below_cut")
    with moto_bucket(monkeypatch, tmp_path) as client:
        for path in root.rglob("*"):
            if path.is_file() and "train-" not in str(path):
                client.put_object(Bucket=BUCKET, Key=str(path.relative_to(root)), Body=path.read_bytes())
        got: list[tuple[str, int]] = []

        def counted(method):
            def call(storage, uri, *rest):
                data = method(storage, uri, *rest)
                got.append((uri.removeprefix(f"s3://{BUCKET}/"), len(data or b"")))
                return data

            return call

        for name in ("get", "read_range"):
            monkeypatch.setattr(S3, name, counted(getattr(S3, name)))
        found = dict(explain(f"s3://{BUCKET}", "test", sample_id=row["ingest.sample_id"]))
        assert found["select"].startswith("not kept: rank")
    folders = recorded_runs(Folder(str(root)))["test"]["folders"]
    (part,) = {key.split("/")[1] for key, _ in got if "part-" in key and not key.startswith(folders["clean"])}
    parts = [root / folders[stage] / part for stage in ("ingest", "clean", "cluster", "score", "select")]
    scanned = sum(path.stat().st_size for path in (root / folders["clean"]).glob("part-*"))
    most = dict.fromkeys(folders, 3)  # a part may be read for several of its columns
    spent = {
        stage: sum(size for key, size in got if key.startswith(folders[stage]) and "part-" in key) for stage in folders
    }
    for path, stage in zip(parts, ("ingest", "clean", "cluster", "score", "select"), strict=True):
        assert 0 < spent[stage] <= most[stage] * path.stat().st_size + (scanned if stage == "clean" else 0)
    assert not any(spent[stage] for stage in ("embed", "pack", "train", "report"))


def test_a_damaged_part_is_named(finished, rows, tmp_path):
    """Bytes that storage changed must not end as a traceback, nor as another sample's story."""
    root = tmp_path / "root"
    shutil.copytree(finished[0] / "root", root)
    part = sorted((root / recorded_runs(Folder(str(root)))["test"]["folders"]["clean"]).glob("part-*"))[2]
    part.write_bytes(part.read_bytes()[:-40] + bytes(40))
    with pytest.raises(DataError, match=rf"{part.name}: it cannot be read .*--repair clean"):
        explain(str(root), "test", sample_id=rows[0]["ingest.sample_id"])


def test_needs_what_it_explains(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "test.json").write_text(
        json.dumps({"lake": "a", "folders": {"ingest": "ingest-1", "clean": "clean-1"}})
    )
    with pytest.raises(ConfigError, match="has not finished clean"):
        explain(str(tmp_path), "test", sample_id="a" * 32)
    with pytest.raises(DataError, match="wanted a run's record"):
        (tmp_path / "runs" / "test.json").write_text("{}")
        explain(str(tmp_path), "test", sample_id="a" * 32)

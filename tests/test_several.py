"""Several runs by one command; and fields that are carried beside the samples."""

import gzip
import json
import shutil

from raypipe import read
from tests.lakes import manifest, raypipe, stage_folder, write_config


def test_a_list_of_fractions_makes_a_run_each(finished, tmp_path):
    """What they share is made once; each is what it would be alone, and the screen compares them."""
    root = tmp_path / "root"
    shutil.copytree(finished[0] / "root", root)
    before = {path.name for path in root.iterdir()}
    done = raypipe("run", finished[1], f"storage.root={root}", "select.keep_fraction=[0.4,0.2]", "--until", "select")
    assert done.returncode == 0, done.stderr
    assert len({path.name for path in root.iterdir()} - before) == 1  # of 0.2: 0.4 is the finished run's
    assert stage_folder(root, "select", "test@0.4") == stage_folder(root, "select")
    table = [line.split() for line in done.stdout.split("\n\n")[-1].splitlines()]
    assert [row[:2] for row in table[1:]] == [
        [f"test@{fraction}", str(manifest(root, "select", f"test@{fraction}")["counts"]["selected"])]
        for fraction in (0.4, 0.2)
    ]
    kept = [
        set(read(str(root), "select", f"test@{fraction}").to_table().to_pandas().query("selected").sample_id)
        for fraction in (0.2, 0.4)
    ]
    assert kept[0] < kept[1]
    one = raypipe("status", root)
    assert one.returncode == 0 and "run test@0.2" in one.stdout


def test_carried_fields_reach_clean_as_text(tmp_path, random_model, embedder):
    """A field may hold a number here and a word there; one that is no text at all is a reject, not the end of the run."""
    fields = ["python", "", None, 0.5, ["a", {"b": 1}], "ß", "\ud800"]
    rows = [{"instruction": f"do {n}", "response": "ok", "lang": value} for n, value in enumerate(fields)]
    rows.append({"instruction": "do none", "response": "ok"})
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    path = write_config(
        tmp_path / "test.yaml",
        model=random_model,
        embedder=embedder,
        ingest={"carry": ["lang"], "max_rejected_fraction": 0.5},
    )
    done = raypipe("run", path, "--until", "clean")
    assert done.returncode == 0, done.stderr
    wanted = ["python", "", None, "0.5", '["a", {"b": 1}]', "ß", None]
    for stage in ("ingest", "clean"):
        assert read(str(tmp_path / "root"), stage).to_table()["lang"].to_pylist() == wanted
    assert manifest(tmp_path / "root", "ingest")["counts"] == {"ok": 7, "lone_surrogate": 1}
    refused = raypipe("plan", path, "select.per=language")
    assert refused.returncode == 2 and "select.per: language is not carried. Add it to ingest.carry" in refused.stderr
    refused = raypipe("plan", path, "ingest.carry=[status]")
    assert refused.returncode == 2 and "status is a name of a column" in refused.stderr

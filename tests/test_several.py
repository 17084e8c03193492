"""Several runs by one command; and fields that are carried beside the samples."""

import gzip
import json
import re
import shutil

import pandas
import pytest

from raypipe import read
from raypipe.ops.style import STYLES
from tests.lakes import manifest, raypipe, stage_folder, write_config

pytestmark = pytest.mark.usefixtures("shared_ray")


def test_a_list_of_fractions_makes_a_run_each(finished, tmp_path):
    """What they share is made once; each is what it would be alone, and the screen compares them."""
    root = tmp_path / "root"
    shutil.copytree(finished[0] / "root", root)
    before = {path.name for path in root.iterdir()}
    done = raypipe("run", finished[1], f"storage.root={root}", "select.keep_fraction=[0.4,0.2]", "--until", "select")
    assert done.returncode == 0, done.stderr
    new = sorted({path.name for path in root.iterdir()} - before)
    assert [name.partition("-")[0] for name in new] == ["compare", "select"]  # of 0.2: 0.4 is the finished run's
    assert stage_folder(root, "select", "test@0.4") == stage_folder(root, "select")
    table = [line.split() for line in done.stdout.split("\n\n")[-1].splitlines()]
    assert [row[:2] for row in table[2:4]] == [
        [f"test@{fraction}", str(manifest(root, "select", f"test@{fraction}")["counts"]["selected"])]
        for fraction in (0.4, 0.2)
    ]
    assert table[-1] == ["page", str(root / new[0] / "index.html")]
    found = json.loads((root / new[0] / "compare.json").read_text())
    everything, *runs = found["rows"]
    assert [run["samples"] for run in runs] == [run["kept"] for run in runs]  # a small lake is measured whole
    for run in runs:
        rows = kept_rows(root, run["run"])
        assert run["response_tokens"]["median"] == rows["num_response_tokens"].median()
        assert run["comments"] == pytest.approx(
            rows["response"].map(lambda text: bool(re.search(STYLES["comments"], text))).mean()
        )
        assert run["tokens"] == (rows["num_response_tokens"] + rows["num_instruction_tokens"]).sum()
    assert everything["samples"] > runs[0]["samples"] > runs[1]["samples"]
    again = raypipe("run", finished[1], f"storage.root={root}", "select.keep_fraction=[0.4,0.2]", "--until", "select")
    assert again.stdout.split("\n\n")[-1] == done.stdout.split("\n\n")[-1]
    kept = [
        set(read(str(root), "select", f"test@{fraction}").to_table().to_pandas().query("selected").sample_id)
        for fraction in (0.2, 0.4)
    ]
    assert kept[0] < kept[1]
    one = raypipe("status", root)
    assert one.returncode == 0 and "run test@0.2" in one.stdout


def kept_rows(root, run):
    """Texts and scores of what a run keeps, put together apart from raypipe's own way."""
    tables = [read(str(root), stage, run).to_table().to_pandas() for stage in ("ingest", "score", "select")]
    columns = [
        tables[0][["response"]],
        tables[1][["num_response_tokens", "num_instruction_tokens"]],
        tables[2][["selected"]],
    ]
    return pandas.concat(columns, axis=1).query("selected")


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

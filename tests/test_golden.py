"""What each stage makes of 50 fixed samples, beside the version that made it.

Without it a change of rows under an unchanged version would mix two kinds of parts in one folder.
"""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raypipe.recipes import STAGES
from tests.lakes import manifest, stage_folder

GOLDEN = Path(__file__).parent / "golden"
NUM_ROWS = 50
DROPPED = {"source_uri", "evidence", "input_ids"}  # paths, and what other columns say
DROPPED |= {"num_workers", "seconds", "tokens_per_s", "target_tokens_per_s", "data_wait_share", "peak_memory_bytes"}
DROPPED |= {"eval_runtime", "fill", "imbalance"}  # of a machine, or of how many workers there were


def rounded(value):
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        return [rounded(item) for item in value[:6]]
    if isinstance(value, dict):
        return [rounded(item) for item in value.values()]
    return value


def rows_of(root, stage, run):
    if stage == "train":
        lines = (stage_folder(root, stage, run) / "metrics.jsonl").read_text().splitlines()
        return [
            {name: rounded(value) for name, value in json.loads(line).items() if name not in DROPPED} for line in lines
        ]
    if stage == "report":
        report = json.loads((stage_folder(root, stage, run) / "report.json").read_text())
        return [{name: rounded(value) for name, value in report["headline"].items()}]
    rows = []
    for part in manifest(root, stage, run)["parts"]:
        rows += pq.read_table(stage_folder(root, stage, run) / part["name"]).to_pylist()
    # what the tuned model writes is as near as its weights are, on another machine
    rows = [row for row in rows if row.get("model") != "tuned"]
    return [{name: rounded(value) for name, value in row.items() if name not in DROPPED} for row in rows[:NUM_ROWS]]


def same(one, other):
    """Floats to three digits or a thousandth: engines round differently on other machines."""
    if isinstance(one, float) and isinstance(other, int | float):
        return one == pytest.approx(other, abs=2e-3, rel=1e-3)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_rows_change_only_with_the_version(finished, evaluated, stage, request):
    root, run = (
        (evaluated[0], "evaluated") if stage.name in ("generate", "evaluate") else (finished[0] / "root", "test")
    )
    path, got = GOLDEN / f"{stage.name}.json", rows_of(root, stage.name, run)
    if request.config.getoption("--update-golden"):
        path.write_text(json.dumps({"version": stage.version, "rows": got}, indent=0, ensure_ascii=False) + "\n")
    golden = json.loads(path.read_text())
    assert golden["version"] == stage.version, "a new version: run with --update-golden and read the difference"
    assert len(golden["rows"]) == len(got)
    for expected, found in zip(golden["rows"], got, strict=True):
        assert set(expected) == set(found)
        assert [name for name in expected if not same(expected[name], found[name])] == [], (expected, found)

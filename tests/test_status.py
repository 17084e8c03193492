"""`raypipe status`: true from storage alone, while a job runs, stands still or is being removed."""

import json
import os
import shutil
import threading
import time

import pytest

from raypipe.local import Local
from raypipe.progress import status
from raypipe.store import Folder
from tests.lakes import raypipe

PARTS = [f"part-{number:07d}-0000-aaaaaaaaaaaa-end.parquet" for number in range(4)]
FOLDERS = {stage: f"{stage}-0123456789ab" for stage in ("ingest", "clean", "embed", "pack", "train")}


def put(path, content, age_s=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(path, (then := time.time() - age_s, then))


@pytest.fixture
def root(tmp_path):
    """A run whose ingest is finished, with three of four parts of embed."""
    put(tmp_path / "runs" / "nightly.json", {"lake": "00", "folders": FOLDERS, "config": {}}, age_s=7260)
    manifest = {"rows": 40, "counts": {"ok": 40, "not_json": 2}, "parts": [{"name": name} for name in PARTS]}
    put(tmp_path / FOLDERS["ingest"] / "manifest-00.json", manifest)
    for number, name in enumerate(PARTS[:3]):
        put(tmp_path / FOLDERS["embed"] / name, "x", age_s=100 - 10 * number)
    return tmp_path


def state(root, stage):
    """Parts and state in the line of a stage."""
    line = next(line for line in status(Folder(str(root))).splitlines() if line.startswith(stage))
    return line.split()[2], line.split(maxsplit=4)[4]


def test_says_what_the_run_said_at_its_end(finished):
    """Who comes the next morning sees the numbers that the terminal showed, and where report and model are."""
    said = raypipe("status", finished[0] / "root")
    assert said.returncode == 0 and said.stderr == ""
    lines, ended = said.stdout.splitlines(), finished[2].stdout.splitlines()
    assert lines[0].startswith("run test  started ") and lines[0].endswith(" ago")
    done = next(number for number, line in enumerate(ended) if line.startswith("done in "))
    assert lines[1:] == ended[1:done] + ended[done + 1 :]


def test_parts_done_of_how_many(root):
    """Parts of a lake that was there before count nothing for this one: they would be taken for progress."""
    put(root / FOLDERS["embed"] / "part-0000000-0000-bbbbbbbbbbbb-end.parquet", "x", age_s=500)
    put(root / FOLDERS["pack"] / "part-0000000.parquet", "x", age_s=5)
    assert state(root, "embed") == ("3/4", "unfinished: last object 80 s ago")
    assert state(root, "pack") == ("1/?", "unfinished: last object 5 s ago")
    assert state(root, "clean") == ("-", "to do") and state(root, "ingest") == ("4/4", "done")
    said = status(Folder(str(root))).splitlines()
    assert said[0] == "run nightly  started 2 h 1 min ago" and said[-1].startswith("42 read = 40 rows + 2 rejected")


@pytest.mark.parametrize(
    ("owner", "age_s", "said"),
    [
        ({"beat": 3}, 3, "process 41 on node-3, last sign of life 3 s ago"),
        ({"beat": 3}, 900, "process 41 on node-3, last sign of life 900 s ago (silent: a rerun takes over)"),
        ({"ended": True}, 60, "process 41 on node-3 ended 60 s ago"),
    ],
)
def test_who_trains_and_how_far(root, owner, age_s, said):
    """Whether training is alive must be seen without a look at the cluster: at night nobody is there to ask."""
    folder = root / FOLDERS["train"]
    steps = [{"step": 0, "eval_loss": 9.5}, *({"step": n, "loss": 3.0 - n / 1000} for n in range(1, 1201))]
    put(folder / "metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps))
    put(folder / "owner-0001.json", {"host": "node-1", "pid": 7, "token": "t"}, age_s=5000)
    put(folder / "owner-0002.json", {"host": "node-3", "pid": 41, "token": "t", **owner}, age_s=age_s)
    assert state(root, "train") == ("-", f"unfinished: step 1,200, loss 1.8; {said}")


def test_training_that_has_only_begun(root):
    """Neither metrics nor owner: killed between the two, or of another tool."""
    put(root / FOLDERS["train"] / "checkpoints" / "step-1" / "x", "")
    assert state(root, "train")[1] == "unfinished: no step yet; nobody trains"


def test_runs_of_one_root_the_last_one_at_the_end(root):
    """With many runs a terminal shows the last lines: they must be of the run one has just started."""
    for name, age_s in (("a", 30), ("b", 90000)):
        put(root / "runs" / f"{name}.json", {"lake": "11", "folders": FOLDERS, "config": {}}, age_s=age_s)
    runs = [line.split()[1] for line in status(Folder(str(root))).splitlines() if line.startswith("run ")]
    assert runs == ["b", "nightly", "a"]


def test_no_run_and_a_damaged_one(root, tmp_path):
    """A wrong root is told from an idle one, and a damaged file is named, without a traceback."""
    assert raypipe("status", tmp_path / "none").stdout.strip() == f"{tmp_path}/none: no run yet"
    (root / "runs" / "nightly.json").write_text("{")
    done = raypipe("status", root)
    assert done.returncode == 3 and "nightly.json" in done.stderr and "Traceback" not in done.stderr


def test_what_is_missing_of_a_finished_run_costs_its_words_only(root):
    """Folders that someone removed: the rest is still shown."""
    put(
        root / FOLDERS["pack"] / "manifest-00.json",
        {
            "rows": 1,
            "parts": [],
            "summary": {"fill": 0.9, "padding": {"pad": 0.5}},
            "config": {"pack": {"strategy": "best_fit"}},
        },
    )
    shutil.rmtree(root / FOLDERS["ingest"])
    assert state(root, "ingest") == ("-", "to do") and state(root, "embed")[0] == "3/?"
    assert status(Folder(str(root))).splitlines()[-1] == "fill 90.0% (padding would be 50.0%)"


def test_while_objects_come_and_go(root):
    """A job writes, a person removes, status looks: no error between a listing and a look at what it listed."""
    ended, folder = threading.Event(), root / FOLDERS["train"]

    def churn():
        while not ended.is_set():
            for number in range(20):
                Local().put(f"{folder}/part-{number}", b"x")
            Local().put(f"{folder}/owner-0001.json", b'{"host": "h", "pid": 1}')
            shutil.rmtree(folder)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        said = {status(Folder(str(root))).splitlines()[6].split()[4] for _ in range(300)}
    finally:
        ended.set()
        thread.join()
    assert said <= {"to", "unfinished:"} and len(said) == 2

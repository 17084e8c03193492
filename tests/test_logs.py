"""Lines that a machine reads: one JSON object each, whatever a run says, and the last with the exit code."""

import json

from raypipe import gauges, logs
from tests.lakes import raypipe


def test_each_line_is_an_object_with_run_and_stage(monkeypatch, capfd):
    """A collector that meets a line of another form files the whole log as text: no alert, no search by stage."""
    monkeypatch.setenv("RAYPIPE_LOG", "json")
    monkeypatch.setattr(logs.logging.getLogger(), "handlers", [])
    logs.configure()
    with gauges.at_work("nightly", "embed"):
        logs.log.info("3 of %d parts", 7)
    logs.log.warning('über "uns"\nzwei Zeilen')
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert {**first, "time": ""} == {
        "time": "",
        "level": "info",
        "run": "nightly",
        "stage": "embed",
        "message": "3 of 7 parts",
    }
    assert first["time"].endswith("Z") and second["message"] == 'über "uns"\nzwei Zeilen' and "run" not in second


def test_a_run_that_fails_says_its_exit_code(tmp_path):
    """`ray job submit` does not: whoever reads logs alone must know whether a retry is worth anything."""
    done = raypipe("plan", tmp_path / "no.yaml", RAYPIPE_LOG="json")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 == json.loads(line)["exit_code"] and "no.yaml" in json.loads(line)["message"]


def test_a_format_that_is_not_known(tmp_path):
    """A typo must not cost a night's log its form."""
    done = raypipe("status", tmp_path, RAYPIPE_LOG="jsno")
    assert done.returncode == 2 and done.stderr == "raypipe: RAYPIPE_LOG: got jsno, wanted text or json\n"

"""The whole chain by the command line on a small lake, and what a rerun of it costs."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

import raypipe as package
from raypipe.ops.synthetic import chunk_lines, count_rows
from tests.lakes import digests, manifest, raypipe, stage_folder, write_lake

pytestmark = pytest.mark.usefixtures("shared_ray")

NUM_SAMPLES = 220  # of the fixture `finished`


@pytest.fixture
def copy(finished, tmp_path):
    """The finished root under other hands; the lake stays where it was, as its paths are part of it."""
    folder, config, _ = finished
    shutil.copytree(folder / "root", tmp_path / "root")
    return tmp_path / "root", (config, f"storage.root={tmp_path / 'root'}")


def test_counts_are_those_that_synth_planted(finished):
    """Every row is accounted for: in = out + dropped, by reason."""
    root = finished[0] / "root"
    truth = count_rows(NUM_SAMPLES)
    ingest, clean, score, select = (manifest(root, stage)["counts"] for stage in ("ingest", "clean", "score", "select"))
    assert sum(ingest.values()) == truth["rows"] and sum(ingest.values()) - ingest["ok"] == truth["malformed"]
    assert clean == {"ok": truth["samples"], "duplicate": truth["exact_duplicates"]}
    assert sum(score.values()) == sum(select.values()) == ingest["ok"]
    assert (
        manifest(root, "pack")["summary"]["samples"]
        == select["selected"]
        == manifest(root, "select")["summary"]["kept"]
    )


def test_every_stage_has_at_least_eight_parts(finished):
    assert all(
        len(parts) >= 8
        for stage, parts in digests(finished[0] / "root").items()
        if stage not in ("pack", "train", "generate", "evaluate", "report")
    )


def test_parts_are_aligned_row_for_row(finished):
    """No joins anywhere: row i of part N is the same sample in every table."""
    root = finished[0] / "root"
    for part in digests(root)["ingest"]:
        ids = [
            pq.read_table(stage_folder(root, stage) / part)["sample_id"].to_pylist()
            for stage in ("ingest", "clean", "embed", "cluster", "score", "select")
        ]
        assert all(other == ids[0] for other in ids)


def test_duplicates_name_the_row_they_repeat(finished):
    root = finished[0] / "root"
    ingest = {
        part: pq.read_table(stage_folder(root, "ingest") / part)["sample_id"].to_pylist()
        for part in digests(root)["ingest"]
    }
    seen = 0
    for part in ingest:
        for row, status in enumerate(pq.read_table(stage_folder(root, "clean") / part).to_pylist()):
            if status["status"] == "duplicate":
                first_part, first_row = status["evidence"].split()
                assert ingest[first_part][int(first_row)] == ingest[part][row]
                assert (first_part, int(first_row)) < (part, row)
                seen += 1
    assert seen == count_rows(NUM_SAMPLES)["exact_duplicates"]


def test_rejects_keep_file_line_reason_and_raw_bytes(finished):
    """What is not a sample is not lost either."""
    folder, root = finished[0], finished[0] / "root"
    rows = [
        row
        for path in sorted((stage_folder(root, "ingest") / "_rejected").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    lines = {line.strip() for line in chunk_lines(0, seed=7, num_samples=NUM_SAMPLES)[0]}
    assert len(rows) == count_rows(NUM_SAMPLES)["malformed"]
    assert all(
        row["raw"] in lines and row["source_uri"].startswith(str(folder / "lake")) and row["source_line"] > 0
        for row in rows
    )


def test_the_end_is_said_in_words(finished):
    said = finished[2].stdout
    assert "IFD >= 1" in said and "held-out loss" in said and "fill" in said
    assert "report  " in said and said.strip().splitlines()[-1].startswith("model   ")


def test_a_finished_run_answers_at_once_without_ray(finished):
    """`-X importtime` names every module that was loaded."""
    import os
    import subprocess
    import sys
    import time

    started = time.monotonic()
    words = [sys.executable, "-X", "importtime", "-m", "raypipe.cli", "run", str(finished[1])]
    again = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ))
    seconds = time.monotonic() - started
    assert again.returncode == 0 and again.stdout.count("done") >= 9
    loaded = {
        line.rpartition("|")[2].strip().split(".")[0] for line in again.stderr.splitlines() if "import time:" in line
    }
    assert not loaded & {"ray", "torch", "transformers", "vllm", "pandas"}
    print(f"a finished run answered in {seconds:.1f} s")


def test_other_resources_rerun_nothing(finished):
    done = raypipe("run", finished[1], "resources.embed.actors=[1, 2]", "resources.score.max_batch_tokens=512")
    assert done.returncode == 0 and " starts " not in done.stderr and done.stdout.count("done") >= 9


def test_another_fraction_reruns_select_and_later_only(copy):
    root, words = copy
    before = digests(root)
    done = raypipe("run", *words, "select.keep_fraction=0.2", "--until", "pack")
    assert done.returncode == 0, done.stderr
    started = [line.split()[1] for line in done.stderr.splitlines() if " starts in " in line]
    assert started == ["select", "pack"]
    assert {stage: digests(root)[stage] for stage in ("ingest", "clean", "embed", "cluster", "score")} == {
        stage: before[stage] for stage in ("ingest", "clean", "embed", "cluster", "score")
    }


def test_from_needs_the_recipes_that_were_prepared(copy):
    """`train` with another selection than `prepare` made would train on the wrong data."""
    root, words = copy
    done = raypipe("run", *words, "select.keep_fraction=0.2", "--from", "train")
    assert done.returncode == 2 and "select was prepared as select-" in done.stderr and "--until pack" in done.stderr
    missing = next(stage_folder(root, "pack").glob("manifest-*.json"))
    missing.unlink()
    done = raypipe("run", *words, "--from", "train")
    assert done.returncode == 2 and str(missing) in done.stderr and "--until pack" in done.stderr


def test_plan_and_status_read_storage_alone(copy):
    root, words = copy
    shutil.rmtree(stage_folder(root, "train"))
    planned, status = raypipe("plan", *words), raypipe("status", root)
    assert planned.returncode == status.returncode == 0
    for said in (planned.stdout, status.stdout):
        assert any(
            line.split()[0] == "score" and line.split()[-1] == "done" for line in said.splitlines() if line.strip()
        )
        assert any(line.split()[0] == "train" and line.endswith("to do") for line in said.splitlines() if line.strip())


def test_what_scoring_will_cost(copy):
    """Nobody rents GPUs on a guess: unknown until some rows were scored, or some parts are."""
    root, words = copy
    made, folder = manifest(root, "score"), stage_folder(root, "score")
    shutil.rmtree(folder)
    unknown = raypipe("plan", *words)
    assert f"scoring: {made['rows']} rows, cost unknown" in unknown.stdout and "--measure" in unknown.stdout
    on_gpus = [*words, "resources.score.gpus=1", "resources.max_gpu_hours=0.0001"]
    refused = raypipe("run", *on_gpus)
    assert refused.returncode == 2 and "rows costs is unknown. Measure it by" in refused.stderr
    measured = raypipe("plan", *words, "--measure")
    assert measured.returncode == 0, measured.stderr
    (line,) = (line for line in measured.stdout.splitlines() if line.startswith("scoring: "))
    assert f"{made['rows']} rows, " in line and "CPU-h; from" in line and "rows measured on" in line
    assert any(line.startswith("score ") and line.endswith("to do") for line in measured.stdout.splitlines())
    millions, low, high = map(float, re.search(r"([\d.e-]+) \(([\d.e-]+) to ([\d.e-]+)\) M tokens", line).groups())
    assert low * 0.9e6 < made["figures"]["num_tokens"] < high * 1.1e6 and low < millions < high
    refused = raypipe("run", *on_gpus)
    assert (
        refused.returncode == 2 and "GPU-h, wanted at most 0.0001" in refused.stderr and "ray on" not in refused.stderr
    )


def test_read_gives_a_dataset(finished):
    table = package.read(str(finished[0] / "root"), "select").to_table()
    assert table.num_rows == manifest(finished[0] / "root", "select")["rows"] and "reason" in table.column_names


def test_a_finished_run_takes_its_name_back(copy):
    """Two selections under one name: what `read`, `status` and jobs/train.py see is what was run last."""
    root, words = copy
    first = digests(root)
    assert raypipe("run", *words, "select.keep_fraction=0.2", "--until", "select").returncode == 0
    assert digests(root)["select"] != first["select"]
    assert raypipe("run", *words).returncode == 0 and digests(root) == first


def test_more_files_compute_only_their_own_parts(copy, finished, tmp_path):
    """A nightly lake: in ingest, clean, embed and score old parts are neither made nor touched.

    Besides new rows comes an empty file, and one of duplicates only, as in real lakes.
    """
    (root, words), lake, more = copy, finished[0] / "lake", tmp_path / "more"
    write_lake(more, num_samples=40, files=1, seed=8)
    (more / "day-001-empty.jsonl").write_text("\n")
    shutil.copy(lake / "day-000.jsonl.gz", more / "day-002-again.jsonl.gz")
    words = [*words, f"ingest.paths=[{lake}, {more}]", "--until", "score"]
    row_wise = ("ingest", "clean", "embed", "score")
    folders = {stage: stage_folder(root, stage) for stage in row_wise}
    before = {
        stage: {path.name: path.stat().st_mtime_ns for path in folders[stage].glob("part-*")} for stage in row_wise
    }
    said = "the lake has grown since the last run: 3 slices after its 4, which are kept"
    assert said in raypipe("plan", *words[:-2]).stdout
    grown = raypipe("run", *words)
    assert grown.returncode == 0 and said in grown.stderr, grown.stderr
    for stage in row_wise:
        assert stage_folder(root, stage) == folders[stage], f"{stage} has another folder"
        after = {path.name: path.stat().st_mtime_ns for path in folders[stage].glob("part-*")}
        assert {name: after[name] for name in before[stage]} == before[stage], f"{stage} wrote an old part again"
        new = set(after) - set(before[stage])
        assert {name[:12] for name in new} == {"part-0000004", "part-0000005", "part-0000006"}
        made = f"{len(new)} of {len(after)} parts" if stage != "ingest" else "3 of 7 slices"
        assert f"{folders[stage].name}: {made} to make" in grown.stderr, f"{stage} computed an old part again"
    unbroken = tmp_path / "unbroken"  # embed and score follow from these part by part
    done = raypipe("run", *words[:-1], "clean", f"storage.root={unbroken}")
    assert done.returncode == 0
    assert digests(unbroken) == {stage: found for stage, found in digests(root).items() if stage in ("ingest", "clean")}


def test_a_lake_that_changed_before_its_end(copy, finished, tmp_path):
    """A file that is replaced makes everything after it anew: who did it by mistake must see it before the GPUs do."""
    _, words = copy
    shutil.copytree(finished[0] / "lake", lake := tmp_path / "lake", copy_function=shutil.copy2)
    words = [*words, f"ingest.paths=[{lake}]", "--until", "ingest"]
    assert raypipe("run", *words).returncode == 0
    (lake / "day-002.jsonl.gz").touch()
    said = raypipe("plan", *words[:-2]).stdout
    assert (
        f"from slice 3 of 4 on: {lake}/day-002.jsonl.gz or one just before it was changed" in said
        and "2 slices are kept" in said
    ), said
    (lake / "day-002.jsonl.gz").unlink()
    assert "from slice 3 of 3 on" in raypipe("plan", *words[:-2]).stdout
    (lake / "day-003.jsonl.gz").unlink()
    assert "files at the end of the last run's lake are gone" in raypipe("plan", *words[:-2]).stdout


def test_report_json_agrees_with_the_manifests(finished):
    """A number on the screen can be found in a file."""
    root = finished[0] / "root"
    report = json.loads((stage_folder(root, "report") / "report.json").read_text())
    select = manifest(root, "select")["counts"]
    assert (
        report["headline"]["selected"]
        == select["selected"]
        == sum(cluster["selected"] for cluster in report["clusters"])
    )
    assert [step["rows_out"] for step in report["flow"]][-1] == select["selected"]
    assert sum(report["histograms"]["ifd"]["all"]) == manifest(root, "score")["counts"]["ok"]
    assert sum(report["histograms"]["ifd"]["selected"]) == select["selected"]

"""Near duplicates and leaks on a real run, on a lake that grows."""

import json
from itertools import combinations

import pytest

from raypipe.ops.rows import Fields, Sample, parse_line
from raypipe.part import read_part
from raypipe.store import Folder
from tests.lakes import manifest, raypipe, stage_folder, write_config, write_lake
from tests.ops.test_minhash import grams_of

SIMILARITY = 0.6


@pytest.fixture
def config(tmp_path, random_model, embedder):
    lines = write_lake(tmp_path / "all", num_samples=300, files=4)
    (tmp_path / "lake").mkdir()
    leak = next(
        found
        for found in (parse_line(line, Fields()) for line in lines)
        if isinstance(found, Sample) and len(found.response.split()) > 20
    )
    (tmp_path / "set.jsonl").write_text(
        json.dumps({"task_id": "Own/1", "prompt": "nothing", "canonical_solution": leak.response})
    )
    clean = {"near_duplicate_similarity": SIMILARITY, "decontaminate": [f"{tmp_path}/set.jsonl"]}
    return write_config(
        tmp_path / "test.yaml",
        model=random_model,
        embedder=embedder,
        clean=clean,
        ingest={"max_rejected_fraction": 0.1},
    )


def rows_of(root):
    """[(place, instruction and response, status, evidence)] of all rows of ingest and clean."""
    found = []
    for part in manifest(root, "clean")["parts"]:
        tables = [
            read_part(Folder(str(stage_folder(root, stage))), part["name"]).to_pylist() for stage in ("ingest", "clean")
        ]
        for number, (row, marked) in enumerate(zip(*tables, strict=True)):
            found.append(
                (
                    f"{part['name']} {number}",
                    f"{row['instruction']}\n{row['response']}",
                    marked["status"],
                    marked["evidence"],
                )
            )
    return found


def test_near_duplicates_and_leaks_of_a_lake_that_grows(config, tmp_path):
    """Old parts must not depend on the files that came later, nor later ones be compared with those of their night only."""
    root, files = tmp_path / "root", sorted((tmp_path / "all").iterdir())
    for file in files[:2]:
        file.rename(tmp_path / "lake" / file.name)
    assert raypipe("run", config, "--until", "clean").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in stage_folder(root, "clean").rglob("part-*")}
    for file in files[2:]:
        file.rename(tmp_path / "lake" / file.name)
    grown = raypipe("run", config, "--until", "clean")
    assert grown.returncode == 0 and all(path.stat().st_mtime_ns == was for path, was in before.items()), grown.stderr
    check_against_all_pairs(rows := rows_of(root))
    leaks = [(text, said) for _, text, status, said in rows if status == "contaminated"]
    assert leaks and all(said.startswith(("instruction, Own/1: ", "response, Own/1: ")) for _, said in leaks)
    assert all(" ".join(said.split(": ", 1)[1].split()) in " ".join(text.split()) for text, said in leaks)
    assert "near_duplicate" in grown.stderr and "contaminated" in grown.stderr


def check_against_all_pairs(rows):
    """Every pair compared, as nobody can afford on a lake."""
    grams, place = (
        [set(grams_of(text, 5)) for _, text, _, _ in rows],
        {at: number for number, (at, *_) in enumerate(rows)},
    )
    nearest = [0.0] * len(rows)
    for a, b in combinations(range(len(rows)), 2):
        nearest[b] = max(nearest[b], len(grams[a] & grams[b]) / len(grams[a] | grams[b]))
    found = [number for number, (_, _, status, _) in enumerate(rows) if status == "near_duplicate"]
    assert len(found) > 5 and all(nearest[number] > SIMILARITY - 0.2 for number in found)
    assert all(place[rows[number][3]] < number for number in found)
    missed = [n for n, (_, _, status, _) in enumerate(rows) if status == "ok" and nearest[n] > SIMILARITY + 0.15]
    assert missed == []

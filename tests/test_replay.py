"""Rejected rows as a file, mended, and back in the run."""

import json

import pytest

from tests.lakes import manifest, raypipe, write_config

BAD = [
    b'{"instruction": "sum", "response": "def f(): pass"',
    b'{"instruction": "", "response": "x"}',
    b"{}",
    b'{"instruction": "a", "instruction": "b", "response": "c"}',
    b"\xff\xfe",
    b'{"instruction": "long", "response": ' + b"9" * 70_000 + b"}",
]


@pytest.fixture
def config(tmp_path, random_model, embedder):
    (tmp_path / "lake").mkdir()
    good = [json.dumps({"instruction": f"do {n}", "response": "x"}).encode() for n in range(20)]
    (tmp_path / "lake" / "a.jsonl").write_bytes(b"\n".join(good[:10] + BAD + good[10:]))
    return write_config(
        tmp_path / "test.yaml", model=random_model, embedder=embedder, ingest={"max_rejected_fraction": 0.01}
    )


def test_rejects_are_mended_and_ingested(config, tmp_path):
    """Of a lake that was bought some rows can be mended by a script: without this they are lost, or somebody edits the lake and all is made again."""
    file = tmp_path / "mended.jsonl"
    early = raypipe("replay", config, file)
    assert early.returncode == 2 and "Ingest it first" in early.stderr, early.stderr
    assert raypipe("run", config, "--until", "ingest").returncode == 3, "over its budget"
    said = raypipe("replay", config, file)
    assert (
        said.returncode == 0
        and "5 rows (1 not_json, 1 empty_instruction, 1 no_instruction_column, 1 key_twice, 1 invalid_utf8"
        in said.stdout
    )
    lines = file.read_bytes().splitlines()
    assert [lines[0], lines[4]] == [BAD[0], BAD[4]]
    assert json.loads(lines[1]) == {
        "instruction": "", "response": "x",
        "_rejected": {"source_uri": f"{tmp_path}/lake/a.jsonl", "source_line": 12, "source_offset": sum(len(line) + 1 for line in (tmp_path / "lake/a.jsonl").read_bytes().splitlines()[:11]), "reason": "empty_instruction"},
    }  # fmt: skip
    assert lines[3].startswith(BAD[3][:-1] + b', "_rejected": {'), "both values are there to choose from"
    file.write_bytes(
        b"\n".join([lines[0] + b"}", lines[1].replace(b'"instruction": ""', b'"instruction": "say x"'), lines[4]])
    )
    done = raypipe("replay", config, file, "ingest.max_rejected_fraction=0.5")
    assert done.returncode == 0 and f"{file}: 2 samples, 1 rejected again (1 invalid_utf8)" in done.stdout, done.stderr
    assert f'ingest.paths: ["{tmp_path}/lake", "{file}"]' in done.stdout
    assert manifest(tmp_path / "root", "ingest")["counts"]["ok"] == 22

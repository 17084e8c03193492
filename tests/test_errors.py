"""Bad input by the command line: exit code and one clear message, before Ray where it can be known before."""

import gzip
import json
import os
import pathlib
import shutil

import pytest

from tests.lakes import raypipe, write_config, write_lake

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture
def config(tmp_path, random_model, embedder):
    write_lake(tmp_path / "lake", num_samples=150, files=1)
    return write_config(tmp_path / "test.yaml", model=random_model, embedder=embedder)


def fails(code, *said, words):
    done = raypipe("run", *words)
    assert done.returncode == code, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("raypipe: ") and "Traceback" not in done.stderr
    assert all(text in done.stderr for text in said), done.stderr
    return done


def without(finished, tmp_path, stage):
    """A finished run but for a stage, so that nothing before it is made again."""
    shutil.copytree(finished[0] / "root", tmp_path / "root", ignore=shutil.ignore_patterns(f"{stage}-*"))
    return f"storage.root={tmp_path / 'root'}"


def write_rows(tmp_path, rows):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    )
    return f"ingest.paths=[{tmp_path / 'rows'}]"


def test_unknown_key(config):
    done = fails(
        2, "select.keep_fracton", "Did you mean select.keep_fraction?", words=[config, "select.keep_fracton=0.1"]
    )
    assert "starts in" not in done.stderr


def test_missing_input(config, tmp_path):
    done = fails(2, str(tmp_path / "nowhere"), "no such file", words=[config, f"ingest.paths=[{tmp_path / 'nowhere'}]"])
    assert "starts in" not in done.stderr


def test_empty_input(config, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jsonl").write_text("")
    done = fails(3, "all empty", words=[config, f"ingest.paths=[{tmp_path / 'empty'}]"])
    assert "starts in" not in done.stderr


def test_input_without_a_sample(config, tmp_path):
    fails(3, "none is a sample", "not_json", words=[config, write_rows(tmp_path, []), f"ingest.paths=[{config}]"])


def test_wrong_column(config):
    fails(
        2,
        "ingest.columns.response",
        "'output'",
        "has 'instruction', 'response', 'family', 'language'",
        words=[config, "ingest.columns.response=output"],
    )


def test_over_the_error_budget(config):
    fails(3, "ingest.max_rejected_fraction", "_rejected", words=[config, "ingest.max_rejected_fraction=0.0"])


def test_more_clusters_than_samples(finished, tmp_path):
    root = without(finished, tmp_path, "cluster")
    said = ("cluster.num_clusters", "500 clusters asked for, 220 samples there")
    fails(3, *said, words=[finished[1], root, "cluster.num_clusters=500"])


@pytest.mark.parametrize("key", ["model", "embed.model", "score.model"])
def test_model_not_found(config, key):
    done = fails(2, f"{key}: models/not-there", words=[config, f"{key}=models/not-there"])
    assert "starts in" not in done.stderr


def test_a_folder_that_is_no_model(config, tmp_path):
    fails(2, "no config.json", words=[config, f"model={tmp_path}"])


def test_unwritable_root(config, tmp_path):
    """Root may write anywhere, so the folder is a file."""
    (tmp_path / "file").write_text("")
    done = fails(4, "storage refuses", "storage.root", words=[config, f"storage.root={tmp_path / 'file'}/root"])
    assert "starts in" not in done.stderr


def test_read_only_root(config, tmp_path):
    """As an ordinary user sees it."""
    if os.geteuid() == 0:
        pathlib.Path("/proc/raypipe").exists()
        fails(4, "/proc/raypipe", "storage refuses", words=[config, "storage.root=/proc/raypipe"])
        return
    (tmp_path / "ro").mkdir(mode=0o500)
    fails(4, "storage refuses", words=[config, f"storage.root={tmp_path / 'ro'}"])


def test_train_before_prepare_names_manifest_and_command(config):
    done = fails(2, "manifest", "raypipe run CONFIG --until pack", words=[config, "--from", "train"])
    assert "pack-*" in done.stderr and "starts in" not in done.stderr


def test_no_such_stage(config):
    fails(2, "no stage 'scoer'", "ingest clean embed", words=[config, "--until", "scoer"])


def test_a_file_that_breaks_off(config, tmp_path):
    """It is read as far as it goes, and said: an upload that broke off must not look like a small file."""
    (tmp_path / "cut").mkdir()
    whole = gzip.compress(b'{"instruction": "a", "response": "b"}\n' * 2000)
    (tmp_path / "cut" / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    words = [config, f"ingest.paths=[{tmp_path / 'cut'}]", "--until", "ingest"]
    fails(3, "1 broken_gzip", "most of them in", "a.jsonl.gz", words=[*words, "ingest.max_rejected_fraction=0.0"])
    done = raypipe("run", *words)
    assert done.returncode == 0 and "747 ok" in done.stderr, done.stderr
    assert "1 of 1 files were not read to their end" in done.stderr and "a.jsonl.gz: broken_gzip" in done.stderr


def test_too_few_cpus_for_the_workers_asked_for(finished, tmp_path):
    root = without(finished, tmp_path, "embed")
    fails(2, "64 actors", "room for", words=[finished[1], root, "resources.embed.actors=[64, 64]"])


def test_usage():
    assert raypipe("run").returncode == 2
    assert raypipe("run", "x.yaml", "--frobnicate").returncode == 2
    assert raypipe("frobnicate").returncode == 2

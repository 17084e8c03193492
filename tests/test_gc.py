"""`raypipe gc`: what no run needs goes, and nothing else ever."""

import json
import os
import time

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto import mock_aws

from raypipe.errors import ConfigError, DataError, StorageError
from raypipe.garbage import delete_garbage, find_garbage, listing
from raypipe.local import Local
from raypipe.recipes import STAGE_NAMES
from raypipe.s3 import client
from raypipe.store import Folder
from tests.lakes import raypipe

USED, UNUSED, LARGE = "embed-0123456789ab", "score-00000000beef", "train-aaaaaaaaaaaa"
TEMPORARY = ".part-1.parquet." + "0" * 32
DAY_H = 24


def record(*folders, **config):
    named = {leaf.partition("-")[0]: leaf for leaf in folders}
    return json.dumps({"name": "test", "lake": "00", "folders": named, "config": config}).encode()


def add(folder, *names, age_h=48.0, size=10):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (then := time.time() - age_h * 3600, then))


@pytest.fixture
def root(tmp_path):
    """A run that names one folder of three."""
    add(tmp_path / USED, "manifest-00.json", "part-1.parquet")
    add(tmp_path / UNUSED, "manifest-00.json", "part-1.parquet", "part-2.parquet")
    add(tmp_path / LARGE, "manifest-00.json", "model/config.json", "checkpoints/step-1/.metadata", size=1000)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "test.json").write_bytes(record(USED))
    return tmp_path


def tree(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def delete(root, **options):
    return [gone.folder.name for gone in delete_garbage(find_garbage(Folder(str(root)), **options))]


def test_lists_largest_first_and_deletes_nothing_unasked(root):
    """Who looks must be able to look safely; the first line is what pays."""
    before = tree(root)
    done = raypipe("gc", root)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[2:4]] == [LARGE, UNUSED]
    assert "unused: 2 folders, 6 objects, 3.03 kB" in done.stdout and "--delete" in done.stdout
    assert USED not in done.stdout and tree(root) == before


def test_deletes_what_no_run_names(root):
    """Whole, with a checkpoint's hidden file and without empty folders: else the disk stays full of remains."""
    (root / "pack-0123456789ab").mkdir()
    used = {name for name in tree(root) if name.startswith((USED, "runs"))}
    done = raypipe("gc", root, "--delete")
    assert done.returncode == 0 and "deleted 3 folders, 3.03 kB" in done.stdout
    assert tree(root) == used and sorted(os.listdir(root)) == [USED, "runs"]


def test_other_names_are_never_touched(root, tmp_path_factory):
    """A root is often a home folder or a bucket with other things in it."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    add(elsewhere, "part-1.parquet")
    others = ("models-0123456789ab", "embed-0123456789abc", "embed-0123456789AB", "embed-notes", "train", "data")
    for other in others:
        add(root / other, "a", f".a.{'0' * 32}")
    (root / "clean-0123456789ab").write_text("a file")
    (root / "pack-0123456789ab").symlink_to(elsewhere)
    assert set(delete(root)) == {UNUSED, LARGE}
    assert all(len(os.listdir(root / other)) == 2 for other in others)
    assert (root / "clean-0123456789ab").is_file() and (elsewhere / "part-1.parquet").exists()


def test_the_young_are_kept_and_it_says_why(root):
    """A folder without a run may be of a run that is being copied here; one new object protects all of it."""
    add(root / UNUSED, "part-3.parquet", age_h=DAY_H - 1)
    said = listing(find_garbage(Folder(str(root))))
    assert f"{UNUSED}" in said and "23.0 h  kept: younger than 24 h (--min-age-h)" in said
    assert delete(root) == [LARGE] and (root / UNUSED).exists()
    assert delete(root, min_age_h=22) == [UNUSED]
    with pytest.raises(ConfigError, match="--min-age-h: got -1"):
        find_garbage(Folder(str(root)), min_age_h=-1)


def test_without_any_run_nothing_is_deleted(root):
    """A wrong root, or one whose runs/ was lost: everything looks unused."""
    (root / "runs" / "test.json").unlink()
    before = tree(root)
    done = raypipe("gc", root, "--delete")
    assert done.returncode == 2 and "got no run" in done.stderr and "runs none" in done.stdout
    assert tree(root) == before and USED in done.stdout


def test_a_damaged_run_file_stops_it(root):
    """What it named is not known any more."""
    for damage in (b"", b"[]", b'{"name": "test"}'):
        (root / "runs" / "other.json").write_bytes(damage)
        with pytest.raises(DataError, match=r"runs/other\.json: .*wanted a run's record"):
            delete(root)
    assert (root / UNUSED).exists()


def test_the_model_of_another_run_is_used(root):
    """A run that goes on from another one's model speaks of its folder in its config only."""
    (root / "runs" / "next.json").write_bytes(record(model=f"{root}/{LARGE}/model"))
    assert delete(root) == [UNUSED] and (root / LARGE / "model" / "config.json").exists()


def test_a_run_that_starts_meanwhile_keeps_its_folders(root):
    """Between a listing that a person reads and the deletion there may be hours."""
    found = find_garbage(Folder(str(root)))
    (root / "runs" / "late.json").write_bytes(record(UNUSED))
    add(root / LARGE, "part-9.parquet", age_h=0)
    assert list(delete_garbage(found)) == [] and (root / UNUSED / "part-2.parquet").exists()
    assert (root / LARGE / "manifest-00.json").exists()


def test_runs_that_vanish_meanwhile_stop_it(root):
    """A file system that loses sight of runs/ for a moment must not cost the results."""
    found = find_garbage(Folder(str(root)))
    (root / "runs" / "test.json").unlink()
    with pytest.raises(ConfigError, match="got no run"):
        list(delete_garbage(found))
    assert (root / LARGE / "manifest-00.json").exists()


class Dying(Local):
    """Storage on which the n-th deletion fails; keeps the order of all."""

    def __init__(self, fails_at):
        object.__setattr__(self, "fails_at", fails_at)
        object.__setattr__(self, "deleted", [])

    def delete(self, uri):
        if len(self.deleted) == self.fails_at:
            raise StorageError("gone")
        self.deleted.append(os.path.basename(uri))
        super().delete(uri)


def test_half_deleted_is_never_finished_and_goes_on(root, monkeypatch):
    """A manifest without its parts would be taken for a finished stage by the next run."""
    monkeypatch.setattr("raypipe.garbage.THREADS", 1)
    add(root / LARGE, "checkpoints/step-2/.metadata", "checkpoints/step-2/__0_0.distcp", age_h=30)
    add(root / LARGE, "model/config.json", age_h=26)
    order = ["manifest-00.json", "config.json", ".metadata", "__0_0.distcp", ".metadata"]
    with pytest.raises(StorageError):
        list(delete_garbage(find_garbage(Folder(str(root), dying := Dying(2)))))
    assert dying.deleted == order[:2] and (root / LARGE / "checkpoints" / "step-2" / "__0_0.distcp").exists()
    rest = Dying(-1)
    assert len(list(delete_garbage(find_garbage(Folder(str(root), rest))))) == 2
    assert set(rest.deleted[:3]) == set(order[2:]) and not (root / LARGE).exists()


def test_remains_of_killed_writers_go_and_checkpoints_stay(root):
    """A dot file is not always temporary: without .metadata a checkpoint cannot be resumed."""
    add(root / USED, TEMPORARY, "checkpoints/step-1/.metadata", "sub/" + TEMPORARY)
    add(root / "runs", ".test.json." + "1" * 32)
    add(root / USED, ".part-2.parquet." + "2" * 32, age_h=1)
    assert "left by killed writers, more than 24 h ago: 3 files, 30 B" in listing(find_garbage(Folder(str(root))))
    delete(root, min_age_h=0)  # says nothing of writers that may be alive
    left = {os.path.basename(name) for name in tree(root) if os.path.basename(name).startswith(".")}
    assert left == {".metadata", ".part-2.parquet." + "2" * 32}


LEAVES = st.one_of(
    st.builds("{}-{:012x}".format, st.sampled_from(STAGE_NAMES), st.integers(0, 1)),
    st.text("abc-0123", min_size=1, max_size=12),
)


@settings(max_examples=40, deadline=None)
@given(leaves=st.dictionaries(LEAVES, st.integers(0, 48), max_size=8), named=st.sets(LEAVES, max_size=3))
def test_law_only_the_old_and_unnamed_go(tmp_path_factory, leaves, named):
    """Whatever a root holds, what is deleted has a stage's name, no run that names it, and no young object."""
    root = tmp_path_factory.mktemp("law")
    for leaf, age_h in leaves.items():
        add(root / leaf, "part", age_h=age_h + 0.5)
    add(root / "runs", "test.json")
    (root / "runs" / "test.json").write_bytes(json.dumps({"lake": "", "folders": dict.fromkeys(named)}).encode())
    gone = set(delete(root))
    stages = {leaf for leaf in leaves if leaf[:-13] in STAGE_NAMES and len(leaf.rpartition("-")[2]) == 12}
    assert gone == {leaf for leaf in stages - named if leaves[leaf] >= DAY_H}
    assert {leaf for leaf in leaves if (root / leaf).exists()} == set(leaves) - gone


def test_thousands_of_objects_on_s3(monkeypatch):
    """More than a page of a listing, and than one batch of deletions."""
    monkeypatch.setattr("raypipe.garbage.TOGETHER", 100)
    with mock_aws():
        client.cache_clear()
        s3 = boto3.client("s3", region_name="us-east-1")
        s3.create_bucket(Bucket="runs")
        names = [f"{UNUSED}/part-{n:07d}" for n in range(1100)] + [f"{UNUSED}/manifest-00.json", f"{USED}/part-1"]
        for name in names:
            s3.put_object(Bucket="runs", Key=f"root/{name}", Body=b"x")
        s3.put_object(Bucket="runs", Key="root/runs/test.json", Body=record(USED))
        root = Folder.at("s3://runs/root")
        assert not find_garbage(root).doomed and len(find_garbage(root).too_young) == 1
        gone = list(delete_garbage(find_garbage(root, min_age_h=0)))
        assert [(folder.folder.name, folder.objects) for folder in gone] == [(UNUSED, 1101)]
        assert {found.uri for found in root.walk()} == {
            f"s3://runs/root/{USED}/part-1",
            "s3://runs/root/runs/test.json",
        }
    client.cache_clear()

"""`raypipe sweep-k` by the command line: what it costs, what it leaves, what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest

from raypipe import garbage, load_config, pipeline, sweep
from raypipe.cli import main
from raypipe.errors import ConfigError, Stopped, StorageError
from raypipe.store import Folder
from tests.lakes import manifest, raypipe, stage_folder


@pytest.fixture(scope="module")
def swept(finished, tmp_path_factory, ray_address):
    """A finished root under other hands, and a sweep over it: (root, words, its process)."""
    root = tmp_path_factory.mktemp("sweep") / "root"
    shutil.copytree(finished[0] / "root", root)
    words = ("sweep-k", finished[1], f"storage.root={root}", 5, "2", "20", 20)
    return root, words, raypipe(*words, RAY_ADDRESS=ray_address)


def folder_of(root):
    (folder,) = root.glob("sweep-*")
    return folder


def test_a_table_words_and_where_the_page_is(swept):
    """All that a person asks of it, in the order given or not; every number on the screen is in a file."""
    root, _, done = swept
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["k", "2", "5", "20"]
    folder = folder_of(root)
    assert lines[-1] == f"page  {folder}/index.html" and (folder / "index.html").stat().st_size > 4e6
    found = json.loads((folder / "sweep.json").read_text())
    assert lines[5:-1] == found["verdict"] and re.match("the criteria (dis)?agree", lines[5])
    samples = manifest(root, "embed")["counts"]["ok"]
    assert f"means over 3 seeds on {samples} of {samples} samples, cosine" in lines[4]
    marked = re.findall(r"\*", "\n".join(lines[1:4]))
    assert len(marked) == sum(k is not None for k in found["choices"].values()) >= 4
    assert found["ks"] == [2, 5, 20] and found["seeds"] == [42, 43, 44]
    assert f"{found['rows'][0]['inertia']['mean']:.4f}" in lines[1]


def test_its_first_fit_is_the_one_of_a_run(swept):
    """On so few samples the sample is the lake, so it must say of k what a run with that k would find."""
    root, _, _ = swept
    run = manifest(root, "cluster")["summary"]
    rows = {row["k"]: row["fits"] for row in json.loads((folder_of(root) / "sweep.json").read_text())["rows"]}
    inertias = [np.mean([fit["inertia"] for fit in rows[k]]) for k in (2, 5)]
    assert inertias[1] < run["inertia"] < inertias[0]  # its k is 4
    assert all(fit["smallest"] > 0 for fits in rows.values() for fit in fits)


def test_again_it_is_shown_at_once(swept, monkeypatch, capsys):
    """Who shows a colleague waits for nothing, and Ray is not started; nor are k in another order another sweep."""
    _, words, done = swept
    monkeypatch.setattr(sweep, "ray_session", lambda: pytest.fail("Ray was started"))
    assert main([*map(str, words[:3]), "20", "5", "2"]) == 0
    assert capsys.readouterr().out == done.stdout


def test_gc_lists_it_and_status_minds_its_own(swept):
    """Sweeps must not stay for ever, nor be taken for a run."""
    root, _, _ = swept
    name = folder_of(root).name
    assert name in [found.folder.name for found in garbage.find_garbage(Folder(str(root)), min_age_h=0).doomed]
    assert name in [found.folder.name for found in garbage.find_garbage(Folder(str(root))).too_young]
    status = raypipe("status", root)
    assert status.returncode == 0 and name not in status.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["5"], 2, "got 5, wanted at least two different numbers"),
        (["5", "5"], 2, "got 5 5, wanted at least two"),
        ([], 2, "got no number"),
        (["5", "ten", "20"], 2, "got ten, wanted"),
        (["0", "5"], 2, "got 0, wanted"),
        (["5", "1000"], 3, "1,000 clusters asked for, and 2"),
        (["5", "10", "cluster.metrik=cosine"], 2, "Did you mean cluster.metric?"),
        (["5", "10", "embed.text=both"], 2, "sweep-k: embed was prepared as embed-"),
        (["5", "10", "name=other"], 2, "Make it by: raypipe run CONFIG --until embed"),
    ],
)
def test_bad_words(swept, monkeypatch, capsys, words, code, said):
    """One line and the exit code that a job's owner acts on, before Ray starts."""
    monkeypatch.setattr(sweep, "ray_session", lambda: pytest.fail("Ray was started"))
    assert main([*map(str, swept[1][:3]), *words]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_embed_must_be_finished(finished, tmp_path, capsys):
    """It says which manifest it misses, and what makes it."""
    shutil.copytree(finished[0] / "root", tmp_path / "root")
    missing = next(stage_folder(tmp_path / "root", "embed").glob("manifest-*"))
    missing.unlink()
    assert main(["sweep-k", str(finished[1]), "2", "3", f"storage.root={tmp_path / 'root'}"]) == 2
    said = capsys.readouterr().err
    assert f"sweep-k: {missing} is missing: embed is not finished. Make it by: raypipe run CONFIG --until embed" in said


def test_another_metric_or_seed_is_another_sweep(swept):
    """What was found of one is not to be shown for the other."""
    root, words, _ = swept
    names = set()
    for override in ("seed=42", "seed=43", "cluster.metric=euclidean", "cluster.num_clusters=7"):
        planned = pipeline.plan(load_config(words[1], [words[2], override]), "embed")
        names.add(sweep.folder_name(sweep.recipe(planned, [2, 5, 20])))
    assert len(names) == 3 and folder_of(root).name in names


def test_the_sample_has_the_lowest_draws_whatever_the_parts(swept, monkeypatch, ray_here):
    """Another number of actors, or parts, must not give another sample, nor a shorter one."""
    _, words, _ = swept
    config = load_config(words[1], [words[2]])
    planned = pipeline.plan(config, "cluster")
    table = sweep._embeddings(planned, [2, 5])
    whole = sweep._sample(config, table)
    assert len(whole) == table.manifest["counts"]["ok"]
    monkeypatch.setattr(sweep, "SAMPLE_ROWS", 60)
    monkeypatch.setattr(sweep, "SURPLUS", 2.0)  # so few vary by more than a tenth
    assert np.array_equal(sweep._sample(config, table), whole[:60])


def test_a_stop_ends_it_between_rounds(monkeypatch):
    """30 s are promised, and a thousand clusters take minutes."""
    monkeypatch.setattr(sweep.stopping, "asked", lambda: True)
    x = np.eye(8, dtype=np.float32)
    with pytest.raises(Stopped, match="Nothing is kept"):
        sweep._row(x, 2, "cosine", [0, 1])


def test_a_root_that_refuses_does_so_before_any_work(swept, monkeypatch, capsys):
    """Minutes of fits would be lost at their end."""

    def refuse(self, name, data):
        raise StorageError(f"{self.uri(name)}: no")

    monkeypatch.setattr(sweep, "ray_session", lambda: pytest.fail("Ray was started"))
    monkeypatch.setattr(Folder, "put", refuse)
    assert main([*map(str, swept[1][:3]), "3", "4"]) == StorageError.exit_code
    assert "recipe.json" in capsys.readouterr().err


def test_numbers():
    assert sweep.parsed(["20", "5", "5", "007"]) == [5, 7, 20]
    for odd in (["5", "-1"], ["5", "1.5"], ["5", "²"], ["5", "1e2"]):
        with pytest.raises(ConfigError, match=re.escape(f"got {odd[1]}, wanted")):
            sweep.parsed(odd)

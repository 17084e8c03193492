"""`raypipe export`: what it writes against the run itself, by the readers of other people; kills, refusals, S3."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from raypipe import export, export_files, items, read
from raypipe.cli import main
from raypipe.ops.formats import FORMATS
from tests.lakes import PROJECT, manifest, stage_folder

SHARD_SAMPLES = 10  # so that a small run makes several
REASONS = {"train": "selected", "test": "held_out"}


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory, ray_here):
    """A finished run in every form: folder by form."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_files, "SHARD_SAMPLES", SHARD_SAMPLES)
        for form in FORMATS:
            assert main(["export", str(finished[1]), str(folder / form), "--format", form]) == 0
    return {form: folder / form for form in FORMATS}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(export_files, "SHARD_SAMPLES", SHARD_SAMPLES)


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr(export, "ray_session", lambda: pytest.fail("Ray was started"))


def wanted(root, reason):
    """Rows of a run with this reason, all columns beside each other, read by another way than export's."""
    tables = {stage: read(str(root), stage).to_table() for stage in ("ingest", "cluster", "score")}
    joined = {name: table[name] for table in tables.values() for name in table.column_names}
    kept = pa.table(joined).filter(pc.equal(read(str(root), "select").to_table()["reason"], reason))
    return kept.to_pylist()


def loaded(folder, cache):
    import datasets

    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def files(folder):
    return {path.name: path for path in sorted((folder / "data").iterdir())}


@pytest.mark.parametrize("form", FORMATS)
def test_it_loads_as_the_run_has_it(finished, exported, tmp_path, form):
    """A trainer that reads other rows, or another order, measures another selection than the report tells of."""
    found = loaded(exported[form], tmp_path)
    assert list(found) == ["train", "test"]
    for split, reason in REASONS.items():
        rows, got = wanted(finished[0] / "root", reason), list(found[split])
        assert len(rows) == manifest(finished[0] / "root", "select")["counts"][reason] > SHARD_SAMPLES
        assert [row["sample_id"] for row in got] == [row["sample_id"] for row in rows]
        for row, source in zip(got, rows, strict=True):
            texts = source["instruction"], source["response"]
            if form == "messages":
                assert row["messages"] == [
                    {"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)
                ]
            elif form == "alpaca":
                assert (row["instruction"], row["output"], row["input"]) == (*texts, "")
            else:
                same = set(row) & set(source)
                assert len(same) == 9 and {name: row[name] for name in same} == {name: source[name] for name in same}
                ppl = math.exp(source["nll_conditional"] / source["num_response_tokens"])
                assert row["ppl_conditional"] == pytest.approx(ppl, rel=1e-12)
                assert row["ppl_conditional"] / row["ppl_unconditional"] == pytest.approx(row["ifd"], rel=1e-9)
        names = [name for name in files(exported[form]) if name.startswith(split)]
        assert len(names) > 1 and all(re.search(rf"-\d{{5}}-of-{len(names):05d}\.", name) for name in names)


@pytest.mark.parametrize("form", FORMATS)
def test_the_cards_numbers_are_the_manifests(finished, exported, form, capsys, few, no_ray):
    """Every number on the screen can be found in a file, and the files' sizes are theirs."""
    counts = {stage: manifest(finished[0] / "root", stage)["counts"] for stage in ("ingest", "select")}
    card = (exported[form] / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    told = {split["name"]: split for split in front["dataset_info"]["splits"]}
    for split, reason in REASONS.items():
        sizes = [path.stat().st_size for name, path in files(exported[form]).items() if name.startswith(split)]
        assert told[split] == {"name": split, "num_bytes": sum(sizes), "num_examples": counts["select"][reason]}
        assert f"| {split} | {counts['select'][reason]} | {len(sizes)} | {sum(sizes):,} |" in card
    for count, name in [(n, f"rejected: `{name}`") for name, n in counts["ingest"].items() if name != "ok"]:
        assert f"| {count} | {name} | |" in card
    for name, count in counts["select"].items():
        assert f"| {count} | `{name}` |" in card
    before = {path: path.stat().st_mtime_ns for path in exported[form].rglob("*")}
    assert main(["export", str(finished[1]), str(exported[form]), "--format", form]) == 0
    lines = capsys.readouterr().out.splitlines()
    num_files = sum(name.startswith("train") for name in files(exported[form]))
    assert lines[1].split()[:3] == ["train", str(counts["select"]["selected"]), str(num_files)]
    assert lines[-1] == f"export  {exported[form]}  ({form}, whole already: nothing was done)"
    assert before == {path: path.stat().st_mtime_ns for path in exported[form].rglob("*")}


KILLED = """
import os, signal, sys
from raypipe import cli, export_files, items
export_files.SHARD_SAMPLES = {samples}
map_items = items.map_items
def some(function, work, **words):
    map_items(function, work[1:3], **words)
    os.kill(os.getpid(), signal.SIGKILL)
items.map_items = some
cli.main(sys.argv[1:])
"""


def test_a_killed_export_goes_on(finished, exported, tmp_path, few):
    """What was put is not made again, and the end is the same bytes as of an export that nobody killed; until then there is no card."""
    out, words = tmp_path / "out", ["export", str(finished[1])]
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(samples=SHARD_SAMPLES), *words, str(out)],
        cwd=PROJECT,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    first = {name: path.stat().st_mtime_ns for name, path in files(out).items()}
    assert len(first) == 2 and (out / "export.json").exists() and not (out / "README.md").exists()
    assert main([*words, str(out)]) == 0
    assert first == {name: files(out)[name].stat().st_mtime_ns for name in first}
    assert tree(out) == tree(exported["messages"])


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_lost_file_is_missed_and_made_again(finished, exported, tmp_path, few, monkeypatch):
    """A copy that broke off must not train on half a selection in silence."""
    import datasets

    out = tmp_path / "out"
    shutil.copytree(exported["alpaca"], out)
    lost = sorted((out / "data").glob("train-*"))[1]
    lost.unlink()
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        loaded(out, tmp_path / "cache")
    without_ray(monkeypatch, made := [])
    assert main(["export", str(finished[1]), str(out), "--format", "alpaca"]) == 0
    assert tree(out) == tree(exported["alpaca"]) and [shard.name for shard in made] == [lost.name]


def test_a_disk_that_other_machines_do_not_see(finished, tmp_path, few, monkeypatch, capsys):
    """On a cluster a folder of this machine would end as a card of no files."""
    without_ray(monkeypatch)
    monkeypatch.setattr(items, "map_items", lambda function, work, **_: [])
    assert main(["export", str(finished[1]), str(tmp_path / "out")]) == 4
    assert "train-00000-of-0000" in (said := capsys.readouterr().err) and "Give a folder that every node sees" in said
    assert not (tmp_path / "out" / "README.md").exists()


def without_ray(monkeypatch, done=None):
    """Items one after the other, in this process."""

    def mapped(function, work, **_):
        (done if done is not None else []).extend(work)
        return [function(item) for item in work]

    monkeypatch.setattr(items, "map_items", mapped)
    monkeypatch.setattr(export, "ray_session", nullcontext)


@pytest.mark.parametrize(
    ("there", "words", "said"),
    [
        ({}, ["--format", "parquet"], 'export.json is of another export: got { "format": "messages"'),
        ({"notes.txt": "mine"}, [], "with notes.txt in it, wanted an empty folder. Give another one"),
        ({"data/train.csv": "mine"}, [], "with data/train.csv in it"),
        ({"export.json": "mine"}, [], "is of another export: got mine, wanted { "),
        ({}, ["select.keep_fraction=0.2"], "export: select was prepared as select-"),
        ({}, ["name=other"], "Make it by: raypipe run CONFIG --until select"),
    ],
)
def test_what_it_refuses(finished, exported, tmp_path, few, no_ray, capsys, there, words, said):
    """Two selections in one folder would load as one; nothing of anybody's is overwritten."""
    out = tmp_path / "out"
    shutil.copytree(exported["messages"], out)
    for name, text in there.items():
        (out / name).write_text(text)
    before = tree(out)
    assert main(["export", str(finished[1]), str(out), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and tree(out) == before


def test_a_folder_of_something_else(finished, tmp_path, no_ray, capsys):
    """A card of somebody's own is not taken for the sign that the export is whole."""
    (tmp_path / "README.md").write_text("mine")
    for name in "abc":
        (tmp_path / name).write_text("")
    assert main(["export", str(finished[1]), str(tmp_path)]) == 2
    assert f"got {tmp_path} with README.md, a, b and 1 more in it, wanted an empty" in capsys.readouterr().err
    assert main(["export", str(finished[1]), str(tmp_path / "a")]) == 4
    assert "A file stands where a folder is wanted: choose another storage.root, or DIR" in capsys.readouterr().err


def test_select_must_be_finished(finished, tmp_path, no_ray, capsys):
    """It says which manifest it misses, and what makes it."""
    shutil.copytree(finished[0] / "root", tmp_path / "root")
    missing = next(stage_folder(tmp_path / "root", "select").glob("manifest-*"))
    missing.unlink()
    words = [str(finished[1]), str(tmp_path / "out"), f"storage.root={tmp_path / 'root'}"]
    assert main(["export", *words]) == 2
    said = capsys.readouterr().err
    assert (
        f"export: {missing} is missing: select is not finished. Make it by: raypipe run CONFIG --until select" in said
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_another_trainer_trains_on_it(exported, random_model, tmp_path, monkeypatch, form):
    """By the code that the card shows, which is what a reader tries first: one step of TRL's SFTTrainer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    card, shown = (exported[form] / "README.md").read_text(), {}
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(code.replace('"DIR"', f'"{exported[form]}", cache_dir="{tmp_path}"'), shown)
    train = shown.get("train", shown["dataset"]["train"])
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    arguments = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        max_length=512,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    model = AutoModelForCausalLM.from_pretrained(random_model)
    trainer = SFTTrainer(model, args=arguments, train_dataset=train, processing_class=tokenizer)
    done = trainer.train()
    assert done.global_step == 1 and 0 < done.training_loss < 2 * math.log(len(tokenizer))
    assert len(trainer.train_dataset) == len(train)

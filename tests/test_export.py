"""`raypipe export`: what it writes against the run itself, by the readers of other people; kills, refusals, S3."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raypipe import export, export_files, items, load_config, pipeline, read
from raypipe.cli import main
from raypipe.ops.formats import FORMATS
from raypipe.part import add_up, commit_part
from tests.lakes import PROJECT, manifest, stage_folder, write_config
from tests.s3.fake import BUCKET, moto_bucket

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
    assert "A file stands where a folder is wanted: choose another place" in capsys.readouterr().err


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


counts = st.fixed_dictionaries({}, optional={"selected": st.integers(0, 40), "held_out": st.integers(0, 5)})


@given(st.lists(st.tuples(counts, st.integers(0, 9)), max_size=30), st.integers(1, 30))
def test_shards_are_all_parts_in_order(parts, most):
    """A part left out, twice, or out of order is samples lost, doubled or shuffled; a split of one empty file does not load."""
    listed = [
        {"name": f"part-{n}", "counts": found, "figures": {"kept_tokens": tokens * found.get("selected", 0)}}
        for n, (found, tokens) in enumerate(parts)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_files, "SHARD_SAMPLES", most)
        patch.setattr(export_files, "SHARD_TOKENS", 5 * most)
        shards = export_files.planned_shards(listed, "jsonl")
    for split, reason in REASONS.items():
        mine = [shard for shard in shards if shard.split == split]
        in_order = [part["name"] for part in listed if part["counts"].get(reason)]
        assert [part for shard in mine for part in shard.parts] == in_order and all(shard.parts for shard in mine)
        assert [shard.name for shard in mine] == [f"{split}-{n:05d}-of-{len(mine):05d}.jsonl" for n in range(len(mine))]
        total = sum(part["counts"].get(reason, 0) for part in listed)
        sizes = [sum(p["counts"][reason] for p in listed if p["name"] in shard.parts) for shard in mine]
        largest = max((part["counts"].get(reason, 0) for part in listed), default=0)
        assert sum(sizes) == total and all(size < most + largest for size in sizes)
        tokens, selected = (sum(p["figures"]["kept_tokens"] for p in listed), sum(p["counts"].get("selected", 0) for p in listed))  # fmt: skip
        assert len(mine) <= math.ceil(total / max(min(most, 5 * most * selected / max(tokens, 1)), 1))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory, random_model, embedder):
    """A root whose stages nobody ran, with what is rare: carried columns, a part without a sample, held out without a score."""
    folder = tmp_path_factory.mktemp("by-hand")
    (folder / "lake").mkdir()
    (folder / "lake" / "a.jsonl").write_text("{}\n")
    path = write_config(
        folder / "hand.yaml", model=random_model, embedder=embedder, ingest={"carry": ["license", "ifd"]}
    )
    planned = pipeline.plan(load_config(path))
    pipeline._record(planned, rewrite=True)
    parts = [["selected", "held_out", "duplicate"], ["below_cut"], ["selected", "selected", "unscored"]]
    accounts: dict[str, list] = {}
    for number, reasons in enumerate(parts):
        for stage, table in hand_made(number, reasons).items():
            found = {item["values"]: item["counts"] for item in pc.value_counts(table["reason"]).to_pylist()} if stage == "select" else {"ok": len(table)}  # fmt: skip
            footer, _ = commit_part(
                planned[stage].folder, f"part-{number}.parquet", table, counts=found, figures={"kept_tokens": 9.0}
            )
            accounts.setdefault(stage, []).append(footer)
    for stage, footers in accounts.items():
        told = {"lake": planned.lake.digest, "finished": "2026-11-27T00:00:00Z", "packages": {"raypipe": "0.1.0"}}
        told |= {"summary": {"cluster_sizes": [7]}, "parts": footers, **add_up(footers)}
        planned[stage].folder.put(f"manifest-{planned.lake.digest}.json", json.dumps(told).encode())
    return path


def hand_made(number, reasons):
    rows = range(len(reasons))
    ids = pa.array([f"{number:016x}{row:016x}" for row in rows])
    lonely = [None if reason in ("held_out", "unscored") else 0.5 for reason in reasons]
    carried = {"license": pa.array([["MIT", None, "a`b"][row] for row in rows]), "ifd": pa.array(["mine"] * len(ids))}
    source = {"source_uri": pa.array(["/lake/a"] * len(ids)), "source_line": pa.array(rows, pa.int64())}
    texts = {name: pa.array([f"{name} {number} {row}\u2028" for row in rows]) for name in ("instruction", "response")}
    tokens = pa.array([None if ifd is None else 2 for ifd in lonely], pa.int32())
    floats = pa.array(lonely, pa.float64())
    found = {"num_instruction_tokens": tokens, "num_response_tokens": tokens, "ifd": floats}
    return {
        "ingest": pa.table({"sample_id": ids, **source, **texts, **carried}),
        "clean": pa.table({"sample_id": ids, **carried}),
        "embed": pa.table({"sample_id": ids}),
        "cluster": pa.table({"sample_id": ids, "cluster_id": pa.array(np.zeros(len(ids)), pa.int32())}),
        "score": pa.table({"sample_id": ids, **found, "nll_conditional": floats, "nll_unconditional": floats}),
        "select": pa.table({"sample_id": ids, "reason": reasons}),
    }


def test_carried_columns_and_licences(by_hand, tmp_path, monkeypatch):
    """Who publishes needs to know under which licences; a sample held out before it had a score has none, and is there."""
    without_ray(monkeypatch)
    assert main(["export", str(by_hand), str(tmp_path / "out"), "--format", "parquet"]) == 0
    found = loaded(tmp_path / "out", tmp_path / "cache")
    assert [row["license"] for row in found["train"]] == ["MIT", "MIT", None]
    assert [(row["ifd"], row["carried_ifd"]) for row in found["train"]] == [(0.5, "mine")] * 3
    assert [(row["ifd"], row["ppl_conditional"]) for row in found["test"]] == [(None, None)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "By the field `license` of the rows, the split train has:\n\n- 2 of `MIT`\n- 1 of no value\n" in card
    assert "license: other\n" in card


def test_on_s3_it_is_the_same(by_hand, tmp_path, monkeypatch, capsys):
    """Root and folder in a bucket: the same bytes as on a disk, and again nothing is done."""
    without_ray(monkeypatch)
    assert main(["export", str(by_hand), str(tmp_path / "out")]) == 0
    root = Path(load_config(by_hand).storage.root)
    with moto_bucket(monkeypatch, tmp_path) as client:
        for path in filter(Path.is_file, root.rglob("*")):
            client.put_object(Bucket=BUCKET, Key=f"root/{path.relative_to(root)}", Body=path.read_bytes())
        words = ["export", str(by_hand), f"s3://{BUCKET}/exports/mine", f"storage.root=s3://{BUCKET}/root"]
        assert main(words) == 0
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix="exports/mine/")["Contents"]
        got = {
            one["Key"].removeprefix("exports/mine/"): client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
            for one in listed
        }
        assert got == tree(tmp_path / "out")
        monkeypatch.setattr(export, "ray_session", lambda: pytest.fail("Ray was started"))
        assert main(words) == 0
        assert f"export  s3://{BUCKET}/exports/mine  (messages, whole already" in capsys.readouterr().out
        assert main([*words, "--format", "alpaca"]) == 2
        client.put_object(Bucket=BUCKET, Key="exports/other/data/train.csv", Body=b"mine")
        assert main([*words[:2], f"s3://{BUCKET}/exports/other", words[3]]) == 2
        assert "with data/train.csv in it" in capsys.readouterr().err


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

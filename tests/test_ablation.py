"""`raypipe ablate`: which runs an experiment is, what it refuses, what it costs to stop it, and whether it can tell good from bad data."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raypipe import ablation, ablation_screen, pipeline
from raypipe.cli import main
from raypipe.errors import ConfigError, DataError
from raypipe.experiment_file import comparisons, load_experiment
from raypipe.ops.text import sample_id
from tests.lakes import PROJECT, manifest, raypipe, wait_until, write_config

ALL = ["full", "random", "cluster_random", "global_ifd", "paper"]


@pytest.fixture
def base(tmp_path, random_model, embedder):
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"instruction": "a", "response": "b"}\n', mtime=0))
    return write_config(tmp_path / "base.yaml", model=random_model, embedder=embedder)


@pytest.fixture
def load(base):
    def load(*overrides, **keys):
        tree = {"name": "exp", "base": str(base), "arms": ALL, **keys}
        path = base.parent / "exp.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in tree.items() if value is not None}))
        return load_experiment(path, overrides)

    return load


def test_arms_fractions_and_seeds_make_the_runs(load):
    """Five known arms, two fractions, three seeds: full has no fraction, so nine arms and 27 runs."""
    experiment, cells = load(fractions=[0.2, 0.4])
    labels = ["full", *(f"{arm}@{fraction}" for arm in ALL[1:] for fraction in (0.2, 0.4))]
    assert [cell.label for cell in cells] == labels
    names = [config.name for cell in cells for config in cell.configs]
    assert names[:4] == ["exp-full-s1", "exp-full-s2", "exp-full-s3", "exp-random-0.2-s1"] and len(set(names)) == 27
    full, paper = cells[0].configs[0], cells[-1].configs[2]
    assert (full.select.keep_fraction, full.select.max_ifd, full.seed) == (1, 1e9, 1)
    assert (paper.select.strategy, paper.select.keep_fraction, paper.seed) == ("paper", 0.4, 3)
    pairs = [(cell.label, versus.label) for cell, versus in comparisons(experiment, cells)]
    assert pairs[:3] == [("full", "random@0.2"), ("full", "random@0.4"), ("cluster_random@0.2", "random@0.2")]
    assert len(pairs) == 2 + 3 * 2


def test_what_is_set_for_all_for_an_arm_and_on_the_command_line(load):
    """An arm has the last word, as it is what differs; the command line is over the file."""
    arms = ["random", {"name": "padded", "set": {"select.strategy": "paper", "pack.strategy": "pad"}}]
    arms.append({"name": "many", "set": {"select.num_samples": 7, "select.keep_fraction": None}})
    keys = {"set": {"pack.strategy": "dynamic_pack", "train.learning_rate": 1e-5}, "budget": {"target_tokens": 9000}}
    _, cells = load("train.learning_rate=1e-6", "seed=99", arms=arms, **keys)
    random_, padded, many = (cell.configs[0] for cell in cells)
    assert (random_.pack.strategy, padded.pack.strategy) == ("dynamic_pack", "pad")
    assert {config.train.learning_rate for config in (random_, padded, many)} == {1e-6}
    assert {config.train.budget.target_tokens for config in (random_, padded, many)} == {9000}
    assert (random_.seed, random_.select.keep_fraction) == (1, 0.4)
    assert (cells[2].label, many.select.num_samples, many.select.keep_fraction) == ("many", 7, None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"arms": ["random", "papr"]}, "no arm 'papr' is known. Did you mean paper? Known are full, random"),
        ({"arms": ["random", "mine"]}, "any other needs `set`"),
        ({"arms": ["random"]}, "arms: "),
        ({"arms": None}, "arms: "),
        ({"arms": ["random", "random"]}, "arms: random is there twice"),
        ({"arms": ["full", "paper"]}, "versus: random is no arm. The arms: full, paper"),
        ({"seeds": [1]}, "seeds: "),
        ({"seeds": [1, 2, 1]}, "seeds: 1 is there twice"),
        ({"seeds": ["1", "2"]}, "seeds.0: Input should be a valid integer"),
        ({"fractions": [0.4, 0.4]}, "fractions: 0.4 is there twice"),
        ({"fractions": [1.2]}, "fractions.0: Input should be less than or equal to 1"),
        ({"fraction": [0.2]}, "fraction: unknown key. Did you mean fractions?"),
        ({"budget": {"steps": 1, "samples": 2}}, "got samples and steps of samples, target_tokens, steps, wanted one"),
        ({"budget": {}}, "got none of samples"),
        ({"set": {"seed": 4}}, "set.seed: name, seeds and budget are keys of the experiment"),
        ({"set": {"train.budget.steps": 4}}, "set.train.budget.steps: name"),
        ({"set": {"select.keep_fracton": 0.1}}, "arm full: "),
        ({"set": {"select.keep_fracton": 0.1}}, "Did you mean select.keep_fraction?"),
        ({"arms": ["random", {"name": "b", "set": {"seed": 3}}]}, "set.seed: name"),
        ({"arms": ["random", {"name": "b", "set": {"cluster.num_clusters": [2, 3]}}]}, "got 2 runs"),
        ({"arms": ["random", {"name": "random2", "set": {"pack.strategy": "pad"}, "seeds": [4]}]}, "wanted 3 as of"),
        ({"arms": ["random", {"name": "b", "set": {"storage.root": "/x"}}]}, "storage.root: got "),
        (
            {"arms": ["random", {"name": "b", "set": {"select.held_out_fraction": 0.2}}]},
            "held_out_fraction: got 0.1 and",
        ),
        ({"outcome": "loss"}, "outcome"),
        ({"outcome": {"pass_at_1": "humaneval"}, "split": "lang"}, "split: problems have no carried columns"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: the configuration cannot be read"),
        ({"name": "a/b"}, "name: "),
    ],
)
def test_faults_name_key_and_remedy(load, keys, said):
    """An experiment is days of GPUs: a word that is taken for nothing makes them worthless."""
    with pytest.raises(ConfigError) as error:
        load(**keys)
    assert said in str(error.value) and "exp.yaml: " in str(error.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"set": {"select.held_out_fraction": 0.0}}, "select.held_out_fraction is 0, and held_out_loss needs"),
        ({"split": "lang"}, "split: lang is not carried. Add it to ingest.carry"),
        ({"outcome": {"pass_at_1": "humaneval"}}, "needs evaluate.execute=true and humaneval among evaluate.tasks"),
        (
            {"arms": ["random", {"name": "b", "set": {"select.strategy": "random", "storage.root": None}}]},
            "runs exp-random-0.4-s1 and exp-b-0.4-s1 are the same training",
        ),
    ],
)
def test_what_would_be_found_out_too_late(load, base, keys, said):
    if "storage.root" in str(keys):
        keys["arms"][1]["set"]["storage.root"] = str(base.parent / "root")
    experiment, cells = load(**keys)
    with pytest.raises(ConfigError, match=said):
        ablation.plan(experiment, cells)


def test_arms_share_all_that_does_not_differ(load, base):
    """By recipe: fifteen runs, and one embedding, one scoring and a clustering a seed; random draws alone differ by seed."""
    experiment, cells = load(
        arms=[*ALL, {"name": "padded", "set": {"select.strategy": "paper", "pack.strategy": "pad"}}]
    )
    plans = ablation.plan(experiment, cells)
    folders = {stage: {planned.folders[stage] for planned in plans.values()} for stage in pipeline.STAGE_NAMES}
    counts = {stage: len(found) for stage, found in folders.items()}
    assert [counts[stage] for stage in ("ingest", "clean", "embed", "score", "cluster")] == [1, 1, 1, 1, 3]
    assert (counts["select"], counts["pack"], counts["train"]) == (15, 18, 18)
    said = ablation_screen.shown_plan(experiment, cells, plans)
    assert (
        "18 runs of 6 arms are 58 stages to make once (1 ingest, 1 clean, 1 embed, 3 cluster, 1 score, 15 select"
        in said
    )
    assert "0 are done\npower: 3 seeds show a difference of 0.031 in held-out loss or more in 80%" in said
    assert "which is a guess, as no two seeds of an arm are finished" in said
    assert list(plans)[:7] == [f"exp-{arm}-s1" for arm in ("full", *(f"{a}-0.4" for a in (*ALL[1:], "padded")))] + [
        "exp-full-s2"
    ]


def test_the_experiment_of_the_readme_is_one(load):
    """It is what everybody begins with."""
    (block,) = re.findall(r"```yaml\n(name: pays.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    tree = yaml.safe_load(block)
    del tree["base"]
    _, cells = load(**tree)
    assert len(cells) == 11 and sum(len(cell.configs) for cell in cells) == 33


def test_a_plan_starts_nothing(load, base, monkeypatch, capsys):
    """It is asked for before the money is spent."""
    load(arms=["random", "paper"])
    monkeypatch.setattr(ablation, "ray_session", lambda: pytest.fail("Ray was started"))
    assert main(["ablate", str(base.parent / "exp.yaml"), "--plan", "train.epochs=2"]) == 0
    out = capsys.readouterr().out
    assert out.count("to do") == 6 and "power: 3 seeds" in out
    assert not (base.parent / "root").exists() or not list((base.parent / "root").iterdir())
    assert main(["ablate", str(base.parent / "exp.yaml"), "train.epoch=2"]) == 2
    assert "Did you mean train.epochs?" in capsys.readouterr().err


def test_arms_see_one_lake(load, monkeypatch):
    """A hundred runs on a hundred thousand objects, which another job adds to meanwhile."""
    listed, real = [], pipeline.list_lake
    monkeypatch.setattr(pipeline, "list_lake", lambda *args, **named: listed.append(args) or real(*args, **named))
    ablation.plan(*load(arms=["random", "paper", "full"]))
    assert len(listed) == 1


def test_problems_are_read_by_task_and_model(load, base, monkeypatch):
    """Rows of stage evaluate: of the fine-tuned model alone, the share of a problem's completions that pass."""
    columns = ("model", "task", "problem_id", "completion_index", "completion", "passed", "reason", "seconds")
    rows = [
        ("base", "he", "p/1", 0, "", True),
        ("tuned", "he", "p/1", 0, "", True),
        ("tuned", "he", "p/1", 1, "", False),
    ]
    rows += [("tuned", "mbpp", "p/1", 0, "", True), ("tuned", "he", "p/2", 0, "", True)]
    table = pa.Table.from_pylist([dict(zip(columns, row, strict=False)) for row in rows])

    class Evaluated:
        parts = ("part-0", "part-1")

        def only(self, *names):
            return self

        def read(self, part):
            return table.slice(0, 3) if part == "part-0" else table.slice(3)

    experiment, _ = load(outcome={"pass_at_1": "he"})
    assert ablation.last_stage(experiment) == "evaluate"
    step = type("Step", (), {"table": Evaluated()})
    assert ablation._outcome(experiment, {"evaluate": step}) == {"p/1": 0.5, "p/2": 1.0}


def test_other_held_out_samples_are_refused():
    """They are what arms are compared on."""
    same, other = {f"{n:032x}": 0.0 for n in range(5)}, {f"{n:032x}": 0.0 for n in range(4)}
    with pytest.raises(DataError, match="must be the same in all runs: a has 5 and b 4; 1 are the first's alone"):
        ablation._aligned([("a", same), ("b", other)])
    with pytest.raises(DataError, match="run a: got 0 held-out samples"):
        ablation._aligned([("a", {})])


@pytest.fixture(scope="module")
def resumed(finished, tmp_path_factory, ray_address):
    """A killed experiment and its rerun: (root, words, train folders at the kill, the rerun's process)."""
    folder = tmp_path_factory.mktemp("ablate")
    root = folder / "root"
    shutil.copytree(finished[0] / "root", root)
    tree = {
        "name": "exp",
        "base": str(finished[1]),
        "set": {"storage.root": str(root)},
        "arms": ["random", "paper"],
        "seeds": [42, 7],
        "split": "language",
    }
    (folder / "exp.yaml").write_text(yaml.safe_dump(tree))
    environment = {"RAY_ADDRESS": ray_address, "RAYPIPE_TAKE_OVER_S": "8"}
    words = ("ablate", folder / "exp.yaml")
    command = [sys.executable, "-m", "raypipe.cli", *map(str, words)]
    with open(folder / "log", "w") as log:
        driver = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **environment}, stdout=log, stderr=log)
    wait_until(lambda: len(list(root.glob("train-*/manifest-*"))) > 1, driver)  # one was there before
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    there = {path: path.stat().st_mtime_ns for path in root.glob("*-*/manifest-*")}
    return root, words, there, raypipe(*words, **environment)


@pytest.mark.slow
def test_a_killed_experiment_goes_on_where_it_was(resumed):
    """Days of runs: what was finished, by whichever run, is never made again."""
    root, _, there, done = resumed
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert len(list(root.glob("train-*/manifest-*"))) == 4
    assert [len(list(root.glob(f"{stage}-*"))) for stage in ("embed", "score", "cluster")] == [1, 1, 2]
    states = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("exp-")]
    assert states.count("done") == 2
    assert manifest(root, "train", "exp-paper-0.4-s42") == manifest(root, "train"), "an ordinary run is an arm"


@pytest.mark.slow
def test_the_table_and_what_it_means(resumed):
    """Every number on the screen is in results.json, and there it is what the runs' own files say."""
    root, _, _, done = resumed
    (folder,) = root.glob("ablate-*")
    found, lines = json.loads((folder / "results.json").read_text()), done.stdout.splitlines()
    assert lines[-1] == f"page  {folder}/index.html" and (folder / "index.html").stat().st_size > 4e6
    assert [row["arm"] for row in found["arms"]] == ["random@0.4", "paper@0.4"] and len(found["comparisons"]) == 1
    assert found["comparisons"][0]["sentence"] == lines[-2]
    paper, pair = found["arms"][1], found["comparisons"][0]
    summaries = [manifest(root, "train", f"exp-paper-0.4-s{seed}")["summary"] for seed in (42, 7)]
    for name in ablation.TRAINED:
        assert paper[name] == pytest.approx(np.mean([summary[name] for summary in summaries])), name
    held_out = [json.loads((root / row_folder / "held_out.json").read_text()) for row_folder in trained(found, "paper")]
    means = [np.mean(np.array(one["nll"][max(one["nll"], key=int)]) / one["num_tokens"]) for one in held_out]
    assert paper["outcome"]["by_seed"] == pytest.approx(means) and paper["outcome"]["mean"] == pytest.approx(
        np.mean(means)
    )
    versus = found["arms"][0]["outcome"]["by_seed"]
    assert pair["by_seed"] == pytest.approx([mine - its for mine, its in zip(means, versus, strict=True)])
    assert pair["low"] <= pair["mean"] <= pair["high"]
    assert sum(row["units"] for row in pair["by"]["cluster"]) <= found["num_units"] == len(held_out[0]["sample_ids"])
    assert {row["group"] for row in pair["by"]["language"]} <= {"python", "txt", "unknown", None, "javascript"}
    assert pair["by"]["language"]
    row = next(line.split() for line in lines if line.startswith("paper@0.4 ") and " is " not in line)
    assert (
        f"{paper['kept']:,.0f}" in row
        and f"{paper['target_tokens']:,.0f}" in row
        and f"{paper['outcome']['mean']:.4f}" in row
    )
    assert f"{pair['mean']:+.4f}" in row and f"{paper['drift']['median_response_tokens']:,.0f}" in row
    kept = [manifest(root, "select", f"exp-paper-0.4-s{seed}")["counts"]["selected"] for seed in (42, 7)]
    assert paper["kept"] == np.mean(kept)


def trained(found, arm):
    return [folders["train"] for name, folders in found["recipe"]["runs"].items() if arm in name]


@pytest.mark.slow
def test_again_it_is_shown_at_once(resumed, monkeypatch, capsys):
    """Without Ray; and the power is then that of finished seeds, no guess."""
    _, words, _, done = resumed
    monkeypatch.setattr(ablation, "ray_session", lambda: pytest.fail("Ray was started"))
    assert main([*map(str, words)]) == 0
    out = capsys.readouterr().out
    assert out.partition("\narm ")[2] == done.stdout.partition("\narm ")[2] != ""
    assert "as measured on 2 finished seeds" in out and out.count("  done\n") == 4


TASKS = {
    "sum": "return sum(items)", "sort": "return sorted(items)", "count": "return len(items)", "reverse": "return items[::-1]",
    "first": "return items[0]", "last": "return items[-1]", "largest": "return max(items)", "smallest": "return min(items)",
}  # fmt: skip
HELD_OUT = 0.2


def rows(count):
    """Eight tasks, each with one answer, that a tiny model learns in some dozen steps; a number makes every sample another one."""
    tasks = list(TASKS.items())
    return [(f"Write task {n} of a list: {tasks[n % 8][0]}", tasks[n % 8][1]) for n in range(count)]


def is_held_out(row):
    return int(sample_id(*row)[:16], 16) < HELD_OUT * 2**64


def shuffled(samples, share, seed=0):
    """The responses of `share` of the rows dealt anew among their instructions, by swaps of unequal ones.

    Who is held out is decided by the texts. Only rows that are not are shuffled, and none so that it comes to be, so both lakes hold out the
    same clean rows and train on equally many.
    """
    rng, found = random.Random(seed), list(samples)
    chosen = rng.sample([n for n, row in enumerate(samples) if not is_held_out(row)], int(share * len(samples)))
    for place, n in enumerate(chosen):
        for other in rng.sample(chosen, len(chosen)):
            one, two = (found[n][0], found[other][1]), (found[other][0], found[n][1])
            if found[n][1] != found[other][1] and not is_held_out(one) and not is_held_out(two):
                found[n], found[other] = one, two
                break
        else:
            raise AssertionError(f"no partner for row {place}")
    return found


def test_shuffled_rows_leave_the_held_out_alone():
    """The planted harm must be in what is trained on, or the samples that arms are compared on differ."""
    clean = rows(400)
    bad = shuffled(clean, 0.3)
    assert [row for row in bad if is_held_out(row)] == [row for row in clean if is_held_out(row)]
    moved = sum(one != two for one, two in zip(clean, bad, strict=True))
    assert 90 <= moved <= 120 and sorted(response for _, response in bad) == sorted(response for _, response in clean)


@pytest.fixture(scope="module")
def harness(random_model, tmp_path_factory, ray_here):
    """`random`, `random` with other seeds, and a lake in which 30 % of rows have another's response.

    Embeddings and scores are given, as draws at random look at neither; trained in this process, as Ray Train takes longer to start than
    these models to learn.
    """
    import torch.distributed as dist

    from raypipe.stages import train

    folder = tmp_path_factory.mktemp("harness")
    lakes = {"clean": rows(1200), "bad": shuffled(rows(1200), 0.3)}  # so many that wrong ones are not learned by heart
    for name, samples in lakes.items():
        (folder / name).mkdir()
        lines = (
            json.dumps({"instruction": instruction, "response": response}) + "\n" for instruction, response in samples
        )
        (folder / name / "a.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    ids = sorted({sample_id(*row) for samples in lakes.values() for row in samples})
    ones = dict.fromkeys(("num_instruction_tokens", "num_response_tokens"), [9] * len(ids))
    nlls = dict.fromkeys(("nll_conditional", "nll_unconditional"), [9.0] * len(ids))
    pq.write_table(pa.table({"sample_id": ids, "embedding": [[1.0, 0.5]] * len(ids)}), folder / "embeddings.parquet")
    pq.write_table(pa.table({"sample_id": ids, **ones, **nlls}), folder / "scores.parquet")
    np.save(folder / "centers.npy", np.eye(2, dtype=np.float32))  # frozen, so that seeds share them
    base = write_config(
        folder / "base.yaml", model=random_model, embedder=random_model, ingest={"paths": [str(folder / "clean")], "part_bytes": 1 << 20},
        embed={"model": None, "given": str(folder / "embeddings.parquet")}, score={"given": str(folder / "scores.parquet")},
        cluster={"centers": str(folder / "centers.npy")}, select={"held_out_fraction": HELD_OUT, "max_ifd": 1e9}, pack={"max_length": 256},
        train={"warmup_steps": 10, "learning_rate": 3e-3},
        resources={"train": {"workers": [1, 1], "micro_batch_tokens": 2048, "activation_checkpointing": False}},
    )  # fmt: skip
    arms = [
        "random",
        {"name": "again", "set": {"select.strategy": "random"}, "seeds": [11, 12, 13, 14]},
        {"name": "bad", "set": {"select.strategy": "random", "ingest.paths": [str(folder / "bad")]}},
    ]
    tree = {
        "name": "harness",
        "base": str(base),
        "arms": arms,
        "fractions": [0.8],
        "seeds": [1, 2, 3, 4],
        "budget": {"steps": 80},
    }
    (folder / "exp.yaml").write_text(yaml.safe_dump(tree))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_Wish", lambda *_: lambda: "go on")
        job = ("config", "packs", "owner")
        patch.setattr(
            train,
            "_fit",
            lambda *words: train._worker({"gate": None, "work": "", **dict(zip(job, words, strict=True))}),
        )
        dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 1), rank=0, world_size=1)
        try:
            assert main(["ablate", str(folder / "exp.yaml")]) == 0
        finally:
            dist.destroy_process_group()
    (results,) = (folder / "root").glob("ablate-*/results.json")
    return json.loads(results.read_text())


@pytest.mark.slow
def test_planted_bad_data_loses(harness):
    """If not even this shows, no experiment shows anything; both kept equally many and trained equally long."""
    random_, _, bad = harness["arms"]
    assert bad["kept"] == random_["kept"] and bad["steps"] == random_["steps"] == 80
    (pair,) = (pair for pair in harness["comparisons"] if pair["arm"] == "bad@0.8")
    assert pair["verdict"] == "worse" and pair["low"] > 0
    assert pair["sentence"].startswith("bad@0.8 is worse than random@0.8: held-out loss +")


@pytest.mark.slow
def test_two_random_arms_do_not_differ(harness):
    """An experiment that finds a difference here finds one everywhere."""
    (pair,) = (pair for pair in harness["comparisons"] if pair["arm"] == "again@0.8")
    assert pair["verdict"] == "not distinguishable"
    assert (
        "again@0.8 is not distinguishable from random@0.8" in pair["sentence"]
        and "4 more seeds would show" in pair["sentence"]
    )

"""The loop without Ray, in processes of one gloo group."""

import json
import math
import multiprocessing
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from raypipe.models.batches import Dealer
from raypipe.models.held_out import evaluate
from raypipe.models.packed import PackedModel, load_model
from raypipe.models.sharded import Lora, Tuning
from raypipe.models.trackers import Run
from raypipe.models.trainer import Settings, train
from raypipe.ops.packing import Pack
from raypipe.ops.steps import Shapes, plan_steps
from raypipe.ops.tokens import IGNORED, prompt_ids
from raypipe.store import Folder

NUM_PACKS = 9
multiprocessing.set_forkserver_preload(
    [__name__, "peft", "transformers.models.qwen2"]
)  # imported once, not in every process


class Packs(list):
    """Of two samples each; a process dies after so many reads, if it is to."""

    def __init__(self, count, seed, reads_left=10**9):
        super().__init__(_packs(count, seed))
        self.reads_left = reads_left
        lengths = [pack.lengths for pack in self]
        targets = [sum(label >= 0 for label in pack.labels) for pack in self]
        self.shapes = Shapes(
            np.array([n for pack in lengths for n in pack]),
            np.cumsum([0, *map(len, lengths)]),
            np.array([len(pack) for pack in lengths]),
            np.array(targets),
            True,
        )

    def __getitem__(self, place):
        self.reads_left -= 1
        if self.reads_left < 0:
            os._exit(9)
        return super().__getitem__(place)


def _packs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        lengths = [8 + number % 5, 12]
        tokens = torch.randint(2, 900, (sum(lengths),), generator=generator).tolist()
        labels = [IGNORED if n in (0, lengths[0]) else token for n, token in enumerate(tokens)]
        yield Pack(tokens, labels, lengths, [f"{seed}-{number}-{n}" for n in range(2)], [number % 2, None])


def settings(model, *, lora=None, activation_checkpointing=True, **keys):
    tuning = Tuning(str(model), "float32", lora, 0, activation_checkpointing, compile=False)
    return replace(Settings(tuning, 2e-3, 1, 64, 1e9, "Q: {instruction}\nA: ", Run("test", "train-0", {})), **keys)


def work(rank, world_size, settings, out, port, reads_left, samples_per_step):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    packs = Packs(NUM_PACKS, 1, reads_left)
    steps = plan_steps(packs.shapes, epochs=2, samples_per_step=samples_per_step, seed=0)
    train(settings, packs, Packs(3, 2), steps, Folder.at(str(out)))
    dist.destroy_process_group()


PORTS = iter(range(29501, 29600))


def run(settings, out, *, world_size=1, reads_left=10**9, samples_per_step=6):
    out.mkdir(parents=True, exist_ok=True)
    arguments = (world_size, settings, out, next(PORTS), reads_left, samples_per_step)
    mp.start_processes(work, arguments, world_size, start_method="forkserver")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(metrics):
    return [line[name] for line in metrics for name in ("loss", "eval_loss") if name in line]


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def furthest(one, two):
    return max(float((one[name] - two[name]).norm() / one[name].norm()) for name in one)


@pytest.fixture(scope="module")
def alone(random_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return out, run(settings(random_model, checkpoint_every_s=0), out)


def test_two_uneven_ranks_equal_one(alone, random_model, tmp_path):
    """Six samples a step of unlike lengths on two ranks: an average over ranks would weigh samples by where they fell."""
    out, metrics = alone
    shared = run(settings(random_model), tmp_path, world_size=2)
    for mine, theirs in zip(metrics, shared, strict=True):
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in mine:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-5), (name, mine)
    assert furthest(weights(out), weights(tmp_path)) < 1e-3
    assert max(line["imbalance"] for line in shared if "loss" in line) > 1


def test_more_ranks_than_samples_in_a_step(random_model, tmp_path):
    """A rank without work takes part with a batch that counts nothing; else the others wait for it for ever."""
    one = run(settings(random_model), tmp_path / "1", samples_per_step=2)
    three = run(settings(random_model), tmp_path / "3", world_size=3, samples_per_step=2)
    assert len(one) > 2 * NUM_PACKS
    assert losses(three) == pytest.approx(losses(one), rel=1e-4)


def test_loss_falls_and_starts_at_the_held_out_truth(alone):
    """Six steps on random tokens: the training loss must fall, from about log(vocabulary) or more."""
    _, metrics = alone
    steps = [line for line in metrics if "loss" in line]
    found = [line["loss"] for line in steps]
    assert len(found) == 6 and found[0] > math.log(900) * 0.8 and found[-1] < found[0]
    assert [line["step"] for line in metrics if "eval_loss" in line] == [0, 3, 6]
    assert [line["epoch"] for line in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-3)
    assert steps[-1]["num_input_tokens_seen"] == 2 * sum(sum(pack.lengths) for pack in _packs(NUM_PACKS, 1))
    assert all(0 <= line["data_wait_share"] <= 1 and line["peak_memory_bytes"] > 1 << 26 for line in steps)


def test_held_out_sets_are_scored_in_turns(alone, random_model, tmp_path, monkeypatch):
    """Of a large lake they are too large for one turn; each sample must still be scored once."""
    monkeypatch.setattr("raypipe.models.held_out.PACKS_AT_ONCE", 2)  # of 3
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = PackedModel(load_model(str(random_model), "float32", "cpu"))
        found = evaluate(model, Dealer(Packs(3, 2), 0, 1, 64, 0.0, 0), "cpu", dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()
    before = json.loads((alone[0] / "held_out.json").read_text())
    assert [row[0] for row in found.rows] == before["sample_ids"]
    assert [row[2] for row in found.rows] == pytest.approx(before["nll"]["0"], rel=1e-5)


def test_clusters_have_losses_of_their_own(alone):
    """Which clusters learn is what says whether the selection left some out; a sample of no cluster counts in the whole only."""
    held_out = json.loads((alone[0] / "held_out.json").read_text())
    last = [line for line in alone[1] if "eval_loss" in line][-1]
    for cluster, loss in last["eval_loss_by_cluster"].items():
        mine = [n for n, found in enumerate(held_out["cluster_ids"]) if str(found) == cluster]
        nll, tokens = (sum(values[n] for n in mine) for values in (held_out["nll"]["6"], held_out["num_tokens"]))
        assert loss == pytest.approx(nll / tokens)
    assert set(last["eval_loss_by_cluster"]) == {"0", "1"}


def test_bfloat16_computes_and_float32_adds_up(alone, random_model, tmp_path):
    """The default on accelerators: near float32, and the weights that are trained stay float32, or small steps would be lost."""
    rule = settings(random_model)
    rounded = run(
        replace(rule, tuning=replace(rule.tuning, dtype="bfloat16"), checkpoint_every_s=0), tmp_path, world_size=2
    )
    assert losses(rounded) == pytest.approx(losses(alone[1]), rel=1e-2) and losses(rounded) != losses(alone[1])
    metadata = FileSystemReader(max((tmp_path / "checkpoints").iterdir())).read_metadata().state_dict_metadata
    types = {found.properties.dtype for name, found in metadata.items() if hasattr(found, "properties")}
    assert types == {torch.float32}


def test_recomputing_activations_changes_nothing(alone, random_model, tmp_path):
    """A layer that is run twice must give the same both times: packed segments' bounds must reach it again."""
    kept = run(settings(random_model, activation_checkpointing=False), tmp_path)
    assert losses(kept) == pytest.approx(losses(alone[1]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++, which torch.compile needs on a CPU: compiled training is not tested"
)
def test_compiled_layers_train_the_same(alone, random_model, tmp_path):
    """Compiled for one batch's length, the next one's must not be cut or compiled anew each time."""
    rule = settings(random_model)
    compiled = run(replace(rule, tuning=replace(rule.tuning, compile=True)), tmp_path)
    assert losses(compiled) == pytest.approx(losses(alone[1]), rel=1e-4)


@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_goes_on_as_if_unbroken(alone, random_model, tmp_path, world_size):
    """Dead in step 5, mid-epoch; resumed by as many and by twice as many: the rest must be what it would have been, no step twice."""
    saving = settings(random_model, checkpoint_every_s=0)
    with pytest.raises(mp.ProcessExitedException):
        run(saving, tmp_path, reads_left=14)
    there = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    whole = [name for name in there if (tmp_path / "checkpoints" / name / ".metadata").exists()]
    assert 2 <= len(whole) <= 3, there
    (tmp_path / "checkpoints" / whole[-1] / ".metadata").unlink()  # half written: must not be resumed
    after = int(whole[-2].removeprefix("step-"))
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    resumed = run(settings(random_model), tmp_path, world_size=world_size)
    kept = [line for line in before if json.loads(line)["step"] <= after]  # with the seconds they took: not run again
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert [line["step"] for line in resumed] == [line["step"] for line in alone[1]]
    assert losses(resumed) == pytest.approx(losses(alone[1]), rel=1e-5)


def test_a_checkpoint_is_of_the_step_it_was_asked_for(random_model, tmp_path):
    """It is written while training goes on: what it then reads must be a copy."""
    from raypipe.models import checkpoints

    (tmp_path / "out").mkdir()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        weight, out = torch.ones(1 << 22), Folder.at(str(tmp_path / "out"))
        saving = checkpoints.save({"weight": weight, "plan": "a"}, out, 7, dist.new_group(backend="gloo"))
        weight.zero_()
        saving.result()
        state = {"weight": torch.zeros(1 << 22), "plan": "b"}
        checkpoints.load(state, out, 7)
        assert state["plan"] == "a" and bool((state["weight"] == 1).all()) and checkpoints.whole(out) == [7]
    finally:
        dist.destroy_process_group()


def test_a_checkpoint_of_another_plan_is_refused(random_model, tmp_path):
    """Steps count in a plan: going on in another would skip samples and repeat others without a word."""
    with pytest.raises(mp.ProcessExitedException):
        run(settings(random_model, checkpoint_every_s=0), tmp_path, reads_left=14)
    with pytest.raises(mp.ProcessRaisedException, match=r"wanted .*the packs or the code"):
        run(settings(random_model), tmp_path, samples_per_step=4)


def test_held_out_keeps_every_sample(alone):
    """Without the per-sample sums there is no paired difference, only two numbers."""
    found = json.loads((alone[0] / "held_out.json").read_text())
    assert len(found["sample_ids"]) == 6 and set(found["nll"]) == {"0", "3", "6"}
    assert found["num_tokens"] == [7, 11, 8, 11, 9, 11]


def test_adapters_are_the_same_merged_and_apart(random_model, tmp_path):
    """LoRA on two ranks, which must draw the same adapters: released apart they are small, merged they are the same model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = Lora(4, 8)
    rule = settings(random_model, lora=lora, learning_rate=2e-2)
    apart = run(replace(rule, merge=False), tmp_path / "apart", world_size=2)
    merged = run(rule, tmp_path / "merged")
    assert losses(apart) == pytest.approx(losses(merged), rel=1e-4)
    found = [line["loss"] for line in merged if "loss" in line]
    assert found[-1] < found[0]
    names = {path.name for path in (tmp_path / "apart" / "model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "generation_config.json", "tokenizer.json"} <= names
    base = AutoModelForCausalLM.from_pretrained(random_model)
    one = PeftModel.from_pretrained(base, tmp_path / "apart" / "model").merge_and_unload().state_dict()
    two = weights(tmp_path / "merged")
    start = load_file(random_model / "model.safetensors")
    moved = furthest(two, start)
    assert furthest(two, one) < 0.02 * moved and moved > 1e-3


def test_the_model_loads_and_generates(alone, random_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = alone[0] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    chat = [{"role": "user", "content": "Add two numbers."}]
    (prompt,) = prompt_ids(tokenizer, "Q: {instruction}\nA: ", ["Add two numbers."])
    given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert given["input_ids"][0].tolist() == prompt
    made = model.generate(**given, max_new_tokens=5, do_sample=False)
    assert len(prompt) < made.shape[1] <= len(prompt) + 5

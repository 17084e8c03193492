"""The loop without Ray, in processes of one gloo group."""

import json
import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from raypipe.models.trainer import Settings, train
from raypipe.ops.packing import Pack
from raypipe.ops.steps import plan_steps
from raypipe.ops.tokens import IGNORED
from raypipe.store import Folder


def packs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        lengths = [8 + number % 5, 12]
        tokens = torch.randint(2, 900, (sum(lengths),), generator=generator).tolist()
        labels = [IGNORED if n in (0, lengths[0]) else token for n, token in enumerate(tokens)]
        made.append(Pack(tokens, labels, lengths, [f"{seed}-{number}-{n}" for n in range(2)]))
    return made


class Dying(list):
    """Packs of a process that dies after so many reads."""

    reads_left = 12

    def __getitem__(self, place):
        self.reads_left -= 1
        if self.reads_left < 0:
            os._exit(9)
        return super().__getitem__(place)


def work(rank, world_size, model, out, port, dying, checkpoint_every_s):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    training, held_out = packs(9, 1), packs(3, 2)
    steps = plan_steps(
        [2] * 9, [sum(label >= 0 for label in pack.labels) for pack in training], epochs=2, samples_per_step=6, seed=0
    )
    settings = Settings(model, "float32", 1e-2, 1, 2, checkpoint_every_s)
    train(settings, Dying(training) if dying else training, held_out, steps, Folder.at(str(out)))
    dist.destroy_process_group()


def run(model, out, *, world_size=1, dying=False, checkpoint_every_s=1e9, port=29501):
    out.mkdir(parents=True, exist_ok=True)
    mp.start_processes(
        work, (world_size, str(model), out, port, dying, checkpoint_every_s), world_size, start_method="spawn"
    )
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(random_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return out, run(random_model, out, checkpoint_every_s=0)


def test_two_uneven_ranks_equal_one(alone, random_model, tmp_path):
    """3 packs a step on 2 ranks: an average over ranks would weigh samples by where they fell."""
    out, metrics = alone
    shared = run(random_model, tmp_path, world_size=2, port=29502)
    for mine, theirs in zip(metrics, shared, strict=True):
        for name in ("loss", "grad_norm", "held_out_loss"):
            if name in mine:
                close = 1e-5 if mine["step"] <= 1 else 1e-3  # Adam magnifies rounding
                assert theirs[name] == pytest.approx(mine[name], rel=close), (name, mine)
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (out, tmp_path))
    assert max(float((one[name] - two[name]).norm() / one[name].norm()) for name in one) < 1e-3


def test_loss_falls_and_starts_at_the_held_out_truth(alone):
    """Six steps on random tokens: the training loss must fall, from about log(vocabulary) or more."""
    _, metrics = alone
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert len(losses) == 6 and losses[0] > math.log(900) * 0.8 and losses[-1] < losses[0]
    assert [line["step"] for line in metrics if "held_out_loss" in line] == [0, 3, 6]


def test_resume_goes_on_as_if_unbroken(alone, random_model, tmp_path):
    """Dead in step 5, mid-epoch: the rest must be what it would have been, and no step counted twice."""
    with pytest.raises(mp.ProcessExitedException):
        run(random_model, tmp_path, dying=True, checkpoint_every_s=0, port=29503)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
    (tmp_path / "checkpoints" / "step-00000004" / ".metadata").unlink()  # half written: must not be resumed
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    resumed = run(random_model, tmp_path, port=29504)
    kept = [line for line in before if json.loads(line)["step"] <= 3]  # with the seconds they took: not run again
    assert len(kept) == 5 and (tmp_path / "metrics.jsonl").read_text().splitlines()[:5] == kept
    for mine, theirs in zip(alone[1], resumed, strict=True):
        assert theirs["step"] == mine["step"]
        assert [theirs[name] for name in ("loss", "held_out_loss") if name in mine] == pytest.approx(
            [mine[name] for name in ("loss", "held_out_loss") if name in mine], rel=1e-5
        )


def test_held_out_keeps_every_sample(alone):
    """Without the per-sample sums there is no paired difference, only two numbers."""
    found = json.loads((alone[0] / "held_out.json").read_text())
    assert len(found["sample_ids"]) == 6 and set(found["nll"]) == {"0", "3", "6"}
    assert found["num_tokens"] == [7, 11, 8, 11, 9, 11]

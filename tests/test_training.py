"""Training as a stage: what it leaves in its folder, whatever is trained, packed and watched."""

import json
import re
import shutil

import pytest

from tests.lakes import manifest, raypipe, stage_folder

WATCHED = {
    "step", "epoch", "loss", "learning_rate", "grad_norm", "num_input_tokens_seen", "tokens_per_s", "target_tokens_per_s", "fill",
    "imbalance", "data_wait_share", "peak_memory_bytes", "num_workers", "samples", "target_tokens", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def adapted(finished, tmp_path_factory, ray_address):
    """LoRA on rows packed as the paper does, two trackers: (root, its process)."""
    root = tmp_path_factory.mktemp("adapted") / "root"
    shutil.copytree(finished[0] / "root", root)
    words = [
        f"storage.root={root}", "pack.strategy=dynamic_pack", "train.epochs=2", "train.samples_per_step=8",
        "train.lora={r: 4, alpha: 8, export: adapter}", "train.report_to=[tensorboard, wandb]", "--until", "train",
    ]  # fmt: skip
    done = raypipe("run", finished[1], *words, RAY_ADDRESS=ray_address)
    assert done.returncode == 0, done.stderr
    return root, done


def lines(root):
    return [json.loads(line) for line in (stage_folder(root, "train") / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("which", ["finished", "adapted"])
def test_every_step_says_what_it_took(which, request):
    """Whoever looks for a bottleneck looks here: a key that is missing is a run that has to be made again."""
    found = request.getfixturevalue(which)
    root = found[0] / "root" if which == "finished" else found[0]
    steps = [line for line in lines(root) if "loss" in line]
    assert all(line.keys() == WATCHED for line in steps)
    summary = manifest(root, "train")["summary"]
    assert summary["steps"] == len(steps) and summary["train_s"] == pytest.approx(
        sum(line["seconds"] for line in steps), abs=1e-3
    )
    tokens = steps[-1]["num_input_tokens_seen"]
    assert summary["tokens_per_s"] == pytest.approx(tokens / summary["train_s"], rel=0.02)
    assert summary["peak_memory_bytes"] > 1 << 27 and 0 <= summary["padding"] < 1 and summary["imbalance"] >= 1
    evaluated = [line for line in lines(root) if "eval_loss" in line]
    assert evaluated[0]["step"] == 0 and evaluated[-1]["step"] == len(steps)
    assert (
        evaluated[-1]["eval_samples"] == summary["held_out"]["num_samples"] > 10
        and evaluated[-1]["eval_loss_by_cluster"]
    )


def test_padded_tokens_are_counted(adapted):
    """The paper's packing is there to be compared with: it must cost what it costs, in tokens that are padding."""
    root, _ = adapted
    pack = manifest(root, "pack")
    assert pack["config"]["pack"]["strategy"] == "dynamic_pack"
    laid = pack["figures"]["dynamic_pack_tokens"]
    assert lines(root)[-2]["num_input_tokens_seen"] == 2 * laid and laid > pack["summary"]["tokens"]
    assert manifest(root, "train")["summary"]["padding"] == pytest.approx(
        1 - pack["summary"]["tokens"] / laid, abs=1e-4
    )


def test_the_screen_names_the_padding(adapted, finished):
    assert re.search(r"^dynamic_pack: padding \d+\.\d% \(best_fit: \d+\.\d%\)", adapted[1].stdout, re.MULTILINE)
    assert re.search(r"^fill \d+\.\d% \(padding would be \d+\.\d%\)", finished[2].stdout, re.MULTILINE)
    said = raypipe("plan", finished[1]).stdout
    assert re.search(
        r"^padding: best_fit [\d.]+%, dynamic_pack [\d.]+%, pad [\d.]+%; windows of 1,024 tokens, from \d+ packed samples$",
        said,
        re.MULTILINE,
    )
    said = raypipe("plan", finished[1], "pack.max_length=900").stdout
    assert re.search(r"^padding: best_fit .*; windows of 900 tokens, from \d+ selected samples$", said, re.MULTILINE)
    said = raypipe("plan", finished[1], "score.max_length=500").stdout
    assert "padding: unknown until scoring is finished" in said


def test_adapters_and_their_card(adapted):
    folder = stage_folder(adapted[0], "train") / "model"
    names = {path.name for path in folder.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
    } <= names
    assert "config.json" not in names
    card = (folder / "README.md").read_text()
    for said in ("library_name: peft", "dynamic_pack", "LoRA", "Held-out loss after training"):
        assert said in card, said


def test_a_whole_model_and_its_card(finished):
    """Data, recipe and metrics, as the manifests have them."""
    root = finished[0] / "root"
    card = (stage_folder(root, "train") / "model" / "README.md").read_text()
    summary = manifest(root, "train")["summary"]
    kept, read = manifest(root, "pack")["counts"]["ok"], sum(manifest(root, "ingest")["counts"].values())
    said = [str(finished[0] / "lake"), f"trained on: {kept}", f"Rows read: {read}", "Learning rate, at its peak: 0.001"]
    said += [
        f"{summary['held_out']['loss_after']:.4g} nats per token",
        manifest(root, "train")["recipe"]["reads"]["pack"],
    ]
    for words in said:
        assert words in card, words


def test_trackers_leave_their_files(adapted):
    folder = stage_folder(adapted[0], "train")
    assert list((folder / "tensorboard").glob("events.out.tfevents*")) and list((folder / "wandb").rglob("*.wandb"))


def test_a_tracker_that_is_not_installed_stops_nothing_late(finished, monkeypatch):
    """After hours of scoring is the wrong time to hear it."""
    from raypipe import load_config
    from raypipe.errors import ConfigError
    from raypipe.ops import trackers
    from raypipe.pipeline import run

    monkeypatch.setitem(trackers.MODULES, "wandb", "no_such_module")
    config = load_config(str(finished[1]), ["train.report_to=[wandb]", "train.epochs=3"])
    with pytest.raises(ConfigError, match=r"wandb is not installed\. Run: pip install wandb"):
        run(config)

"""The demo itself: 3,000 samples, real models, vLLM, two gloo workers; what `make demo` shows."""

import json
import shutil

import pytest
import yaml

from raypipe.demo import make_models
from raypipe.ops.synthetic import count_rows
from tests.lakes import PROJECT, manifest, raypipe, stage_folder

pytestmark = pytest.mark.slow
PROMPT = "### Instruction:\nWrite a Python function that adds two numbers.\n### Response:\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Root of a run of the shipped config; models of an earlier `make demo` are used where they are."""
    folder = tmp_path_factory.mktemp("demo")
    if (PROJECT / "models" / "tiny").exists():
        shutil.copytree(PROJECT / "models", folder / "models", symlinks=True)
    make_models(folder / "models")
    made = raypipe("synth", folder / "data", "--num-samples", 3000)
    assert made.returncode == 0, made.stderr
    assert yaml.safe_load((PROJECT / "jobs" / "configs" / "demo.yaml").read_text())["ingest"]["paths"] == ["data/demo"]
    words = [
        f"ingest.paths=[{folder / 'data'}]",
        f"model={folder / 'models' / 'tiny'}",
        f"embed.model={folder / 'models' / 'all-MiniLM-L6-v2'}",
    ]
    done = raypipe(
        "run",
        PROJECT / "jobs" / "configs" / "demo.yaml",
        *words,
        f"storage.root={folder / 'root'}",
        "train.checkpoint_every_s=1",
    )
    assert done.returncode == 0, done.stderr
    return folder / "root"


def test_counts_are_what_synth_planted(demo):
    truth, clean = count_rows(3000), manifest(demo, "clean", "demo")["counts"]
    assert clean == {"ok": truth["samples"], "duplicate": truth["exact_duplicates"]}
    assert sum(manifest(demo, "ingest", "demo")["counts"].values()) == truth["rows"]


def test_scored_by_vllm_with_natural_spread(demo):
    """A score that is the same everywhere, or below 1 for mismatched answers only, selects nothing."""
    score, select = manifest(demo, "score", "demo"), manifest(demo, "select", "demo")
    assert score["summary"]["backend"] == "vllm" and score["counts"]["ok"] == 3000
    assert 30 < select["counts"]["ifd_too_high"] < 1000


def test_training_helps_on_held_out_samples(demo):
    """Two gloo workers; the paired difference is beyond two standard errors on at least 150 samples."""
    summary = manifest(demo, "train", "demo")["summary"]
    held_out = summary["held_out"]
    print(held_out)
    assert summary["num_workers"] == 2 and held_out["num_samples"] >= 150
    assert held_out["mean_difference"] < -2 * held_out["standard_error"]


def test_checkpoints_are_whole_and_few(demo):
    checkpoints = sorted((stage_folder(demo, "train", "demo") / "checkpoints").iterdir())
    assert 1 <= len(checkpoints) <= 2 and all((path / ".metadata").exists() for path in checkpoints)


def test_export_loads_in_transformers_and_generates(demo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = stage_folder(demo, "train", "demo") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    found = model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(found[0], skip_special_tokens=True)
    print(text)
    assert text.startswith(PROMPT.rstrip()) and len(text) > len(PROMPT)


def test_export_loads_in_vllm_and_generates(demo):
    import os
    import subprocess
    import sys

    code = (
        "import os, sys, json; os.environ |= {'VLLM_ENABLE_V1_MULTIPROCESSING': '0', 'VLLM_LOGGING_LEVEL': 'ERROR'}\n"
        "from vllm import LLM, SamplingParams\n"
        "engine = LLM(sys.argv[1], dtype='float32', enforce_eager=True, max_model_len=1024, kv_cache_memory_bytes=64 << 20)\n"
        "out = engine.generate([sys.argv[2]], SamplingParams(max_tokens=24, temperature=0), use_tqdm=False)\n"
        "print(json.dumps(out[0].outputs[0].text))\n"
    )
    folder = stage_folder(demo, "train", "demo") / "model"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), PROMPT],
        capture_output=True,
        text=True,
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout.strip().splitlines()[-1])
    print(text)
    assert len(text.strip()) > 5

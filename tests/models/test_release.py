"""What others load of a fine-tuned model: whole, merged, or adapters, in transformers and in vLLM."""

import json
import os
import subprocess
import sys

import pytest
import torch

from raypipe.models.pretrained import load_tokenizer
from raypipe.models.release import LAST, release
from raypipe.models.sharded import Lora, Tuning, load_tuned
from raypipe.store import Folder
from tests.lakes import save_random_model

TEMPLATE = "### Instruction:\n{instruction}\n### Response:\n"
CHAT = [{"role": "user", "content": "Write a function that adds two numbers."}]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("base") / "llama", "llama", bos=True)


def released(base, out, *, lora=None, merge=True):
    tuning = Tuning(str(base), "float32", lora, 0, activation_checkpointing=False, compile=False)
    model = load_tuned(tuning)
    torch.manual_seed(1)
    weights = {
        name: weight.detach() + 0.05 * torch.randn_like(weight)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    out.mkdir()
    release(weights, tuning, load_tokenizer(str(base)), merge=merge, template=TEMPLATE, out=Folder.at(str(out)))
    return weights


def generated(folder, adapter=None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(adapter or folder), AutoModelForCausalLM.from_pretrained(folder)
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    given = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    made = model.generate(**given, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False)
    return made[0, given["input_ids"].shape[1] :].tolist()


def test_weights_are_what_was_trained(base, tmp_path):
    """In the type that the base was saved in, under the names that the base has."""
    from safetensors.torch import load_file

    weights = released(base, tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == load_file(base / "model.safetensors").keys()
    assert all(torch.equal(saved[name], weights[name]) for name in saved)
    assert {LAST, "config.json", "tokenizer.json", "chat_template.jinja"} <= {
        p.name for p in (tmp_path / "model").iterdir()
    }


def test_adapters_generate_as_merged(base, tmp_path):
    released(base, tmp_path / "merged", lora=Lora(4, 8))
    released(base, tmp_path / "adapter", lora=Lora(4, 8), merge=False)
    one = generated(tmp_path / "merged")
    assert generated(base, tmp_path / "adapter") == one != generated_by_base(base)
    assert not (tmp_path / "adapter" / "README.md").exists(), "peft's card would stand for ours"


def generated_by_base(base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    ids = tokenizer(
        f"<bos>{TEMPLATE.replace('{instruction}', CHAT[0]['content'])}", add_special_tokens=False, return_tensors="pt"
    )
    return model.generate(**ids, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False)[
        0, -NUM_TOKENS:
    ].tolist()


VLLM = """
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256, kv_cache_memory_bytes=64 << 20)
sampling = SamplingParams(temperature=0.0, max_tokens=int(sys.argv[3]), ignore_eos=True)
(output,) = llm.chat(json.loads(sys.argv[2]), sampling, use_tqdm=False)
print("TOKENS", json.dumps(list(output.outputs[0].token_ids)))
"""


@pytest.mark.slow
def test_vllm_generates_the_same(base, tmp_path):
    """The server that the model is for: it must find tokenizer, chat template and weights by itself."""
    released(base, tmp_path / "merged", lora=Lora(4, 8))
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", VLLM, str(tmp_path / "merged"), json.dumps(CHAT), str(NUM_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    said = [line for line in done.stdout.splitlines() if line.startswith("TOKENS")]
    assert said, done.stderr[-3000:]
    assert json.loads(said[0].removeprefix("TOKENS")) == generated(tmp_path / "merged")


@pytest.mark.parametrize(("kept", "wanted"), [(None, 0), (5, [0, 5]), ([5, 0], [0, 5])])
def test_generation_ends_where_samples_ended(kept, wanted):
    """A chat model's own end of turn stays; EOS, which ended every training sample, must end an answer too."""
    from types import SimpleNamespace

    from transformers import GenerationConfig

    from raypipe.models.release import _generation

    found = _generation(GenerationConfig(eos_token_id=kept), SimpleNamespace(eos_token_id=0, pad_token_id=None))
    assert (found.eos_token_id, found.pad_token_id) == (wanted, 0)

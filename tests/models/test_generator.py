"""Two engines that give the same texts, whatever stands beside a prompt; stop strings; places that are left."""

import pytest

from raypipe.models.generator import Sampling, make_generator
from raypipe.models.pretrained import load_tokenizer
from raypipe.ops.tokens import text_ids
from tests.lakes import save_random_model

PROMPTS = [
    "def add(a, b):\n",
    "Write a function that sorts a list of numbers.\n",
    "x",
    "import os\nimport sys\n\n\ndef main():\n    print(",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_random_model(tmp_path_factory.mktemp("model") / "llama", "llama", bos=True))


@pytest.fixture(scope="module")
def made(model):
    tokenizer = load_tokenizer(model)
    prompts = text_ids(tokenizer, PROMPTS)

    def complete(sampling, backend="transformers", tokens=4096, seed=0, prompts=prompts, max_length=256, adapter=None):
        generator = make_generator(backend, model, adapter, tokenizer, "cpu", "float32", max_length, 1e9, tokens)
        return generator.complete(prompts, sampling, seed)

    return complete, prompts


CUT = "\N{REPLACEMENT CHARACTER}"  # of a character whose last bytes were not generated; vLLM leaves it out
GREEDY = Sampling(1, 0.0, 24, ())


def test_a_prompt_is_completed_as_if_alone(made):
    complete, prompts = made
    together = complete(GREEDY)
    assert together == [complete(GREEDY, prompts=[prompt])[0] for prompt in prompts]
    assert together == complete(GREEDY, tokens=1)  # one a batch
    assert len({text for (text,) in together}) > 1 and all(text for (text,) in together)


def test_a_stop_string_ends_a_text(made):
    complete, _ = made
    whole = complete(GREEDY)
    stop = whole[0][0][5:8]
    ended = complete(Sampling(1, 0.0, 24, (stop,)))
    for (text,), (before,) in zip(ended, whole, strict=True):
        assert before.startswith(text)
        assert text == before or stop in text
    assert len(ended[0][0]) < len(whole[0][0])


def test_no_place_for_a_token(made):
    complete, prompts = made
    longest = max(map(len, prompts))
    texts = complete(GREEDY, max_length=longest)
    assert texts[[len(prompt) for prompt in prompts].index(longest)] == [""]
    assert all(text for (text,), prompt in zip(texts, prompts, strict=True) if len(prompt) < longest)


def test_samples_follow_from_the_seed(made):
    complete, _ = made
    warm = Sampling(3, 0.8, 8, ())
    first, again, other = complete(warm), complete(warm), complete(warm, seed=1)
    assert first == again != other
    assert all(len(texts) == 3 for texts in first) and any(len(set(texts)) > 1 for texts in first)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """Of weights that are felt."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    )
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    tuned.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
    return str(folder)


def test_an_adapter_is_added(made, adapter):
    complete, _ = made
    texts = complete(GREEDY, adapter=adapter)
    assert texts == complete(GREEDY, adapter=adapter) != complete(GREEDY)


@pytest.mark.slow
def test_vllm_adds_an_adapter_too(made, adapter):
    complete, _ = made
    pairs = zip(complete(GREEDY, "vllm", adapter=adapter), complete(GREEDY, adapter=adapter), strict=True)
    assert all(theirs.rstrip(CUT) == ours.rstrip(CUT) for (theirs,), (ours,) in pairs)


@pytest.mark.slow
def test_vllm_gives_the_same(made):
    complete, _ = made
    stop = complete(GREEDY)[1][0][5:8]
    for sampling in (GREEDY, Sampling(1, 0.0, 24, (stop,))):
        for (ours,), (theirs,) in zip(complete(sampling), complete(sampling, "vllm"), strict=True):
            assert theirs[: len(ours)] == ours or ours.startswith(theirs)
    warm = complete(Sampling(3, 0.8, 8, ()), "vllm")
    assert all(len(texts) == 3 for texts in warm)

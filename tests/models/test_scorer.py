"""Both engines and both rules against plain transformers loops, row by row, fp32, on real data."""

import gzip
import itertools
import json
import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from raypipe.config import TEMPLATES, Config
from raypipe.models.packed import LENGTHS, load_model
from raypipe.models.pretrained import load_tokenizer
from raypipe.models.scorer import TransformersScorer, make_scorer, token_batches
from raypipe.models.steady import SteadyScorer
from raypipe.ops.ifd import exact_passes
from raypipe.ops.tokens import anchor_ids, prompt_ids, text_ids
from raypipe.stages.score import Score
from tests.lakes import save_random_model

NUM_ROWS = 200
KINDS = list(itertools.product(("llama", "qwen2"), (True, False)))


@pytest.fixture(scope="session")
def code_alpaca(shared):
    """(instruction, response) of rows that have both; the last is by far the longest, 2,400 tokens."""
    with gzip.open(shared / "data/code_alpaca_20k/part-00.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    pairs = [("\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]) for row in rows]
    whole = [pair for pair in pairs if all(map(str.strip, pair))][:500]
    return [*whole[: NUM_ROWS - 1], max(whole, key=lambda pair: sum(map(len, pair)))]


@pytest.fixture(scope="module", params=KINDS, ids=[f"{kind}-{'bos' if bos else 'no bos'}" for kind, bos in KINDS])
def model(request, tmp_path_factory):
    kind, bos = request.param
    return str(save_random_model(tmp_path_factory.mktemp("m") / kind, kind, bos=bos))


@pytest.fixture(scope="module")
def engine(model):
    """transformers' own attention, no packing, no cache."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


@torch.inference_mode()
def plain_nll(engine, tokens, context):
    logprobs, ids = engine(torch.tensor([tokens])).logits[0].log_softmax(-1), torch.tensor(tokens)
    places = torch.arange(context, len(tokens))
    return -logprobs[places - 1, ids[places]].double().sum().item()


@pytest.fixture(scope="module")
def exact(model, engine, code_alpaca):
    """Sequences, their contexts, and the oracle's sums."""
    tokenizer, (instructions, responses) = load_tokenizer(model), zip(*code_alpaca, strict=True)
    prompts = prompt_ids(tokenizer, TEMPLATES["deepseek"], instructions)
    passes = exact_passes(anchor_ids(tokenizer), prompts, text_ids(tokenizer, responses), 3000)
    sequences, context = [ids for pair in passes.sequences for ids in pair], passes.num_context_N2.ravel().tolist()
    sums = [plain_nll(engine, tokens, n) for tokens, n in zip(sequences, context, strict=True)]
    return model, sequences, context, np.array(sums)


def check(exact, backend, max_batch_tokens):
    model, sequences, context, oracle = exact
    assert len(sequences) == 2 * NUM_ROWS
    scorer = make_scorer(backend, model, "cpu", "float32", 3000, 4e9, max_batch_tokens)
    num_tokens = np.array([len(tokens) - n for tokens, n in zip(sequences, context, strict=True)])
    worst = np.max(np.abs(scorer.nll(sequences, context) - oracle) / num_tokens)
    print(f"{backend}: worst difference {worst:.1e} nats a token")
    assert worst <= 1e-4


def test_transformers_equals_a_plain_loop(exact):
    """An IFD that depends on how rows were batched selects other rows on another cluster."""
    check(exact, "transformers", 4096)


@pytest.mark.slow
def test_vllm_equals_a_plain_loop(exact):
    """The default engine where it is installed; also that it is installed here. The longest sequences go in pieces."""
    assert max(map(len, exact[1])) > 4 * 512
    check(exact, "vllm", 512)


@torch.inference_mode()
def authors_ifd(tokenizer, engine, question, answer, max_length):
    """As the paper's repository computes it: joint text, mean losses of transformers, each failure a 0."""
    prompt = f"Question:\n{question}\n\nAnswer:\n"
    end = len(tokenizer.encode(prompt, truncation=True, max_length=max_length))

    def perplexity(text, most, masked):
        try:
            ids = tokenizer.encode(text, return_tensors="pt", truncation=True, max_length=most)
            labels = ids.clone()
            labels[0, :masked] = -100
            return math.exp(engine(ids, labels=labels).loss.item())
        except Exception:  # noqa: BLE001  theirs
            return 0.0

    alone, conditional = perplexity(answer, max_length - end + 1, 0), perplexity(prompt + answer, max_length, end)
    ratio = conditional / alone if alone else 0.0
    return 0.0 if math.isnan(ratio) else ratio


def config(model, *, max_batch_tokens=8192, **score):
    tree = {
        "name": "t", "model": model, "ingest": {"paths": ["x"]}, "embed": {"model": "e"}, "storage": {"root": "r"},
        "score": {"backend": "transformers", "dtype": "float32", **score},
        "resources": {"score": {"max_batch_tokens": max_batch_tokens}},
    }  # fmt: skip
    return Config.model_validate_json(json.dumps(tree))


def tables(rows):
    instructions, responses = zip(*rows, strict=True)
    ids = [str(n) for n in range(len(rows))]
    samples = pa.table({"sample_id": ids, "instruction": instructions, "response": responses})
    return [samples, pa.table({"status": ["ok"] * len(rows)})]


def scored(config, rows):
    return made(Score(config), rows)


def made(score, rows):
    return score(score.prepare(tables(rows))).to_pylist()


def test_rule_authors_equals_theirs(model, engine, code_alpaca):
    """Who compares with the paper's figures needs its rule to the token; only what it calls 0 is a status here."""
    rows, most = [*code_alpaca, ("add " * 300, "x = 1"), ("add", "x = 1 " * 200)], 160
    tokenizer = load_tokenizer(model)
    theirs = np.array([authors_ifd(tokenizer, engine, *row, most) for row in rows])
    ours = scored(config(model, rule="authors", max_length=most), rows)
    found = np.array([row["ifd"] or 0.0 for row in ours])
    counts = {name: sum(row["status"] == name for row in ours) for name in {row["status"] for row in ours}}
    print(f"largest relative difference {np.max(np.abs(found - theirs) / np.maximum(theirs, 1e-9)):.1e}, {counts}")
    assert found == pytest.approx(theirs, rel=1e-4) and counts["truncated"] > 5
    assert [row["status"] for row in ours[-2:]] == ["instruction_fills_window", "truncated"]
    assert {row["status"] for row in ours if row["ifd"] is None} <= {"instruction_fills_window", "empty_response"}


def check_order(backend, model, rows):
    """Another order, parts and batches; in fp32 on a CPU even the bits are the same."""
    whole = np.array([row["ifd"] for row in scored(config(model, backend=backend), rows)])
    small, other = Score(config(model, backend=backend, max_batch_tokens=300)), np.full(len(rows), np.nan)
    for part in np.array_split(np.random.default_rng(0).permutation(len(rows)), 7):
        other[part] = [row["ifd"] for row in made(small, [rows[n] for n in part])]
    print(f"{backend}: largest relative difference {np.max(np.abs(other / whole - 1)):.1e}")
    assert other == pytest.approx(whole, rel=1e-5)


def test_order_parts_and_batches_change_no_row(model, code_alpaca):
    """A rerun with other parts, actors or batches must select the same rows."""
    check_order("transformers", model, code_alpaca[:120])


@pytest.mark.slow
def test_order_parts_and_batches_change_no_row_of_vllm(random_model, code_alpaca):
    check_order("vllm", str(random_model), code_alpaca[:120])


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 150))
def test_batches_hold_every_row_once_within_the_budget(lengths, most):
    batches = list(token_batches(lengths, most))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in batch) <= most or len(batch) == 1 for batch in batches)


SHORT_OF_MEMORY = """
import os, resource, sys
from functools import partial
import psutil
from raypipe.models.scorer import make_scorer
from raypipe.models.steady import SteadyScorer

backend, model, (max_batch_tokens, number, megabytes) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
scorer = SteadyScorer(partial(make_scorer, backend, model, "cpu", "float32", 2048, 20e9), max_batch_tokens)
sequences = [[n % 90 + m % 7 for m in range(1900)] for n in range(number)]
unbounded, _ = scorer.nll(sequences, [1] * number)
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (megabytes << 20),) * 2)
bounded, refused = scorer.nll(sequences, [1] * number)
print(scorer.restarts, len(refused), abs(bounded - unbounded).max(), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "max_batch_tokens", "number", "megabytes"), [("transformers", 45_600, 24, 130), ("vllm", 2048, 3, 900)]
)
def test_engines_that_run_out_of_memory_go_on(backend, max_batch_tokens, number, megabytes, tmp_path):
    """The real ones, of a process that may not have more address space: fewer tokens a batch, the same numbers."""
    model = save_random_model(tmp_path / "model", "llama", bos=True)
    config = AutoConfig.from_pretrained(model)
    config.vocab_size = 40_000  # more than its tokenizer knows, as many models have: logits are what takes memory
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    words = [backend, model, max_batch_tokens, number, megabytes]
    command = [sys.executable, "-c", SHORT_OF_MEMORY, *map(str, words)]
    glibc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}  # else it keeps addresses that are free
    environment = {**os.environ, **glibc, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    restarts, refused, worst = done.stderr.splitlines()[-1].split()
    assert (int(restarts) > 0, refused) == (True, "0") and float(worst) < 1e-2, done.stderr[-3000:]


@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_an_id_beyond_the_vocabulary_costs_only_its_row(backend, tmp_path):
    """A tokenizer larger than its model: on a GPU the id would end the whole process."""
    model = str(save_random_model(tmp_path / "model", "qwen2", bos=False))
    scorer = SteadyScorer(partial(make_scorer, backend, model, "cpu", "float32", 64, 4e9), 64)
    (alone,), _ = scorer.nll([[1, 2, 3]], [1])
    sums, refused = scorer.nll([[5, 6], [1, 2, 3], [7, 10**6]], [1, 1, 1])
    assert list(refused) == [2] and "token id 1000000" in refused[2]
    assert np.isnan(sums).tolist() == [False, False, True] and sums[1] == pytest.approx(alone, rel=1e-6)


def test_layers_on_a_cpu_see_few_lengths(random_model):
    """For each length oneDNN makes and keeps code, half a MB a layer in bfloat16: an actor held 3 GB after 50,000 rows."""
    scorer = TransformersScorer(load_model(str(random_model), "bfloat16", "cpu"), 1024)
    rng, seen = np.random.default_rng(0), set()
    for layer in scorer.model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape[-2]))
    sequences = [rng.integers(0, 100, n).tolist() for n in rng.integers(2, 300, 200)]
    scorer.nll(sequences, [1] * len(sequences))
    assert seen and all(length % LENGTHS == 0 for length in seen), seen

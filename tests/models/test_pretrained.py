"""Tokenizers that would spoil a training without a word."""

import json

import pytest
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from raypipe.errors import ConfigError
from raypipe.models.pretrained import load_tokenizer


def test_a_tokenizer_that_loses_spaces_is_refused(random_model, tmp_path):
    """As transformers 5 makes one of some folders of DeepSeek-Coder: a model of code without spaces would train, and be useless."""
    bpe = Tokenizer.from_file(str(random_model / "tokenizer.json"))
    bpe.decoder = decoders.Sequence([decoders.Replace("Ġ", ""), decoders.ByteLevel()])
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"loses spaces: of 'def add.*gives back 'defadd"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_an_end_is_refused(random_model, tmp_path):
    PreTrainedTokenizerFast(tokenizer_file=str(random_model / "tokenizer.json")).save_pretrained(tmp_path)
    assert "eos_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    with pytest.raises(ConfigError, match="has no EOS token"):
        load_tokenizer(str(tmp_path))


def test_a_good_one_is_not(random_model, embedder):
    assert load_tokenizer(str(random_model)).eos_token == "<eos>"

"""What a stage asks of a pretrained model beside its weights. transformers takes seconds to import, so only who asks imports it."""

from __future__ import annotations

import sys
from typing import Any

from raypipe.errors import ConfigError
from raypipe.ops.hub import split_revision


def load_tokenizer(model: str) -> Any:
    """ConfigError where the tokenizer has no EOS: it ends every training sample."""
    from transformers import AutoTokenizer

    name, revision = split_revision(model)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model: {model}: the tokenizer has no EOS token, wanted one to end a sample. Set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def max_positions(model: str) -> int:
    """Longest sample that the model has positions for, in tokens."""
    return int(getattr(load_config(model), "max_position_embeddings", None) or sys.maxsize)


def load_config(model: str) -> Any:
    """The model's own configuration, in transformers' form."""
    from transformers import AutoConfig

    name, revision = split_revision(model)
    return AutoConfig.from_pretrained(name, revision=revision)

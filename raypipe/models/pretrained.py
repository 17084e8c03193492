"""What a stage asks of a pretrained model beside its weights. transformers takes seconds to import, so only who asks imports it."""

from __future__ import annotations

import sys
from typing import Any

from raypipe.errors import ConfigError
from raypipe.ops.hub import split_revision
from raypipe.ops.tokens import text_ids

SPACED = "def add(a, b):\n    return a + b  # of two"


def load_tokenizer(model: str) -> Any:
    """ConfigError where the tokenizer has no EOS, which ends every training sample, or loses spaces, which Python cannot do without."""
    from transformers import AutoTokenizer

    name, revision = split_revision(model)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model: {model}: the tokenizer has no EOS token, wanted one to end a sample. Set eos_token in its tokenizer_config.json"
        )
    back = tokenizer.decode(text_ids(tokenizer, [SPACED])[0], clean_up_tokenization_spaces=False)
    if back.split() != SPACED.split() and "".join(back.split()) == "".join(SPACED.split()):
        raise ConfigError(
            f"model: {model}: the tokenizer loses spaces: of {SPACED!r} it gives back {back!r}. transformers 5 does that with some folders "
            "whose tokenizer_config.json says LlamaTokenizerFast (its issue 46489): write TokenizersBackend there"
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

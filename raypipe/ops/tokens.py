"""Prompt and response as token ids. They are tokenised apart: tokenising the joined text can merge tokens across the boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypipe.errors import ConfigError

Tokens = list[int]
IGNORED = -100  # label of a token that is not a target


def prompt_ids(tokenizer: Any, template: str, instructions: Sequence[str]) -> list[Tokens]:
    """[BOS, where there is one] + the rendered instruction; `chat` renders with the tokenizer's own template (ConfigError if none)."""
    if template == "chat":
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"template: chat: {tokenizer.name_or_path} has no chat template. Give a template with {{instruction}}"
            )
        return [_chat_ids(tokenizer, instruction) for instruction in instructions]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    texts = [template.replace("{instruction}", instruction) for instruction in instructions]
    return [bos + ids for ids in text_ids(tokenizer, texts)]


def text_ids(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    if not texts:
        return []
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]


def anchor_ids(tokenizer: Any) -> Tokens:
    """What stands before an unconditional response: BOS, or EOS where the tokenizer has no BOS."""
    return [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]


def training_sequence(prompt: Tokens, response: Tokens, eos: int) -> tuple[Tokens, Tokens]:
    """(input_ids, labels) of one sample; targets are the response and EOS."""
    return prompt + response + [eos], [IGNORED] * len(prompt) + response + [eos]


def _chat_ids(tokenizer: Any, instruction: str) -> Tokens:
    messages = [{"role": "user", "content": instruction}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])

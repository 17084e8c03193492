"""Prompt and response as token ids. They are tokenised apart: tokenising the joined text can merge tokens across the boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypipe.errors import ConfigError

Tokens = list[int]
IGNORED = -100  # label of a token that is not a target


def prompt_ids(tokenizer: Any, template: str, instructions: Sequence[str]) -> list[Tokens]:
    """[BOS, where there is one] + the rendered instruction; a chat template writes its own BOS."""
    bos = [] if template == "chat" or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [bos + ids for ids in text_ids(tokenizer, prompt_texts(tokenizer, template, instructions))]


def prompt_texts(tokenizer: Any, template: str, instructions: Sequence[str]) -> list[str]:
    """`chat` renders with the tokenizer's own template (ConfigError if none). `replace`, not `format`: an instruction may hold braces."""
    if template != "chat":
        return [template.replace("{instruction}", instruction) for instruction in instructions]
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"template: chat: {tokenizer.name_or_path} has no chat template. Give a template with {{instruction}}"
        )
    users = [[{"role": "user", "content": instruction}] for instruction in instructions]
    return [tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False) for user in users]


def text_ids(tokenizer: Any, texts: Sequence[str], *, special: bool = False) -> list[Tokens]:
    """`special`: with what the tokenizer itself puts around a text, BOS for most."""
    if not texts:
        return []
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]]


def anchor_ids(tokenizer: Any) -> Tokens:
    """What stands before an unconditional response: BOS, or EOS where the tokenizer has no BOS."""
    return [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]


def training_sequence(prompt: Tokens, response: Tokens, eos: int) -> tuple[Tokens, Tokens]:
    """(input_ids, labels) of one sample; targets are the response and EOS."""
    return prompt + response + [eos], [IGNORED] * len(prompt) + response + [eos]

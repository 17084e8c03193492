"""The fine-tuned model as others load it: safetensors, tokenizer, chat template and generation config in Hugging Face format."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from raypipe.models.checkpoints import Output
from raypipe.models.packed import load_model
from raypipe.models.pretrained import load_config
from raypipe.models.sharded import Tuning, adapted

LAST = "generation_config.json"  # put last: makes a model whole


def release(
    weights: Mapping[str, torch.Tensor],
    tuning: Tuning,
    tokenizer: Any,
    *,
    merge: bool,
    chat_template: str | None,
    out: Output,
) -> None:
    """`weights`: what was trained, whole, on the CPU. In the type that the base model was saved in; `merge` adds adapters to it.

    `chat_template` in place of the tokenizer's own, so that a chat is rendered as training rendered its samples.
    """
    base = load_model(tuning.model, "float32", "cpu")
    saved_as = load_config(tuning.model).dtype or torch.float32
    if tuning.lora is None:
        base.load_state_dict(dict(weights))
        model = base
    else:
        model = adapted(tuning.lora, base)
        unknown = base.load_state_dict(dict(weights), strict=False).unexpected_keys
        assert not unknown, f"adapters for no layer: {unknown[:3]}"
        model = model.merge_and_unload() if merge else model
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    with tempfile.TemporaryDirectory() as folder:
        model.to(saved_as).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _generation(base.generation_config, tokenizer).save_pretrained(folder)
        _copy(Path(folder), out)


def _generation(config: GenerationConfig | None, tokenizer: Any) -> GenerationConfig:
    """The base model's, which also ends at the token that ended every sample."""
    config = config or GenerationConfig()
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    known = [end for end in ends if end not in (None, tokenizer.eos_token_id)]
    config.eos_token_id = [tokenizer.eos_token_id, *known] if known else tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return config


def _copy(folder: Path, out: Output) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name == LAST):
        with path.open("rb") as source, out.create(path.name) as target:
            shutil.copyfileobj(source, target, 8 << 20)

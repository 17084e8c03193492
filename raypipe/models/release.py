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
from raypipe.ops.chat_template import chat_template
from raypipe.ops.tokens import prompt_ids

LAST = "generation_config.json"  # put last: makes a model whole


def release(
    weights: Mapping[str, torch.Tensor],
    tuning: Tuning,
    tokenizer: Any,
    *,
    merge: bool,
    template: str,
    out: Output,
) -> None:
    """`weights`: what was trained, whole, on the CPU. In the type that the base model was saved in; `merge` adds adapters to it.

    With a chat template that renders a chat as training rendered its samples by `template`.
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
    tokenizer.chat_template = _chat_template(template, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        model.to(saved_as).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _generation(base.generation_config, tokenizer).save_pretrained(folder)
        _copy(Path(folder), out)


def _chat_template(template: str, tokenizer: Any) -> str:
    """Some tokenizers put a space before the first word of a text, but not after a BOS that is text: these get it written out."""
    if template == "chat":
        return str(tokenizer.chat_template)
    plain, spaced = chat_template(template), chat_template(f" {template}")
    user = [{"role": "user", "content": "Sort a list."}]
    (wanted,) = prompt_ids(tokenizer, template, ["Sort a list."])
    given = {
        text: tokenizer.apply_chat_template(user, chat_template=text, return_dict=False) for text in (plain, spaced)
    }
    return spaced if given[spaced] == wanted != given[plain] else plain


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
    (folder / "README.md").unlink(missing_ok=True)  # peft's; ours is put once the run's figures are known
    for path in sorted(folder.iterdir(), key=lambda path: path.name == LAST):
        with path.open("rb") as source, out.create(path.name) as target:
            shutil.copyfileobj(source, target, 8 << 20)

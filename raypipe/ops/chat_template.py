"""The chat template that a fine-tuned model is saved with: whoever chats with it sends what it was trained on.

Training saw [BOS, where there is one] + prompt + response + EOS, so the template writes `bos_token` and `eos_token`
itself: `apply_chat_template`, and vLLM with it, tokenises without special tokens. Up to the response, ids are those of
training. After it they are where a tokenizer splits the joined text between prompt and response: training joins ids, a
template can only join text. Tokenizers that put a space before the first word of a text (CodeLlama's) put none after a
BOS that is text; for these `chat_template(" " + template)` gives the ids of training.
"""

from __future__ import annotations

import json

SLOT = "{instruction}"
TURNS = r"""
{{- bos_token -}}
{%- set first = 1 if messages[0].role == "system" else 0 -%}
{%- for message in messages -%}
  {%- set place = loop.index0 - first -%}
  {%- set wanted = "system" if place < 0 else ["user", "assistant"][place % 2] -%}
  {%- if message.role != wanted -%}
    {%- set got = "message " ~ loop.index ~ ": got role " ~ message.role ~ ", wanted " ~ wanted -%}
    {{- raise_exception(got ~ ". After at most one system message, user and assistant take turns, the user first") -}}
  {%- elif message.content is not string -%}
    {{- raise_exception("message " ~ loop.index ~ ": its content must be text") -}}
  {%- elif wanted == "user" -%}
    {%- set instruction = (messages[0].content ~ "\n\n" if first and place == 0 else "") ~ message.content -%}
    {{- PROMPT -}}
  {%- elif wanted == "assistant" -%}
    {{- message.content ~ eos_token -}}
  {%- endif -%}
{%- endfor -%}
""".strip()


def chat_template(template: str) -> str:
    """Jinja for `tokenizer.chat_template`, from text with `{instruction}`; ValueError without it, as for `chat`, where
    the tokenizer keeps its own.

    Training knew neither system messages nor second rounds. The plain choice: a system message stands before the first
    instruction, a blank line between; rounds follow one another, each ending in EOS, after one BOS. What stands before
    a response belongs to the user's turn, so `add_generation_prompt` changes nothing.
    """
    if SLOT not in template:
        raise ValueError(f"a chat template needs text with {SLOT}, got {template!r}")
    return TURNS.replace("PROMPT", " ~ instruction ~ ".join(map(_literal, template.split(SLOT))))


def _literal(text: str) -> str:
    """A string of Jinja, which reads escapes as Python does: JSON's are the same, but for pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)

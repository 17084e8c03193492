"""Completions of prompts: one contract, two engines.

`complete(prompts, seed)` gives for each prompt, a list of token ids, the texts that follow it: as many as asked for, each up to a stop
string (where it may still stand), the end of the model's own sequence, or the most tokens allowed. A prompt that leaves no place for
a token gets empty texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raypipe.ops.hub import split_revision

Tokens = list[int]


@dataclass(frozen=True)
class Sampling:
    num_completions: int  # of each prompt
    temperature: float  # 0: greedy
    max_new_tokens: int
    stops: tuple[str, ...]


class Generator(Protocol):
    def complete(self, prompts: Sequence[Tokens], sampling: Sampling, seed: int) -> list[list[str]]: ...


def make_generator(
    backend: str,
    model: str,
    adapter: str | None,
    tokenizer: Any,
    device: str,
    dtype: str,
    max_length: int,
    free_bytes: float,
    max_batch_tokens: int,
    *,
    gpus: float = 1,
) -> Generator:
    """`max_length`: tokens of prompt and completion together; `adapter`: a folder of LoRA weights for the model."""
    if backend == "vllm":
        return VllmGenerator(model, adapter, device, dtype, max_length, free_bytes, int(max(gpus, 1)))
    return TransformersGenerator(model, adapter, tokenizer, device, dtype, max_length, max_batch_tokens)


class TransformersGenerator:
    """Prompts of about equal length together, padded on the left, at most `max_batch_tokens` with what they become."""

    def __init__(
        self,
        model: str,
        adapter: str | None,
        tokenizer: Any,
        device: str,
        dtype: str,
        max_length: int,
        max_batch_tokens: int,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        name, revision = split_revision(model)
        self.model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=getattr(torch, dtype))
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, adapter).merge_and_unload()
        self.model = self.model.to(device).eval()
        self.tokenizer, self.max_length, self.max_batch_tokens = tokenizer, max_length, max_batch_tokens

    def complete(self, prompts: Sequence[Tokens], sampling: Sampling, seed: int) -> list[list[str]]:
        import torch

        torch.manual_seed(seed)
        made = [[""] * sampling.num_completions for _ in prompts]
        order = sorted(
            (n for n in range(len(prompts)) if len(prompts[n]) < self.max_length), key=lambda n: -len(prompts[n])
        )
        while order:
            longest = min(len(prompts[order[0]]) + sampling.max_new_tokens, self.max_length)
            count = max(1, self.max_batch_tokens // (longest * sampling.num_completions))
            batch, order = order[:count], order[count:]
            for n, texts in zip(batch, self._batch([prompts[n] for n in batch], longest, sampling), strict=True):
                made[n] = texts
        return made

    def _batch(self, prompts: list[Tokens], longest: int, sampling: Sampling) -> list[list[str]]:
        import torch
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ends = getattr(self.model.generation_config, "eos_token_id", None) or self.tokenizer.eos_token_id
        warm = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        settings = GenerationConfig(
            max_new_tokens=min(sampling.max_new_tokens, longest - width),
            num_return_sequences=sampling.num_completions,
            pad_token_id=pad,
            eos_token_id=ends,
            **(warm if sampling.temperature else {"do_sample": False}),
        )
        with torch.inference_mode():
            rows = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=settings,
                stopping_criteria=[_Stopped(self.tokenizer, width, sampling.stops)] if sampling.stops else [],
            )
        texts = [self._text(prompts[n // sampling.num_completions], row[width:].tolist()) for n, row in enumerate(rows)]
        return [texts[n : n + sampling.num_completions] for n in range(0, len(texts), sampling.num_completions)]

    def _text(self, prompt: Tokens, new: Tokens) -> str:
        """Decoded behind its prompt: some tokenizers drop the space that a text begins with."""
        decode = self.tokenizer.decode
        before = decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decode(prompt + new, skip_special_tokens=True, clean_up_tokenization_spaces=False)[len(before) :])


class _Stopped:
    """Rows whose last tokens hold a stop string."""

    def __init__(self, tokenizer: Any, width: int, stops: Sequence[str]) -> None:
        self.tokenizer, self.width, self.stops = tokenizer, width, stops
        self.tail = max(map(len, stops)) + 1  # tokens, each of a character at least, but for pieces of one

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        first = max(self.width, input_ids.shape[1] - self.tail)
        texts = self.tokenizer.batch_decode(input_ids[:, first:], clean_up_tokenization_spaces=False)
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)


class VllmGenerator:
    """vLLM in this process, which batches by itself."""

    def __init__(
        self, model: str, adapter: str | None, device: str, dtype: str, max_length: int, free_bytes: float, gpus: int
    ) -> None:
        from raypipe.models.scorer import prepare_vllm

        prepare_vllm(model)
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        from raypipe.models.memory import MAX_SEQUENCES, cache_bytes
        from raypipe.models.pretrained import load_config

        name, revision = split_revision(model)
        self.adapter = LoRARequest("adapter", 1, adapter) if adapter else None
        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(adapter)} if adapter else {}
        shards = {"tensor_parallel_size": gpus} if gpus > 1 else {}
        self.max_length = max_length
        self.engine: Any = LLM(
            name,
            revision=revision,
            dtype=dtype,
            enforce_eager=True,
            disable_log_stats=True,
            max_model_len=max_length,
            block_size=16 if device == "cuda" else 128,
            max_num_seqs=MAX_SEQUENCES,
            kv_cache_memory_bytes=cache_bytes(load_config(model), dtype, free_bytes, max_length, gpus),
            **lora,
            **shards,
        )

    def complete(self, prompts: Sequence[Tokens], sampling: Sampling, seed: int) -> list[list[str]]:
        from vllm import SamplingParams

        made = [[""] * sampling.num_completions for _ in prompts]
        fitting = [n for n, prompt in enumerate(prompts) if len(prompt) < self.max_length]
        settings = [
            SamplingParams(
                n=sampling.num_completions,
                temperature=sampling.temperature,
                seed=seed + n if sampling.temperature else None,
                max_tokens=min(sampling.max_new_tokens, self.max_length - len(prompts[n])),
                stop=list(sampling.stops),
                include_stop_str_in_output=True,
            )
            for n in fitting
        ]
        outputs = self.engine.generate(
            [{"prompt_token_ids": prompts[n]} for n in fitting], settings, use_tqdm=False, lora_request=self.adapter
        )
        for n, output in zip(fitting, outputs, strict=True):
            made[n] = [one.text for one in output.outputs]
        return made


def _rank(adapter: str) -> int:
    """The smallest that vLLM knows for it."""
    from peft import LoraConfig

    r = int(LoraConfig.from_pretrained(adapter).r)
    return next(known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= r)

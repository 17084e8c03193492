"""Sums of NLL over the tail of token sequences: one contract, two engines.

`nll(sequences, num_context)` gives [N] float64: for each sequence the summed NLL, in nats, of its tokens from place
`num_context` on (at least 1). A sum that is not finite stays so, it is never 0. Only these sums leave an engine. What an
engine raises for a sequence it cannot score is among its `errors`; it can be asked again afterwards.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import ConfigError
from raypipe.ops.hub import split_revision
from raypipe.ops.tokens import IGNORED

Tokens = list[int]
PACKED_ON_CPU = 1024  # tokens a forward pass: 4,096 leave the caches, 16 % slower in float32 and 2 % in bfloat16


class Scorer(Protocol):
    errors: tuple[type[Exception], ...]

    def nll(self, sequences: Sequence[Tokens], num_context: Sequence[int]) -> NDArray[np.float64]: ...

    def close(self) -> None:
        """Give back the memory."""


def make_scorer(
    backend: str,
    model: str,
    device: str,
    dtype: str,
    max_length: int,
    free_bytes: float,
    max_batch_tokens: int,
    *,
    gpus: float = 1,
) -> Scorer:
    """`max_length` tokens a sequence, at most `max_batch_tokens` a forward pass; `free_bytes` of memory may be taken, on each GPU."""
    if backend == "vllm":
        shards = {"tensor_parallel_size": int(gpus)} if gpus > 1 else {}
        return VllmScorer(model, device, dtype, max_length, free_bytes, max_batch_tokens, **shards)
    if gpus > 1:
        raise ConfigError(f"resources.score.gpus: {gpus:g}, wanted at most 1 for score.backend=transformers. Use vllm")
    from raypipe.models.packed import load_model

    return TransformersScorer(load_model(model, dtype, device), max_batch_tokens)


class TransformersScorer:
    """Many sequences a forward pass, packed end to end and isolated; longest first, up to max_batch_tokens."""

    errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, IndexError, MemoryError)

    def __init__(self, model: Any, max_batch_tokens: int) -> None:
        """`model` attends as packed.load_model lets it."""
        from raypipe.models.packed import head_of

        self.model, self.head, self.max_batch_tokens = model.eval(), head_of(model), max_batch_tokens
        self.device = model.device.type

    def nll(self, sequences: Sequence[Tokens], num_context: Sequence[int]) -> NDArray[np.float64]:
        check_ids(sequences, self.model.get_input_embeddings().weight.shape[0])
        sums = np.zeros(len(sequences))
        for places in token_batches([len(tokens) for tokens in sequences], self.max_batch_tokens):
            sums[places] = self._batch([sequences[n] for n in places], [num_context[n] for n in places])
        return sums

    def close(self) -> None:
        import torch

        del self.model, self.head
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _batch(self, sequences: list[Tokens], num_context: list[int]) -> NDArray[np.float64]:
        import torch

        from raypipe.models.packed import LENGTHS, make_batch, summed_nll

        labels = [
            label for tokens, n in zip(sequences, num_context, strict=True) for label in [IGNORED] * n + tokens[n:]
        ]
        ids = [token for tokens in sequences for token in tokens]
        filler = -len(ids) % LENGTHS if self.device == "cpu" else 0
        lengths = [len(tokens) for tokens in sequences] + [filler] * (filler > 0)
        batch = make_batch(ids + ids[:1] * filler, labels + [IGNORED] * filler, lengths, self.device)
        with torch.inference_mode():
            return np.asarray(summed_nll(self.model, self.head, batch)[: len(sequences)].cpu().numpy())


class VllmScorer:
    """vLLM in this process; both passes of many samples in one `generate`, which schedules them by tokens, longer ones in pieces."""

    def __init__(
        self,
        model: str,
        device: str,
        dtype: str,
        max_length: int,
        free_bytes: float,
        max_batch_tokens: int,
        **options: Any,
    ) -> None:
        """`options` are vLLM's own."""
        prepare_vllm(model)
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"  # for the token it must generate, which is never fed back
        import vllm.exceptions
        from vllm import LLM, SamplingParams

        from raypipe.models.memory import MAX_SEQUENCES, budget
        from raypipe.models.pretrained import load_config

        refusals = getattr(vllm.exceptions, "VLLMError", ValueError)  # its own from 0.3x on, which are no ValueError
        self.errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, IndexError, MemoryError, refusals)
        name, revision = split_revision(model)
        block = 16 if device == "cuda" else 128
        gpus = options.get("tensor_parallel_size", 1)
        limits = budget(load_config(model), dtype, free_bytes, max_length + 1, max_batch_tokens, block, gpus)
        self.engine: Any = LLM(
            name,
            revision=revision,
            skip_tokenizer_init=True,
            dtype=dtype,
            enforce_eager=True,
            enable_prefix_caching=False,  # a cached token has no log-probability
            disable_log_stats=True,
            max_model_len=max_length + 1,  # vLLM must generate one token
            block_size=block,
            max_num_seqs=min(MAX_SEQUENCES, limits.batch_tokens),
            max_num_batched_tokens=limits.batch_tokens,
            enable_chunked_prefill=True,
            kv_cache_memory_bytes=limits.kv_bytes,
            **options,
        )
        self.vocab_size = self.engine.llm_engine.model_config.get_vocab_size()
        self.sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, flat_logprobs=True
        )

    def nll(self, sequences: Sequence[Tokens], num_context: Sequence[int]) -> NDArray[np.float64]:
        check_ids(sequences, self.vocab_size)
        prompts = [{"prompt_token_ids": tokens} for tokens in sequences]
        try:
            outputs = self.engine.generate(prompts, self.sampling, use_tqdm=False)
        except self.errors:
            left = self.engine.llm_engine.output_processor.request_states  # else the next call would answer them too
            self.engine.llm_engine.abort_request(list(left), internal=True)
            raise
        return np.array([_tail_nll(output.prompt_logprobs, n) for output, n in zip(outputs, num_context, strict=True)])

    def close(self) -> None:
        self.engine.llm_engine.engine_core.shutdown()
        del self.engine
        gc.collect()


def prepare_vllm(model: str) -> None:
    """Before vLLM is imported: it reads its settings then."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if os.path.isdir(model):
        os.environ["HF_HUB_OFFLINE"] = "1"


def check_ids(sequences: Sequence[Tokens], vocab_size: int) -> None:
    """ValueError for an id that the model has no embedding for: on a GPU it would end the whole process."""
    if (highest := max(map(max, sequences))) >= vocab_size:
        raise ValueError(
            f"token id {highest} of a tokenizer that is larger than its model's vocabulary of {vocab_size}"
        )


def _tail_nll(logprobs: Any, num_context: int) -> float:
    """With prompt_logprobs=0 a place has one entry, the prompt's own token; the first place has none."""
    return -float(np.sum(logprobs.logprobs[num_context - 1 :], dtype=np.float64))


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Places of all lengths, longest first, in batches of at most `max_tokens` in sum; a longer one goes alone."""
    batch: list[int] = []
    total = 0
    for place in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        if batch and total + lengths[place] > max_tokens:
            yield batch
            batch, total = [], 0
        batch.append(place)
        total += lengths[place]
    if batch:
        yield batch

"""Sentence embeddings by a sentence-transformers model's own modules: its pooling, normalisation, prompt and maximum length.

What `SentenceTransformer.encode` gives, for less: a batch is bounded by its tokens, not its texts, and padded only to its own
longest; the network multiplies in bfloat16, where the hardware can, and all that follows it is float32. Equal texts are
embedded once, in an order of their own, so that the order they come in changes no bit.

Shapes: N texts, T tokens of the longest, D dimensions.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.ops.hub import split_revision

log = logging.getLogger("raypipe")
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}  # a forward pass, padding too; on a CPU 512 and 2,048 are 3 % slower
CHARS_A_TOKEN = 4  # of English; only decides how much is tokenised at once
TOKENISED_BATCHES = 16
CPU_INFO = Path("/proc/cpuinfo")


class Embedder:
    def __init__(self, model: str, device: str, dtype: str, backend: str = "torch", *, batch_tokens: int = 0) -> None:
        """A model saved in half precision is widened to float32. `batch_tokens` 0: what is good for the device."""
        from sentence_transformers import SentenceTransformer

        if device == "cpu":
            use_one_thread()
        name, revision = split_revision(model)
        self.model: Any = SentenceTransformer(name, revision=revision, device=device).float().eval()
        self.prompt = self.model.prompts.get(self.model.default_prompt_name)
        self.device, self.batch_tokens = device, batch_tokens or BATCH_TOKENS[device]
        self.rounds = dtype == "bfloat16" and has_bfloat16(device)
        if backend == "openvino":
            from raypipe.models.openvino import compile_network

            compile_network(self.model, "bf16" if self.rounds else "f32")
        elif self.rounds:
            _round_weights(self.model[0])

    @property
    def dimensions(self) -> int:
        return int(self.model.get_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N, D]."""
        import torch

        if not texts:
            return np.zeros((0, self.dimensions), np.float32)
        distinct = sorted(set(texts))
        places, vectors = [], []
        with torch.inference_mode():
            for rows, features in self._batches(distinct):
                places.append(rows)
                vectors.append(self._forward(features))
            vectors_ND = torch.cat(vectors).float().cpu().numpy()
        at = {distinct[n]: row for row, n in enumerate(np.concatenate(places))}
        return np.asarray(vectors_ND[[at[text] for text in texts]])

    def _batches(self, texts: list[str]) -> Iterator[tuple[NDArray[np.intp], dict[str, Any]]]:
        """Places of texts, and what the network wants of them. Tokenised many at once, as only then lengths are known."""
        chars = CHARS_A_TOKEN * TOKENISED_BATCHES * self.batch_tokens
        for rows in padded_batches([len(text) for text in texts], chars):
            features = self.model.preprocess([texts[n] for n in rows], prompt=self.prompt)
            if "attention_mask" not in features:  # as of a bag of words: no padding to save
                yield rows, features
                continue
            for some in padded_batches(features["attention_mask"].sum(1), self.batch_tokens):
                yield rows[some], _select(features, some)

    def _forward(self, features: dict[str, Any]) -> Any:
        """The modules one by one, as `encode` runs them: the first is the network."""
        import torch

        network, *others = self.model
        features = {
            name: value.to(self.device) if torch.is_tensor(value) else value for name, value in features.items()
        }
        with torch.autocast(self.device, torch.bfloat16, enabled=self.rounds):
            features = network(features)
        features = {name: _widened(value) for name, value in features.items()}
        for module in others:
            features = module(features)
        return features["sentence_embedding"][:, : self.model.truncate_dim]


def padded_batches(lengths: ArrayLike, budget: int) -> Iterator[NDArray[np.intp]]:
    """Places, longest first, ties in order; in a batch number times longest is at most `budget`, and a longer one goes alone."""
    lengths = np.asarray(lengths)
    order, first = np.argsort(-lengths, kind="stable"), 0
    while first < len(order):
        longest = max(int(lengths[order[first]]), 1)
        yield order[first : (first := first + max(budget // longest, 1))]


def has_bfloat16(device: str) -> bool:
    """Without instructions for it a CPU takes twice (AVX-512) or four times (AVX2) what float32 takes."""
    if device == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    there = re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", CPU_INFO.read_text()) is not None
    if not there:
        log.warning(
            "embed: this CPU has no bfloat16 instructions; it computes in float32, which is closer to the model"
        )
    return there


def use_one_thread() -> None:
    """Of this process: two on a busy machine take three to four times the CPU."""
    import torch

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _round_weights(network: Any) -> None:
    """To what autocast would make of them in every batch, by estimate 6 % of the time of a large model."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.bfloat16()


def _select(features: dict[str, Any], rows: NDArray[np.intp]) -> dict[str, Any]:
    """Of a padded batch those rows, without the columns that are padding in all of them, at either side."""
    import torch

    mask_NT, keep = features["attention_mask"], torch.from_numpy(rows)
    columns = mask_NT[keep].any(0)
    return {
        name: value[keep][:, columns] if torch.is_tensor(value) and value.shape[:2] == mask_NT.shape else value
        for name, value in features.items()
    }


def _widened(value: Any) -> Any:
    import torch

    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value

"""An engine that goes on: a sequence that it refuses costs only itself, and memory that runs out costs half of its batches.

A failed call is halved until the sequences that fail are alone. Out of memory is met first by starting the engine anew with
half the tokens a batch. That a sequence is refused is believed only while the engine still scores another one: a broken
engine, as a GPU is after an illegal access, must not refuse a whole lake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import DataError
from raypipe.models.scorer import Scorer, Tokens

log = logging.getLogger("raypipe")
RESTARTS = 6  # of one engine: 8,192 tokens a batch become 128
TOO_MANY = 16  # sequences, to believe that all are at fault and not the engine
PROBE = [[0, 0]]  # any model scores this
Refusals = dict[int, str]  # place of a sequence -> what the engine said


class SteadyScorer:
    """`start` gives an engine for so many tokens a batch; `restarts` counts how often that was too many."""

    def __init__(self, start: Callable[[int], Scorer], max_batch_tokens: int) -> None:
        self.start, self.max_batch_tokens, self.restarts = start, max_batch_tokens, 0
        self.engine = self._started()

    def nll(self, sequences: Sequence[Tokens], num_context: Sequence[int]) -> tuple[NDArray[np.float64], Refusals]:
        """[N] sums as a Scorer gives them, NaN for sequences that are refused, and why each was. DataError: the engine is broken."""
        sums, refused = self._nll(sequences, num_context)
        if len(refused) == len(sequences) >= TOO_MANY:
            raise DataError(
                f"score: the engine refuses all {len(refused)} sequences of a part, as {refused[0]}. Give it more memory, or try the "
                "other score.backend"
            )
        return sums, refused

    def _nll(self, sequences: Sequence[Tokens], num_context: Sequence[int]) -> tuple[NDArray[np.float64], Refusals]:
        if not sequences:
            return np.zeros(0), {}
        try:
            return self.engine.nll(sequences, num_context), {}
        except self.engine.errors as error:
            said, memory = _first_line(error), is_out_of_memory(error)
        # out of the except clause: its traceback holds what the failed pass had allocated
        if memory and len(sequences) > 1 and self.restarts < RESTARTS:
            self._restart(max(self.max_batch_tokens // 2, 1), said)
            return self._nll(sequences, num_context)
        if half := len(sequences) // 2:
            sums, refused = self._nll(sequences[:half], num_context[:half])
            others, refused_too = self._nll(sequences[half:], num_context[half:])
            return np.concatenate([sums, others]), refused | {half + n: why for n, why in refused_too.items()}
        self._check_engine(said)
        return np.array([np.nan]), {0: said}

    def _check_engine(self, said: str) -> None:
        try:
            self.engine.nll(PROBE, [1])
        except self.engine.errors as error:
            raise DataError(
                f"score: the engine is broken: it scores no sequence any more ({_first_line(error)}). What broke it said: {said}. "
                "Run again; if it stays so, try the other score.backend"
            ) from error

    def _restart(self, max_batch_tokens: int, said: str) -> None:
        self.restarts += 1
        log.warning("score: the engine starts anew with %d tokens a batch, as it said: %s", max_batch_tokens, said)
        self.engine.close()
        self.max_batch_tokens = max_batch_tokens
        self.engine = self._started()

    def _started(self) -> Scorer:
        try:
            return self.start(self.max_batch_tokens)
        except (RuntimeError, ValueError, MemoryError, OSError, ImportError) as error:
            raise DataError(
                f"score: the engine does not start with {self.max_batch_tokens} tokens a batch: {_first_line(error)}. Out of memory: "
                "give it a larger device, or one that nothing else uses. Otherwise: try the other score.backend"
            ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Of a device, or of this machine, for which torch has no class of its own."""
    import torch

    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"

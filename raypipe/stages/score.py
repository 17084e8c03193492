"""Score: both sums of NLL over a sample's response tokens, and their IFD. Nothing that fails becomes a number.

Columns: sample_id, num_instruction_tokens and num_response_tokens (int32; of the response, those that are scored where it is),
nll_conditional and nll_unconditional (float64, sums in nats over the same response tokens), ifd (float64), status, evidence
(what the engine said of a row that it refused). Status is clean's where that is not ok, and otherwise one of STATUSES; all
sums and the IFD are null but of ok and, with `score.on_overflow: truncate`, of truncated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.identity import fetched_model
from raypipe.models.packed import load_tokenizer, max_positions
from raypipe.models.scorer import Scorer, Tokens, make_scorer
from raypipe.models.steady import Refusals, SteadyScorer
from raypipe.ops.ifd import ifd, scored_sequences
from raypipe.ops.tokens import anchor_ids, prompt_ids, text_ids
from raypipe.parts import map_parts
from raypipe.sizing import device_of
from raypipe.stage import Inputs, Result
from raypipe.store import Folder


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    tables = [inputs["ingest"].only("sample_id", "instruction", "response"), inputs["clean"].only("status")]
    parts = map_parts(
        partial(Score, config), tables, out, pool=config.resources.score, accelerator=config.resources.accelerator
    )
    return Result(parts, {"backend": config.score.backend, "dtype": config.score.dtype})


STATUSES = (
    "ok",
    "truncated",  # longer than score.max_length, or than the model's positions
    "empty_response",  # tokenising gave nothing
    "instruction_fills_window",  # no place is left for a response token
    "non_finite",  # the model gave no number
    "engine_error",  # the engine refused it, alone
)


class Score:
    def __init__(self, config: Config, start: Callable[[int], Scorer] | None = None) -> None:
        model = fetched_model(config.score_model, config.storage.endpoint)
        self.template, self.on_overflow = config.score_template, config.score.on_overflow
        self.max_length = min(config.score.max_length, max_positions(model))
        self.tokenizer = load_tokenizer(model)
        start = start or partial(
            make_scorer,
            config.score.backend,
            model,
            device_of(config.resources.score),
            config.score.dtype,
            self.max_length,
        )
        self.scorer = SteadyScorer(start, config.resources.score.max_batch_tokens)

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        samples, clean = tables
        prompts = prompt_ids(self.tokenizer, self.template, samples.column("instruction").to_pylist())
        responses = text_ids(self.tokenizer, samples.column("response").to_pylist())
        num_prompt, num_response = (np.array([len(ids) for ids in side], np.int32) for side in (prompts, responses))
        place = np.maximum(self.max_length - num_prompt, 0)  # for response tokens
        status = clean.column("status").to_numpy().astype(object)
        for mask, name in (
            (num_response == 0, "empty_response"),
            (place == 0, "instruction_fills_window"),
            (num_response > place, "truncated"),
        ):
            status[(status == "ok") & mask] = name
        scored = status == "ok"
        if self.on_overflow == "truncate":
            scored |= status == "truncated"
            num_response = np.where(scored, np.minimum(num_response, place), num_response)
        (rows,) = np.nonzero(scored)
        nll_N2, evidence = np.full((len(samples), 2), np.nan), np.full(len(samples), None, object)
        nll_N2[rows], refused = self._nll([prompts[n] for n in rows], [responses[n][: place[n]] for n in rows])
        for n, said in refused.items():
            status[rows[n]], evidence[rows[n]] = "engine_error", said
        ratio = ifd(nll_N2[:, 0], nll_N2[:, 1], num_response)
        status[scored & np.isnan(ratio) & (status != "engine_error")] = "non_finite"
        return _table(samples.column("sample_id"), num_prompt, num_response, nll_N2, ratio, status, evidence)

    def _nll(self, prompts: list[Tokens], responses: list[Tokens]) -> tuple[NDArray[np.float64], Refusals]:
        """[N, 2], conditional and unconditional, NaN for a row of which either was refused; and why."""
        sums, refused = self.scorer.nll(*scored_sequences(anchor_ids(self.tokenizer), prompts, responses))
        return sums.reshape(-1, 2), {place // 2: said for place, said in refused.items()}


def _table(
    sample_id: Any, num_prompt: Any, num_response: Any, nll_N2: Any, ratio: Any, status: Any, evidence: Any
) -> pa.Table:
    not_a_sample, missing = ~np.isin(status, STATUSES), np.isnan(ratio)
    return pa.table(
        {
            "sample_id": sample_id,
            "num_instruction_tokens": pa.array(num_prompt, mask=not_a_sample),
            "num_response_tokens": pa.array(num_response, pa.int32(), mask=not_a_sample),
            "nll_conditional": pa.array(nll_N2[:, 0], mask=missing),
            "nll_unconditional": pa.array(nll_N2[:, 1], mask=missing),
            "ifd": pa.array(ratio, mask=missing),
            "status": pa.array(status, pa.string()),
            "evidence": pa.array(evidence, pa.string()),
        }
    )

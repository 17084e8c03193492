"""Score: both sums of NLL over a sample's response tokens, and their IFD. Nothing that fails becomes a number.

Columns: sample_id, num_instruction_tokens and num_response_tokens (int32), nll_conditional and nll_unconditional (float64,
sums in nats over the same response tokens), ifd (float64), status: clean's where that is not ok; empty_response (tokenising
gave nothing), truncated (longer than score.max_length or the model's positions: not scored), non_finite, ok. Null where the status is not ok.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.identity import fetched_model
from raypipe.models.packed import load_tokenizer, max_positions
from raypipe.models.scorer import Scorer, make_scorer
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


class Score:
    def __init__(self, config: Config, scorer: Scorer | None = None) -> None:
        model = fetched_model(config.score_model, config.storage.endpoint)
        self.template = config.score_template
        self.max_length = min(config.score.max_length, max_positions(model))
        self.tokenizer = load_tokenizer(model)
        self.scorer = scorer or make_scorer(
            config.score.backend,
            model,
            device=device_of(config.resources.score),
            dtype=config.score.dtype,
            max_length=self.max_length,
            max_batch_tokens=config.resources.score.max_batch_tokens,
        )

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        samples, clean = tables
        status = clean.column("status").to_numpy().astype(object)
        prompts = prompt_ids(self.tokenizer, self.template, samples.column("instruction").to_pylist())
        responses = text_ids(self.tokenizer, samples.column("response").to_pylist())
        num_prompt, num_response = (np.array([len(ids) for ids in side], np.int32) for side in (prompts, responses))
        for mask, name in (
            (num_response == 0, "empty_response"),
            (num_prompt + num_response > self.max_length, "truncated"),
        ):
            status[(status == "ok") & mask] = name
        (rows,) = np.nonzero(status == "ok")
        nll_N2 = np.full((len(samples), 2), np.nan)
        nll_N2[rows] = self._nll([prompts[n] for n in rows], [responses[n] for n in rows])
        ratio = ifd(nll_N2[:, 0], nll_N2[:, 1], num_response)
        status[(status == "ok") & np.isnan(ratio)] = "non_finite"
        return _table(samples.column("sample_id"), num_prompt, num_response, nll_N2, ratio, status)

    def _nll(self, prompts: list[list[int]], responses: list[list[int]]) -> NDArray[np.float64]:
        """[N, 2]: conditional, unconditional."""
        if not prompts:
            return np.zeros((0, 2))
        return self.scorer.nll(*scored_sequences(anchor_ids(self.tokenizer), prompts, responses)).reshape(-1, 2)


def _table(sample_id: Any, num_prompt: Any, num_response: Any, nll_N2: Any, ratio: Any, status: Any) -> pa.Table:
    missing = status != "ok"
    not_a_sample = missing & ~np.isin(status, ["empty_response", "truncated", "non_finite"])
    return pa.table(
        {
            "sample_id": sample_id,
            "num_instruction_tokens": pa.array(num_prompt, mask=not_a_sample),
            "num_response_tokens": pa.array(num_response, mask=not_a_sample),
            "nll_conditional": pa.array(nll_N2[:, 0], mask=missing),
            "nll_unconditional": pa.array(nll_N2[:, 1], mask=missing),
            "ifd": pa.array(ratio, mask=missing),
            "status": pa.array(status, pa.string()),
        }
    )

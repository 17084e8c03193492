"""Score: both sums of NLL over a sample's response tokens, and their IFD. Nothing that fails becomes a number.

Columns: sample_id, num_instruction_tokens and num_response_tokens (int32; of the response, those that are scored where it is),
nll_conditional and nll_unconditional (float64, sums in nats over the same response tokens; with `score.rule: authors` each over
its own), ifd (float64), status, evidence (what the engine said of a row that it refused). Status is clean's where that is not ok, and otherwise one of STATUSES; all
sums and the IFD are null but of ok and, with `score.on_overflow: truncate`, of truncated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypipe.config import Config
from raypipe.cost import Batch
from raypipe.given import account, exchange, numbers, put_beside
from raypipe.identity import fetched_model
from raypipe.models.pretrained import load_tokenizer, max_positions
from raypipe.models.scorer import PACKED_ON_CPU, Scorer, make_scorer
from raypipe.models.steady import Refusals, SteadyScorer
from raypipe.ops.ifd import Passes, authors_passes, exact_passes, ifd
from raypipe.ops.tokens import anchor_ids, prompt_ids, prompt_texts, text_ids
from raypipe.part import Table, figures_of, with_figures
from raypipe.parts import map_parts
from raypipe.sizing import device_of, free_bytes
from raypipe.stage import Inputs, Result, all_footers
from raypipe.store import Folder


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    if config.score.given is not None:
        return _given(config, inputs, out)
    tables = [inputs["ingest"].only("sample_id", "instruction", "response"), inputs["clean"].only("status")]
    parts = map_parts(
        partial(Score, config),
        tables,
        out,
        pool=config.resources.score,
        calls=2,
    )
    return Result(parts, {"backend": config.score.backend, "dtype": config.score.dtype})


def _given(config: Config, inputs: Inputs, out: Folder) -> Result:
    endpoint, samples = config.storage.endpoint, inputs["clean"].only("sample_id", "status")
    given = exchange(
        "score.given", config.score.given or (), list(GIVEN), scores_of, samples, out, inputs.lake, endpoint
    )
    footers = all_footers(out, put_beside(given, samples, scored, out), inputs.lake)
    return Result(footers, account("score.given", given, footers, inputs["clean"]))


GIVEN = {
    "num_instruction_tokens": pa.int32(),
    "num_response_tokens": pa.int32(),
    "nll_conditional": pa.float64(),
    "nll_unconditional": pa.float64(),
}


def scores_of(rows: pa.Table) -> pa.Table:
    """As this stage writes them; a row with a null in one of them counts as not given."""
    columns = {name: numbers(rows, name, kind) for name, kind in GIVEN.items()}
    return pa.table({"sample_id": rows.column("sample_id"), **columns}).drop_null()


def scored(samples: pa.Table, rows: pa.Table) -> pa.Table:
    """A part from what was given for its samples; its figure `not_given` counts those without a row."""
    status = samples.column("status").to_numpy().astype(object)
    ok, there = status == "ok", rows.column("num_response_tokens").is_valid().to_numpy()
    num_prompt, num_response = (pc.fill_null(rows.column(name), 0).to_numpy() for name in list(GIVEN)[:2])
    nll_N2 = np.stack([rows.column(name).to_numpy() for name in list(GIVEN)[2:]], axis=1)
    ratio = ifd(nll_N2, np.stack([num_response, num_response], axis=1))
    for mask, name in ((~there, "not_given"), (num_response < 1, "empty_response"), (np.isnan(ratio), "non_finite")):
        status[(status == "ok") & mask] = name
    ratio = np.where(status == "ok", ratio, np.nan)
    evidence = np.full(len(status), None, object)
    made = _table(samples.column("sample_id"), num_prompt, num_response, nll_N2, ratio, status, evidence)
    return with_figures(made, not_given=int((ok & ~there).sum()))


def measure(
    config: Config, ingest: Table, clean: Table | None, num_rows: int = 500, num_batches: int = 10
) -> list[Batch]:
    """What `num_rows` rows, drawn at random from some parts, cost here. All are scored once before they count: an engine is slow
    at first (300 rows of CodeAlpaca took vLLM 20 % more)."""
    rng = np.random.default_rng(0)
    parts = rng.permutation(ingest.parts)[:num_batches].tolist()
    each = -(-num_rows // len(parts))
    drawn = []
    for part in parts:
        samples = ingest.only("sample_id", "instruction", "response").read(part)
        status = clean.only("status").read(part).column("status") if clean else pa.array(["ok"] * len(samples))
        rows = rng.permutation(len(samples))[:each]
        drawn.append(samples.replace_schema_metadata().append_column("status", status).take(rows))
    rows = pa.concat_tables(drawn)
    tables = [rows.take(places) for places in np.array_split(rng.permutation(len(rows)), min(num_batches, len(rows)))]
    score, batches = Score(config), []
    for table in tables * 2:
        started = time.perf_counter()
        figures = figures_of(score(score.prepare([table, table])))
        batches.append(Batch(len(table), figures["num_tokens"], time.perf_counter() - started, figures["cpu_s"]))
    return batches[len(tables) :]


STATUSES = (
    "ok",
    "truncated",  # longer than score.max_length, or than the model's positions
    "empty_response",  # tokenising gave nothing
    "instruction_fills_window",  # no place is left for a response token
    "non_finite",  # the model gave no number
    "engine_error",  # the engine refused it, alone
    "not_given",  # by score.given
)


class Score:
    def __init__(self, config: Config, start: Callable[[int], Scorer] | None = None) -> None:
        model = fetched_model(config.score_model, config.storage.endpoint)
        self.rule, self.template = config.score.rule, config.score_template
        self.cuts = config.score.on_overflow == "truncate" or self.rule == "authors"  # as theirs does
        self.max_length = min(config.score.max_length, max_positions(model))
        self.tokenizer = load_tokenizer(model)
        backend, device = config.score.backend, device_of(config.resources.score)
        max_batch_tokens = config.resources.score.max_batch_tokens
        if (backend, device) == ("transformers", "cpu"):
            max_batch_tokens = min(max_batch_tokens, PACKED_ON_CPU)
        start = start or partial(
            make_scorer,
            backend,
            model,
            device,
            config.score.dtype,
            self.max_length,
            free_bytes(config.resources.score),
            gpus=config.resources.score.gpus,
        )
        self.scorer = SteadyScorer(start, max_batch_tokens)
        self.cpu_before = time.process_time()

    def prepare(self, tables: Sequence[pa.Table]) -> tuple[pa.Table, pa.Table, Passes]:
        samples, clean = tables
        return samples, clean, self._passes(*(samples.column(name).to_pylist() for name in ("instruction", "response")))

    def __call__(self, prepared: tuple[pa.Table, pa.Table, Passes]) -> pa.Table:
        samples, clean, passes = prepared
        num_prompt, num_tokens_N2 = passes.num_context_N2[:, 0], passes.num_scored_N2
        scorable = num_tokens_N2.min(1, initial=1) > 0
        status = clean.column("status").to_numpy().astype(object)
        for mask, name in (
            (~scorable & (num_prompt >= self.max_length), "instruction_fills_window"),
            (~scorable, "empty_response"),
            (passes.num_lost > 0, "truncated"),
        ):
            status[(status == "ok") & mask] = name
        scored = (status == "ok") | ((status == "truncated") & self.cuts)
        nll_N2, evidence = np.full((len(samples), 2), np.nan), np.full(len(samples), None, object)
        (rows,) = np.nonzero(scored)
        restarts = self.scorer.restarts
        nll_N2[rows], refused = self._nll(passes, rows)
        for n, said in refused.items():
            status[rows[n]], evidence[rows[n]] = "engine_error", said
        ratio = ifd(nll_N2, num_tokens_N2)
        status[scored & np.isnan(ratio) & (status != "engine_error")] = "non_finite"
        num_response = num_tokens_N2[:, 0] + np.where(scored, 0, passes.num_lost)
        table = _table(samples.column("sample_id"), num_prompt, num_response, nll_N2, ratio, status, evidence)
        num_tokens = sum(len(ids) for n in rows for ids in passes.sequences[n])  # of both passes, context too
        before, self.cpu_before = self.cpu_before, time.process_time()  # so that preparing meanwhile counts too
        return with_figures(
            table,
            num_tokens=num_tokens,
            engine_restarts=self.scorer.restarts - restarts,
            cpu_s=round(self.cpu_before - before, 3),
        )

    def _passes(self, instructions: list[str], responses: list[str]) -> Passes:
        if self.rule == "exact":
            prompts = prompt_ids(self.tokenizer, self.template, instructions)
            return exact_passes(
                anchor_ids(self.tokenizer), prompts, text_ids(self.tokenizer, responses), self.max_length
            )
        ids = partial(text_ids, self.tokenizer, special=self.template != "chat")
        texts = prompt_texts(self.tokenizer, self.template, instructions)
        joint = [text + response for text, response in zip(texts, responses, strict=True)]
        return authors_passes(ids(texts), ids(joint), ids(responses), self.max_length)

    def _nll(self, passes: Passes, rows: NDArray[np.intp]) -> tuple[NDArray[np.float64], Refusals]:
        """[N, 2] of these rows, conditional and unconditional; NaN for a row of which either was refused; and why."""
        sequences = [ids for n in rows for ids in passes.sequences[n]]
        sums, refused = self.scorer.nll(sequences, passes.num_context_N2[rows].ravel().tolist())
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

import json

import numpy as np
import pyarrow as pa
import pytest

from raypipe.config import Config
from raypipe.models.pretrained import load_tokenizer
from raypipe.ops.tokens import text_ids
from raypipe.part import figures_of
from raypipe.stages.score import STATUSES, Score


class FakeScorer:
    """Gives 2 nats a token with the instruction and 3 without; NaN for sequences that hold `broken`, an error for `refused`."""

    errors = (RuntimeError,)

    def __init__(self, broken=None, refused=None):
        self.broken, self.refused, self.seen = broken, refused, []

    def __call__(self, max_batch_tokens):
        return self

    def nll(self, sequences, num_context):
        if any(self.refused in tokens for tokens in sequences):
            raise RuntimeError("not this one")
        self.seen += [len(tokens) for tokens in sequences]
        rate = [2.0 if n > 1 else 3.0 for n in num_context]
        sums = [r * (len(t) - n) for r, t, n in zip(rate, sequences, num_context, strict=True)]
        return np.array([np.nan if self.broken in t else s for s, t in zip(sums, sequences, strict=True)])

    def close(self):
        pass


@pytest.fixture
def config(random_model):
    tree = {
        "name": "t",
        "model": str(random_model),
        "ingest": {"paths": ["x"]},
        "embed": {"model": "e"},
        "storage": {"root": "r"},
        "score": {"backend": "transformers", "max_length": 200, "template": "{instruction}\n"},
    }
    return Config.model_validate_json(json.dumps(tree))


def tables(responses, statuses, instructions=None):
    samples = pa.table(
        {
            "sample_id": [f"{n:032x}" for n in range(len(responses))],
            "instruction": instructions or ["add"] * len(responses),
            "response": responses,
        }
    )
    return [samples, pa.table({"status": statuses})]


def made(score, tables):
    return score(score.prepare(tables))


def test_every_row_ends_in_a_status_and_no_failure_in_a_number(config):
    """The authors' code turns each failure into IFD 0, the 'easiest' sample."""
    tokenizer = load_tokenizer(config.model)
    (zebra,), (qqq,) = (text_ids(tokenizer, [word])[0][:1] for word in ("zebra", "qqq"))
    scorer = FakeScorer(broken=zebra, refused=qqq)
    found = made(
        Score(config, scorer),
        tables(
            ["x = 1", "zebra", "y " * 500, "", "qqq", "x = 1", "x = 1"],
            ["ok", "ok", "ok", "ok", "ok", "ok", "duplicate"],
            ["add", "add", "add", "add", "add", "y " * 500, "add"],
        ),
    )
    rows = found.to_pylist()
    statuses = [
        "ok",
        "non_finite",
        "truncated",
        "empty_response",
        "engine_error",
        "instruction_fills_window",
        "duplicate",
    ]
    assert [row["status"] for row in rows] == statuses and set(statuses[:-1]) == set(STATUSES) - {"not_given"}
    assert rows[0]["ifd"] == pytest.approx(np.exp(-1)) and rows[0]["evidence"] is None
    assert rows[0]["nll_conditional"] == 2.0 * rows[0]["num_response_tokens"]
    assert all(row["ifd"] is row["nll_conditional"] is row["nll_unconditional"] is None for row in rows[1:])
    assert rows[4]["evidence"] == "RuntimeError: not this one"
    assert rows[2]["num_response_tokens"] > 200 and rows[6]["num_response_tokens"] is None
    assert max(scorer.seen) <= 200


def test_what_fits_is_scored_where_it_is_asked_for(config):
    """Both passes over the same leading response tokens, as many as fit beside the instruction."""
    config = config.model_copy(update={"score": config.score.model_copy(update={"on_overflow": "truncate"})})
    scorer = FakeScorer()
    found = made(Score(config, scorer), tables(["y " * 500, "x = 1"], ["ok", "ok"]))
    figures = figures_of(found)
    assert figures.pop("cpu_s") > 0 and figures == {"num_tokens": sum(scorer.seen), "engine_restarts": 0}
    cut = (rows := found.to_pylist())[0]
    assert [row["status"] for row in rows] == ["truncated", "ok"]
    assert cut["num_instruction_tokens"] + cut["num_response_tokens"] == 200 == max(scorer.seen)
    assert cut["nll_conditional"] == 2.0 * cut["num_response_tokens"] and cut["ifd"] == pytest.approx(np.exp(-1))


def test_parts_without_a_row_to_score(config):
    """Only duplicates, or no rows at all: the same columns, and the engine is not asked."""
    score = Score(config, scorer := FakeScorer())
    full = made(score, tables(["x"], ["ok"])).schema
    scorer.seen.clear()
    assert made(score, tables(["x"], ["duplicate"])).schema == full
    nothing = [
        pa.table({name: pa.array([], pa.string()) for name in ("sample_id", "instruction", "response")}),
        pa.table({"status": pa.array([], pa.string())}),
    ]
    assert made(score, nothing).schema == full and scorer.seen == []

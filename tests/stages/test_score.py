import json

import numpy as np
import pyarrow as pa
import pytest

from raypipe.config import Config
from raypipe.stages.score import Score


class FakeScorer:
    """Gives 2 nats a token with the instruction and 3 without; NaN for sequences that hold `broken`."""

    def __init__(self, broken=None):
        self.broken, self.seen = broken, []

    def nll(self, sequences, num_context):
        self.seen += [len(tokens) for tokens in sequences]
        rate = [2.0 if place % 2 == 0 else 3.0 for place in range(len(sequences))]
        sums = [r * (len(t) - n) for r, t, n in zip(rate, sequences, num_context, strict=True)]
        return np.array([np.nan if self.broken in t else s for s, t in zip(sums, sequences, strict=True)])


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


def tables(responses, statuses):
    samples = pa.table(
        {
            "sample_id": [f"{n:032x}" for n in range(len(responses))],
            "instruction": ["add"] * len(responses),
            "response": responses,
        }
    )
    return [samples, pa.table({"status": statuses})]


def test_every_row_ends_in_a_status_and_no_failure_in_a_number(config):
    """The authors' code turns each failure into IFD 0, the 'easiest' sample."""
    score = Score(config, FakeScorer())
    odd = score.tokenizer("zebra", add_special_tokens=False)["input_ids"][0]
    score.scorer = FakeScorer(broken=odd)
    made = score(tables(["x = 1", "zebra", "y " * 500, "", "x = 1"], ["ok", "ok", "ok", "ok", "duplicate"]))
    rows = made.to_pylist()
    assert [row["status"] for row in rows] == ["ok", "non_finite", "truncated", "empty_response", "duplicate"]
    assert (
        rows[0]["ifd"] == pytest.approx(np.exp(-1))
        and rows[0]["nll_conditional"] == 2.0 * rows[0]["num_response_tokens"]
    )
    assert all(row["ifd"] is None and row["nll_conditional"] is None for row in rows[1:])
    assert rows[2]["num_response_tokens"] > 200 and rows[4]["num_response_tokens"] is None
    assert max(score.scorer.seen) <= 200 and len(score.scorer.seen) == 4


def test_parts_without_a_row_to_score(config):
    """Only duplicates, or no rows at all: the same columns, and the engine is not asked."""
    scorer = FakeScorer()
    score = Score(config, scorer)
    full = score(tables(["x"], ["ok"])).schema
    scorer.seen.clear()
    assert score(tables(["x"], ["duplicate"])).schema == full
    nothing = [
        pa.table({name: pa.array([], pa.string()) for name in ("sample_id", "instruction", "response")}),
        pa.table({"status": pa.array([], pa.string())}),
    ]
    assert score(nothing).schema == full and scorer.seen == []

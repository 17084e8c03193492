import gzip
import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.text import Reject, Sample, draw, id_hex, id_words, is_held_out, parse_line, sample_id

NAMES = (("instruction",), ("response",))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not_json"),
        (b'{"instruction": "a", "response": "b"', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'\xff{"instruction": "a"}', "invalid_utf8"),
        (b'["a"]', "not_an_object"),
        (b'{"instruction": "a"}', "no_response_column"),
        (b'{"response": "a"}', "no_instruction_column"),
        (b'{"instruction": 7, "response": "b"}', "instruction_not_text"),
        (b'{"instruction": "a", "response": null}', "empty_response"),
        (b'{"instruction": "a", "response": " \\n\\t"}', "empty_response"),
        (b'{"instruction": "", "response": "b"}', "empty_instruction"),
        (b'{"instruction": "\\ud800", "response": "b"}', "lone_surrogate"),
    ],
)
def test_every_bad_line_has_its_reason(line, reason):
    """A line that is silently dropped, or kills the run, is lost data."""
    assert parse_line(line, *NAMES) == Reject(reason)


def test_every_row_of_code_alpaca_is_read_or_has_a_reason(shared):
    """Real data: 20,022 rows, of which 6 have no response."""
    found = []
    for path in sorted((shared / "data" / "code_alpaca_20k").glob("*.gz")):
        with gzip.open(path) as lines:
            found += [parse_line(line, ("instruction", "input"), ("output",)) for line in lines]
    reasons = [row.reason for row in found if isinstance(row, Reject)]
    assert len(found) == 20_022 and reasons == ["empty_response"] * 6


def test_joined_columns_leave_empty_ones_out():
    """Alpaca's `input` is mostly empty; a trailing newline would change every sample_id."""
    rows = [{"i": "Add.", "x": x, "o": "ok"} for x in ("1 + 2", "", None)]
    found = [parse_line(json.dumps(row).encode(), ("i", "x"), ("o",)) for row in rows]
    assert [sample.instruction for sample in found] == ["Add.\n1 + 2", "Add.", "Add."]


def test_sample_id_by_hand():
    """The id is a promise to other programs: blake2b-128 of 'instruction NUL response' in UTF-8."""
    assert sample_id("a", "b") == hashlib.blake2b(b"a\x00b", digest_size=16).hexdigest()
    line = json.dumps({"instruction": "  e\u0301 ", "response": "b\n"}).encode()
    assert parse_line(line, *NAMES) == Sample(sample_id("\u00e9", "b"), "\u00e9", "b")


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=50))
def test_id_words_keep_order_and_value(raw):
    """Deduplication sorts by these words and ties break by them: they must order as the hex strings do."""
    ids = [value.hex() for value in raw]
    words = id_words(pa.array(ids, pa.string()))
    assert [id_hex(row) for row in words] == ids
    assert sorted(map(tuple, words.tolist())) == [
        tuple(row) for row in id_words(pa.array(sorted(ids), pa.string())).tolist()
    ]


def test_held_out_is_a_fixed_share_and_draws_are_independent_of_it():
    """If the draw followed the held-out split, random baselines and k-means batches would be biased."""
    ids = pa.array([sample_id(str(n), "r") for n in range(20_000)])
    words = id_words(ids)
    held_out = is_held_out(ids, 0.1)
    assert held_out.tolist() == (words[:, 0] < np.uint64(int(0.1 * 2**64))).tolist()
    assert abs(held_out.mean() - 0.1) < 0.01
    draws = draw(words, 1) / 2**64
    assert abs(draws.mean() - 0.5) < 0.01 and abs(draws[held_out].mean() - 0.5) < 0.03
    assert np.abs(np.corrcoef(draws, draw(words, 2) / 2**64)[0, 1]) < 0.03

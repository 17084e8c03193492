"""The files of an export: texts to the letter by readers of other people, perplexities by hand, types as the card says."""

import io
import json
import math

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops import formats

NASTY = [
    "\u2028",
    "\u2029",
    "\x85",
    "\ufeff",
    "\0",
    "\r",
    "\n",
    "\r\n",
    '"',
    "\\",
    "\\u2028",
    "\x1c",
    "\x0b",
    "\U0001f600",
    "</s>",
    "{}",
]
text = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\u2028\u2029\x85\ufeff\0\r\n")), min_size=1
)
texts = st.lists(st.tuples(text | st.sampled_from(NASTY), text | st.sampled_from(NASTY)), min_size=1, max_size=8)


def ingested(pairs):
    columns = {"sample_id": [f"{n:032x}" for n in range(len(pairs))]}
    return pa.table({**columns, "instruction": [pair[0] for pair in pairs], "response": [pair[1] for pair in pairs]})


def pairs_of(row, form):
    if form == "messages":
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        return tuple(message["content"] for message in row["messages"])
    return row["instruction"], row["output" if form == "alpaca" else "response"]


@given(texts, st.sampled_from(formats.FORMATS))
def test_texts_come_back_to_the_letter(pairs, form):
    """A trainer would learn other texts than were selected, or a reader of lines would stop in the middle of one."""
    rows = ingested(pairs)
    if form == "parquet":
        data = formats.encoded(rows, form)
        found = [pq.read_table(io.BytesIO(data)).to_pylist()]
    else:
        data = formats.encoded(rows, form)
        features = {feature["name"]: feature for feature in formats.features(form)}
        message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        schema = pa.schema([(name, message if name == "messages" else pa.string()) for name in features])
        by_arrow = pyarrow.json.read_json(
            io.BytesIO(data), parse_options=pyarrow.json.ParseOptions(explicit_schema=schema)
        )
        found = [[json.loads(line) for line in data.decode().splitlines()], by_arrow.to_pylist()]
        assert list(found[0][0]) == by_arrow.column_names == list(features)
    for read in found:
        assert [pairs_of(row, form) for row in read] == pairs
        assert [row["sample_id"] for row in read] == rows["sample_id"].to_pylist()
    assert formats.encoded(rows, form) == data


def test_lines_by_hand():
    """Other programs know these two forms by their keys."""
    rows = ingested([("Sag Grüße\u2028", "print('Grüße')\n")])
    assert formats.encoded(rows, "messages").decode() == (
        '{"messages": [{"role": "user", "content": "Sag Grüße\\u2028"}, {"role": "assistant", "content": "print(\'Grüße\')\\n"}], '
        '"sample_id": "00000000000000000000000000000000"}\n'
    )
    assert formats.encoded(rows, "alpaca").decode() == (
        '{"instruction": "Sag Grüße\\u2028", "input": "", "output": "print(\'Grüße\')\\n", "sample_id": "00000000000000000000000000000000"}\n'
    )


def scored():
    ingest = ingested([("a", "b"), ("c", "d")])
    for name, values in {
        "source_uri": pa.array(["/lake/a", "/lake/b"]),
        "source_line": pa.array([1, 7], pa.int64()),
        "licence": pa.array(["MIT", None]),
        "ifd": pa.array(["of my own", None]),
    }.items():
        ingest = ingest.append_column(name, values)
    cluster = pa.table({"cluster_id": pa.array([3, 0], pa.int32())})
    score = pa.table(
        {
            "num_instruction_tokens": pa.array([5, 6], pa.int32()),
            "num_response_tokens": pa.array([2, None], pa.int32()),
            "ifd": pa.array([0.5, None], pa.float64()),
            "nll_conditional": pa.array([2 * math.log(4), None], pa.float64()),
            "nll_unconditional": pa.array([2 * math.log(8), None], pa.float64()),
        }
    )
    return formats.beside(ingest, cluster, score)


def test_what_was_found_by_hand():
    """Perplexities are of a token: exp of the mean; a sample without a score has none, not 1. A carried `ifd` is not ours."""
    one, other = scored().to_pylist()
    assert one["ppl_conditional"] == pytest.approx(4) and one["ppl_unconditional"] == pytest.approx(8)
    assert (one["ifd"], one["carried_ifd"], one["licence"], one["cluster_id"]) == (0.5, "of my own", "MIT", 3)
    assert (other["source_uri"], other["source_line"]) == ("/lake/b", 7)
    assert [other[name] for name in ("ifd", "ppl_conditional", "ppl_unconditional", "num_response_tokens")] == [
        None
    ] * 4


def test_types_are_those_that_the_card_tells():
    """A loader casts to what the card says: float32 would cost digits, a name too few a column."""
    import datasets

    rows = pq.read_table(io.BytesIO(formats.encoded(scored(), "parquet")))
    told = datasets.Features._from_yaml_list(formats.features("parquet", ("licence", "ifd")))
    assert told == datasets.Features.from_arrow_schema(rows.schema) and list(told) == rows.column_names
    assert set(formats.reads("parquet", ("licence",))) == {"ingest", "cluster", "score"}

"""A block is read as its rows are, one by one, and where each stands is known."""

import json
from datetime import date

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raypipe.ops import blocks
from raypipe.ops.blocks import RAW_BYTES, Lost, Records, lines_of, read_block
from raypipe.ops.rows import Fields, Reject, Sample

FIELDS = [
    Fields(),
    Fields(("instruction", "input"), ("response",), carry=("x", "lang")),
    Fields(("data.q", "data.more"), ("data.a",), carry=("data.x",)),
    Fields(messages="messages"),
    Fields(messages="talk", multi_turn="last", carry=("x",)),
]
TEXT = st.text(st.sampled_from('ab "\\\n\t\u00e9\u0301\u2028\0\U0001f600') | st.characters(), max_size=6)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SAID = st.builds(
    lambda form, who, what: dict(zip(form, (who, what), strict=True)),
    st.sampled_from([("role", "content"), ("from", "value"), ("role", "value")]),
    st.sampled_from(["user", "assistant", "system", "Human", "gpt", "tool"]),
    TEXT | VALUE,
)
TALK = st.lists(SAID, max_size=4) | VALUE


def turn(system, question, answer):
    return [{"role": "system", "content": system}] * bool(system) + [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


ROW = st.one_of(
    st.fixed_dictionaries(
        {"instruction": TEXT | VALUE, "response": TEXT}, optional={"input": TEXT | VALUE, "x": VALUE, "lang": TEXT}
    ),
    st.fixed_dictionaries(
        {"data": VALUE | st.fixed_dictionaries({"q": TEXT, "a": TEXT}, optional={"more": VALUE, "x": VALUE})}
    ),
    st.fixed_dictionaries({"messages": TALK | st.builds(turn, TEXT, TEXT, TEXT)}, optional={"talk": TALK, "x": VALUE}),
    VALUE,
)
LINE = st.builds(
    lambda row, plain: json.dumps(row, ensure_ascii=plain).encode(errors="surrogatepass"), ROW, st.booleans()
)
CHANGED = st.builds(  # a byte that is lost, another, or one too many
    lambda line, at, byte, width: line[: at % (len(line) + 1)] + byte + line[at % (len(line) + 1) + width :],
    LINE,
    st.integers(0, 99),
    st.sampled_from([b"", b"{", b"}", b"\xff", b"\0", b",", b'"', b"\\", b"\r", b" ", b"\x0c", b"NaN", b"1"]),
    st.integers(0, 2),
)
ODD = st.sampled_from(
    [b"null", b"", b"  ", b"{}", b"[]", b"{}{}", b"\r", b"\x0c", b'{"instruction": "a", "response": "b"} {}']
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(LINE | LINE | CHANGED | ODD, min_size=1, max_size=5),
    st.sampled_from(FIELDS),
    st.sampled_from([b"\n", b"\r\n"]),
)
@example([b"null", b'{"instruction": "a", "response": "b"}'], FIELDS[0], b"\n")
@example(
    [b'{"instruction": "a", "response": "b", "x": 1}', b'{"instruction": "a", "response": "b", "x": 1.0}'],
    FIELDS[1],
    b"\n",
)
@example([b'{"instruction": "a", "response": "b", "y": ' + b"[" * 5000 + b"]" * 5000 + b"}"] * 2, FIELDS[0], b"\n")
def test_a_block_is_read_as_its_rows_are(lines, fields, end):
    """Otherwise what a row is depends on its neighbours: a sample is lost, or changed, or another's, because some other line is broken."""
    block = lines_of(end.join(lines) + end, "lake/a", offset=7, number=3)
    rows = [line for line in lines if line.strip()]
    assert [block.raw(place) for place in range(len(block))] == [line.strip() for line in rows]
    one_by_one = [block.parse(place, fields) for place in range(len(block))]
    read = read_block(block, fields)
    at_once = {
        row["row"]: Sample(*list(row.values())[1:4], tuple(row[name] for name in fields.carry))
        for row in read.samples.to_pylist()
    }
    at_once |= {row["row"]: Reject(row["reason"]) for row in read.rejects.to_pylist()}
    assert at_once == dict(enumerate(one_by_one))


def test_most_blocks_are_read_at_once(monkeypatch):
    """It is nine times faster: were one common form left out, nobody would see but in the bill."""
    monkeypatch.setattr(blocks, "parse_line", lambda line, fields: pytest.fail(f"read alone: {line[:80]}"))
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    forms = {
        0: {"instruction": "q", "response": "a", "more": {"x": [1, None]}},
        1: {"instruction": "q", "input": "", "response": "a\u0301", "x": 0.25, "lang": None},
        2: {"data": {"q": "q", "more": None, "a": "a", "x": 3}},
        3: {"messages": talk, "id": 7},
        4: {
            "talk": [
                {"from": "system", "value": "be brief"},
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
            ],
            "x": True,
        },
    }
    for place, row in forms.items():
        data = b"\n".join([json.dumps(row).encode()] * 3)
        assert len(read_block(lines_of(data, "lake/a"), FIELDS[place]).samples) == 3


def test_where_a_row_stands():
    """`sed -n LINEp` and `tail -c +OFFSET` must find it."""
    data = b'\xef\xbb\xbf {"a": 1}\r\n\n  \n[2] \n{"a": 3}'
    block = lines_of(data, "lake/a")
    assert [block.raw(place) for place in range(3)] == [b'{"a": 1}', b"[2]", b'{"a": 3}']
    assert block.numbers.to_pylist() == [1, 4, 5] and block.offsets.to_pylist() == [4, 18, 23]
    assert all(data[offset:].startswith(block.raw(place)) for place, offset in enumerate(block.offsets.to_pylist()))
    cut = lines_of(data, "lake/a", offset=100, number=None, end=119)
    assert cut.offsets.to_pylist() == [100, 118] and cut.numbers.null_count == 2


def test_rows_of_a_table():
    """Parquet has types of its own: dictionaries, large strings, dates, numbers where a text should be."""
    table = pa.table(
        {
            "instruction": pa.array(["q", "q", " ", None]).dictionary_encode(),
            "response": pa.array(["a", "b\0", "a", "a"], pa.large_string()),
            "day": pa.array([date(2026, 1, 2)] * 4),
            "tags": pa.array([["x"], [], None, []]),
        }
    )
    read = read_block(Records("lake/a", table, first=5), Fields(carry=("day", "tags", "away")))
    assert read.samples.to_pylist()[0]["day"] == "2026-01-02" and read.samples.to_pylist()[0]["tags"] == '["x"]'
    assert read.samples.column("source_line").to_pylist() == [5] and read.samples.column("away").to_pylist() == [None]
    assert read.rejects.column("reason").to_pylist() == ["nul_character", "empty_instruction", "empty_instruction"]
    assert json.loads(read.rejects.column("raw").to_pylist()[0]) == {
        "instruction": "q",
        "response": "b\0",
        "day": "2026-01-02",
        "tags": [],
    }
    numbers = read_block(
        Records("lake/a", pa.table({"instruction": [1, 2], "response": ["a", "b"]}), first=1), Fields()
    )
    assert numbers.rejects.column("reason").to_pylist() == ["instruction_not_text"] * 2


def test_what_was_lost_is_counted():
    """A page of 3 rows that cannot be read is 3 rows fewer, not one."""
    read = read_block(Lost("lake/a", "broken_page", number=4, count=3), Fields())
    assert read.rejects.column("source_line").to_pylist() == [4, 5, 6] and len(read.samples) == 0
    assert len(Lost("lake/a", "too_long", 1, 0, b"x" * (RAW_BYTES + 1)).raw(0)) == RAW_BYTES


def test_bytes_of_rows():
    """Parts are cut by them."""
    good = '{"instruction": "é", "response": "abc", "x": 1}'
    read = read_block(lines_of(f"{good}\n[1]\n".encode(), "lake/a"), Fields(carry=("x",)))
    assert read.sizes.tolist() == [2 + 3 + 1, 3]

"""What a row means: to which sample it leads, or why to none."""

import gzip

import pytest

from raypipe.ops.rows import Fields, Reject, Sample, as_text, parse_line, sample_of
from raypipe.ops.text import sample_id

PLAIN = Fields()
CHAT = Fields(messages="messages")
LAST = Fields(messages="messages", multi_turn="last")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not_json"),
        (b'{"instruction": "a", "response": "b"', "not_json"),
        (b'{"instruction": "a", "response": "b"} {}', "not_json"),
        (b"{'instruction': 'a', 'response': 'b'}", "not_json"),
        (b'{"instruction": "a\x01", "response": "b"}', "not_json"),
        (b'{"instruction": "a", "response": "b", "x": 01}', "not_json"),
        (b"[" * 100_000, "too_deep"),
        (b'\xff{"instruction": "a"}', "invalid_utf8"),
        (b'{"instruction": "\xed\xa0\x80", "response": "b"}', "invalid_utf8"),
        (b'["a"]', "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"instruction": "a"}', "no_response_column"),
        (b'{"response": "a"}', "no_instruction_column"),
        (b'{"instruction": 7, "response": "b"}', "instruction_not_text"),
        (b'{"instruction": NaN, "response": "b"}', "instruction_not_text"),
        (b'{"instruction": ' + b"9" * 5000 + b', "response": "b"}', "instruction_not_text"),
        (b'{"instruction": "a", "response": ["b"]}', "response_not_text"),
        (b'{"instruction": "a", "response": null}', "empty_response"),
        (b'{"instruction": "a", "response": " \\n\\t"}', "empty_response"),
        (b'{"instruction": "", "response": "b"}', "empty_instruction"),
        (b'{"instruction": "a\\u0000b", "response": "b"}', "nul_character"),
        (b'{"instruction": "\\ud800", "response": "b"}', "lone_surrogate"),
        (b'{"instruction": "a", "instruction": "b", "response": "c"}', "key_twice"),
    ],
)
def test_every_bad_line_has_its_reason(line, reason):
    """A line that is silently dropped, or kills the run, is lost data."""
    assert parse_line(line, PLAIN) == Reject(reason)


@pytest.mark.parametrize(
    "more",
    [
        b'"x": NaN',
        b'"x": 1e400',
        b'"x": ' + b"9" * 5000,
        b'"x": 1, "x": 2',
        b'"": {}',
        b'"x": "\\ud83d\\ude00"',
        b'"x": "\\ud800"',
    ],
)
def test_what_nobody_asked_for_spoils_no_sample(more):
    """Logs of services hold such values beside good texts."""
    assert parse_line(b'{"instruction": "a", "response": "b", ' + more + b"}", PLAIN) == Sample(
        sample_id("a", "b"), "a", "b"
    )


def test_every_row_of_code_alpaca_is_read_or_has_a_reason(shared):
    """Real data: 20,022 rows, of which 6 have no response."""
    found, fields = [], Fields(("instruction", "input"), ("output",))
    for path in sorted((shared / "data" / "code_alpaca_20k").glob("*.gz")):
        with gzip.open(path) as lines:
            found += [parse_line(line, fields) for line in lines]
    reasons = [row.reason for row in found if isinstance(row, Reject)]
    assert len(found) == 20_022 and reasons == ["empty_response"] * 6


def test_joined_columns_leave_empty_ones_out():
    """Alpaca's `input` is mostly empty; a trailing newline would change every sample_id."""
    rows = [{"i": "Add.", "x": x, "o": "ok"} for x in ("1 + 2", "", None)]
    found = [sample_of(row, Fields(("i", "x"), ("o",))) for row in rows]
    assert [sample.instruction for sample in found] == ["Add.\n1 + 2", "Add.", "Add."]


def test_a_dot_leads_into_an_object():
    """Rows of labelling tools and of logged calls keep their texts one level down."""
    fields = Fields(("data.question",), ("answer.text.body",), carry=("data.lang", "data", "away.from.here"))
    row = {"data": {"question": "q", "lang": "py"}, "answer": {"text": {"body": "a"}}}
    assert sample_of(row, fields) == Sample(
        sample_id("q", "a"), "q", "a", ("py", '{"lang": "py", "question": "q"}', None)
    )
    assert sample_of({"data": "question", "answer": 1}, fields) == Reject("no_instruction_column")
    assert sample_of({**row, "answer": {"text": None}}, fields) == Reject("no_response_column")
    twice = b'{"data": {"question": "q", "question": "p"}, "answer": {"text": {"body": "a"}}}'
    assert parse_line(twice, fields) == Reject("key_twice")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("é", "é"),
        (None, None),
        (True, "true"),
        (3, "3"),
        (0.5, "0.5"),
        (["b", 1], '["b", 1]'),
        ({"z": 1, "a": "é"}, '{"a": "é", "z": 1}'),
    ],
)
def test_what_is_carried_is_text(value, text):
    """A column has one type, whatever the rows hold."""
    assert as_text(value) == text


def said(*turns, form=("role", "content")):
    return [dict(zip(form, turn, strict=True)) for turn in turns]


USER, ASSISTANT, SYSTEM = ("user", "q"), ("assistant", "a"), ("system", "be brief")


@pytest.mark.parametrize(
    ("messages", "instruction"),
    [
        (said(USER, ASSISTANT), "q"),
        (said(SYSTEM, USER, ASSISTANT), "be brief\nq"),
        (said(("system", ""), USER, ASSISTANT), "q"),
        (said(("developer", "x"), SYSTEM, USER, ASSISTANT), "x\nbe brief\nq"),
        (said(("human", "q"), ("gpt", "a"), form=("from", "value")), "q"),
        (said(("Human", "q"), ("GPT", "a"), form=("from", "value")), "q"),
    ],
)
def test_a_conversation_of_one_turn(messages, instruction):
    """The forms of OpenAI, of ShareGPT, and those in between."""
    for fields in (CHAT, LAST):
        assert sample_of({"messages": messages}, fields) == Sample(sample_id(instruction, "a"), instruction, "a")


def test_of_several_turns_none_or_the_last():
    """multi_turn: reject | last."""
    row = {"messages": said(SYSTEM, ("user", "first"), ("assistant", "no"), USER, ASSISTANT)}
    assert sample_of(row, CHAT) == Reject("multi_turn")
    assert sample_of(row, LAST) == Sample(sample_id("be brief\nq", "a"), "be brief\nq", "a")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no_messages_column"),
        ({"messages": None}, "empty_messages"),
        ({"messages": []}, "empty_messages"),
        ({"messages": said(SYSTEM)}, "empty_messages"),
        ({"messages": "q"}, "messages_not_a_list"),
        ({"messages": ["q", "a"]}, "message_not_an_object"),
        ({"messages": [{"content": "q"}]}, "unknown_role"),
        ({"messages": said(("tool", "q"), ASSISTANT)}, "unknown_role"),
        ({"messages": said((None, "q"), ASSISTANT)}, "unknown_role"),
        ({"messages": said(("user", ["q"]), ASSISTANT)}, "content_not_text"),
        ({"messages": said(USER)}, "no_last_response"),
        ({"messages": said(USER, ASSISTANT, USER)}, "no_last_response"),
        ({"messages": said(ASSISTANT, USER)}, "not_in_turns"),
        ({"messages": said(USER, USER, ASSISTANT)}, "not_in_turns"),
        ({"messages": said(USER, SYSTEM, ASSISTANT)}, "not_in_turns"),
        ({"messages": said(USER, ("assistant", None))}, "empty_response"),
    ],
)
def test_a_conversation_that_is_no_sample(row, reason):
    """It would be a sample whose response answers something else."""
    assert sample_of(row, LAST) == Reject(reason)

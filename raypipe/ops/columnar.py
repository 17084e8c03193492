"""What rows makes of one row, of a whole table at once: the samples that are beyond doubt. Whatever is left out, rows looks at.

So nothing here decides that a row is no sample, or why. Types are those of a Parquet file, or of JSON as it was read by `json_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from raypipe.ops.rows import FORMS, ROLES, Fields, as_text
from raypipe.ops.text import normalise_all, sample_ids

LOOKED_AT = 16  # rows, for the types of what is carried
CERTAIN = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def certain_samples(table: pa.Table, fields: Fields) -> pa.Table:
    """row (its place in the table), sample_id, instruction, response and what is carried, of the rows that are surely samples."""
    rows = pa.array(np.arange(len(table)), pa.int64())
    instruction, response = (
        _turns(table, fields)
        if fields.messages
        else (_joined(table, fields.instruction), _joined(table, fields.response))
    )
    instruction, response = normalise_all(instruction), normalise_all(response)
    sure = reduce(pc.and_, (_has_text(texts) for texts in (instruction, response)))
    rows, instruction, response = (array.filter(sure) for array in (rows, instruction, response))
    carried = {path: _texts_of(_column(table, path)).filter(sure) for path in fields.carry}
    ids = sample_ids(instruction, response)
    return pa.table({"row": rows, "sample_id": ids, "instruction": instruction, "response": response, **carried})


def json_table(data: bytes, rows: Sequence[Any], fields: Fields) -> pa.Table | None:
    """Objects of JSON one after the other, as many as there are lines; `rows` are the first ones, parsed. None where any of them is not as plain as it seems.

    Arrow's reader: 330 MB a CPU second. It looks at no UTF-8, and a row `null` ends the process, so the caller has looked at both.
    """
    schema = _schema(rows, fields)
    if schema is None:
        return None
    read = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
    parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pj.read_json(pa.BufferReader(data), read_options=read, parse_options=parse)
    except pa.ArrowInvalid:
        return None
    floats = [column for path in fields.carry if pa.types.is_floating((column := _column(table, path)).type)]
    if any(pc.any(pc.equal(pc.round(column), column)).as_py() for column in floats):
        return None  # 1 or 1.0, it cannot be told
    return table


def _schema(rows: Sequence[Any], fields: Fields) -> pa.Schema | None:
    """None where the form of a row cannot be told beforehand, or one path leads through another."""
    kinds: dict[str, Any] = dict.fromkeys((*fields.instruction, *fields.response), pa.string())
    if fields.messages:
        kinds = {fields.messages: _messages_kind(rows, fields.messages)}
    for path in fields.carry:
        kinds.setdefault(path, CERTAIN.get(_first_type(rows, path)))
    if None in kinds.values() or any(other.startswith(f"{path}.") for path in kinds for other in kinds):
        return None
    return pa.schema(_nested(kinds))


def _nested(kinds: dict[str, Any]) -> list[pa.Field]:
    below: dict[str, dict[str, Any]] = {}
    for path, kind in kinds.items():
        first, _, rest = path.partition(".")
        below.setdefault(first, {})[rest] = kind
    return [pa.field(name, inner[""] if "" in inner else pa.struct(_nested(inner))) for name, inner in below.items()]


def _first(rows: Sequence[Any], path: str) -> Any:
    """The first value of a path that is there."""
    for value in rows:
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _first_type(rows: Sequence[Any], path: str) -> type:
    value = _first(rows, path)
    return str if value is None else type(value)


def _messages_kind(rows: Sequence[Any], path: str) -> pa.DataType | None:
    messages = _first(rows, path)
    for form in FORMS:
        if isinstance(messages, list) and messages and isinstance(messages[0], dict) and form[0] in messages[0]:
            return pa.list_(pa.struct([(name, pa.string()) for name in form]))
    return None


def _column(table: pa.Table, path: str) -> pa.Array:
    """Nulls where the table has nothing of this path."""
    first, *rest = path.split(".")
    if first not in table.column_names:
        return pa.nulls(len(table), pa.string())
    column = table.column(first)
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies also a single one
    for name in rest:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return pa.nulls(len(table), pa.string())
        column = pc.struct_field(column, name)
    return column


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_kind(inner) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _has_text(texts: pa.StringArray) -> pa.BooleanArray:
    plain = pc.greater(pc.binary_length(texts), 0)
    if b"\0" in (texts.buffers()[2] or pa.py_buffer(b"")).to_pybytes():  # seldom, and looked for in no time
        plain = pc.and_(plain, pc.invert(pc.match_substring(texts, "\0")))
    return pc.fill_null(plain, False)


def _joined(table: pa.Table, paths: Sequence[str]) -> pa.StringArray:
    """What is there of each row, joined by a newline; null where any of it is no text."""
    columns = [_column(table, path) for path in paths]
    if any(not _is_text(column.type) and column.null_count < len(column) for column in columns):
        return pa.nulls(len(table), pa.string())
    texts = [column.cast(pa.string()) for column in columns]
    return _join(texts) if len(texts) > 1 else texts[0]


def _join(texts: Sequence[pa.StringArray]) -> pa.StringArray:
    """By a newline, what is null or empty left out. (null_handling="skip" would do, but pyarrow 26 then leaves out rows that are null throughout.)"""

    def joined(one: pa.StringArray, other: pa.StringArray) -> pa.StringArray:
        return pc.coalesce(pc.binary_join_element_wise(one, other, "\n"), one, other)

    return reduce(joined, (pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text) for text in texts))


def _texts_of(column: pa.Array) -> pa.StringArray:
    """As `as_text`."""
    if _is_text(column.type) or pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
        return column.cast(pa.string())
    return pa.array([as_text(value) for value in column.to_pylist()], pa.string())


def _turns(table: pa.Table, fields: Fields) -> tuple[pa.StringArray, pa.StringArray]:
    """Instruction and response of conversations of one turn, with the system's words before it or without; null of all others."""
    assert fields.messages is not None
    column, nothing = _column(table, fields.messages), pa.nulls(len(table), pa.string())
    if not (said := _said(column)):
        return nothing, nothing
    roles, texts = said
    starts, lengths = (
        column.offsets.to_numpy()[:-1].astype(np.int64),
        pc.fill_null(pc.list_value_length(column), 0).to_numpy(),
    )

    def said_by(role: str, place: int) -> NDArray[np.bool_]:
        return np.asarray(roles[np.minimum(starts + place, len(roles) - 1)] == role)

    pair = (lengths == 2) & said_by("user", 0) & said_by("assistant", 1)
    after_system = (lengths == 3) & said_by("system", 0) & said_by("user", 1) & said_by("assistant", 2)

    def of(place: int, mask: NDArray[np.bool_]) -> pa.StringArray:
        return texts.take(pa.array(starts + place, mask=~mask))

    users = pc.coalesce(of(0, pair), of(1, after_system))
    return _join([of(0, after_system), users]), pc.coalesce(of(1, pair), of(2, after_system))


def _said(column: pa.Array) -> tuple[NDArray[Any], pa.StringArray] | None:
    """Of all messages of all conversations: by whom, as ROLES has it, and what."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return None
    for form in FORMS:
        if all(kind.value_type.get_field_index(name) >= 0 for name in form) and len(column.values):
            who, what = (pc.struct_field(column.values, name) for name in form)
            if _is_text(who.type) and _is_text(what.type):
                known = pc.index_in(pc.utf8_lower(who.cast(pa.string())), pa.array(list(ROLES)))
                roles = np.array([*ROLES.values(), "unknown"], object)
                return roles[pc.fill_null(known, len(ROLES)).to_numpy()], what.cast(pa.string())
    return None

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raypipe.errors import ConfigError
from raypipe.ops.digests import canonical_json, column_digests

ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.text(max_size=5)),
        st.one_of(st.none(), st.integers(0, 9)),
        st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=3)),
        st.one_of(st.none(), st.lists(st.floats(0, 1, width=16), min_size=2, max_size=2)),
    ),
    max_size=20,
)
SCHEMA = pa.schema(
    [("a", pa.string()), ("b", pa.int32()), ("c", pa.list_(pa.int32())), ("d", pa.list_(pa.float16(), 2))]
)


def table(rows):
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    arrays = []
    for column, kind in zip(columns, SCHEMA.types, strict=True):
        if kind.equals(SCHEMA.types[3]):
            column = [None if value is None else [np.float16(item) for item in value] for value in column]
        arrays.append(pa.array(column, kind))
    return pa.table(arrays, schema=SCHEMA)


@given(ROWS, st.integers(0, 20), st.integers(0, 20))
def test_chunks_and_slices_do_not_matter(rows, a, b):
    """Two runs of a part differ in how Ray hands them out; they must be found equal."""
    whole = table(rows)
    cut = sorted((min(a, len(rows)), min(b, len(rows))))
    pieces = pa.concat_tables([whole.slice(0, cut[0]), whole.slice(cut[0], cut[1] - cut[0]), whole.slice(cut[1])])
    assert column_digests(pieces) == column_digests(whole)
    middle = slice(*cut)
    assert column_digests(whole.slice(cut[0], cut[1] - cut[0])) == column_digests(table(rows[middle]))


@given(ROWS, ROWS)
@example([(None, None, None, [0.0, 0.0])], [(None, None, None, [0.0, 0.0]), (None, None, None, None)])
def test_equal_only_if_rows_are(one, two):
    assert (column_digests(table(one)) == column_digests(table(two))) == (one == two)


@given(ROWS)
def test_what_is_read_back_from_parquet_has_the_same_digest(rows):
    """Every reader compares with what was recorded at the write: a difference of form would call sound parts damaged."""
    pq.write_table(table(rows), sink := pa.BufferOutputStream())
    assert column_digests(pq.read_table(pa.BufferReader(sink.getvalue()))) == column_digests(table(rows))


def test_what_lies_under_a_null_is_not_looked_at():
    shown = pa.array([1, 2], pa.int32())
    hidden = [
        pa.Array.from_buffers(pa.int32(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([1, n], np.int32))])
        for n in (2, 3)
    ]
    assert column_digests(pa.table({"x": hidden[0]})) == column_digests(pa.table({"x": hidden[1]}))
    assert column_digests(pa.table({"x": hidden[0]})) != column_digests(pa.table({"x": shown}))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=3), child, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_canonical_json_does_not_know_the_order_of_keys(value):
    def backwards(item):
        if isinstance(item, dict):
            return {key: backwards(item[key]) for key in reversed(item)}
        return [backwards(child) for child in item] if isinstance(item, list) else item

    assert canonical_json(backwards(value)) == canonical_json(value)


@pytest.mark.parametrize("value", [{1: "a"}, {"a": {1, 2}}, [float("nan")], object()])
def test_unstable_values_are_refused(value):
    """A recipe of an object's address would never be found again."""
    with pytest.raises(ConfigError, match="recipe"):
        canonical_json(value)

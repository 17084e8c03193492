import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.ops.digests import columns_digest

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


@settings(deadline=None)
@given(ROWS, st.integers(0, 20), st.integers(0, 20))
def test_chunks_and_slices_do_not_matter(rows, a, b):
    """Two runs of a part differ in how Ray hands them out; they must be found equal."""
    whole = table(rows)
    cut = sorted((min(a, len(rows)), min(b, len(rows))))
    pieces = pa.concat_tables([whole.slice(0, cut[0]), whole.slice(cut[0], cut[1] - cut[0]), whole.slice(cut[1])])
    assert columns_digest(pieces) == columns_digest(whole)
    middle = slice(*cut)
    assert columns_digest(whole.slice(cut[0], cut[1] - cut[0])) == columns_digest(table(rows[middle]))


@settings(deadline=None)
@given(ROWS, ROWS)
def test_equal_only_if_rows_are(one, two):
    assert (columns_digest(table(one)) == columns_digest(table(two))) == (one == two)


def test_what_lies_under_a_null_is_not_looked_at():
    shown = pa.array([1, 2], pa.int32())
    hidden = [
        pa.Array.from_buffers(pa.int32(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([1, n], np.int32))])
        for n in (2, 3)
    ]
    assert columns_digest(pa.table({"x": hidden[0]})) == columns_digest(pa.table({"x": hidden[1]}))
    assert columns_digest(pa.table({"x": hidden[0]})) != columns_digest(pa.table({"x": shown}))

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.envelope import Envelope
from raypipe.errors import DataError


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.none() | st.text(max_size=3)), max_size=5), min_size=1, max_size=4
    ),
    st.integers(1, 3),
)
def test_parts_survive_being_joined_cut_and_sliced(parts, chunks):
    """What Ray Data does to blocks: no row may move to another part, and a part without rows must stay."""
    schema = pa.schema([("n", pa.int64()), ("t", pa.string())])
    tables = []
    for rows in parts:
        pieces = [
            pa.table([[r[0] for r in rows[k::chunks]], [r[1] for r in rows[k::chunks]]], schema=schema)
            for k in range(chunks)
        ]
        tables.append(pa.concat_tables(pieces))
    sealed = pa.concat_tables([Envelope(str(n), (table, table)).seal() for n, table in enumerate(tables)])
    for block in (sealed, sealed.combine_chunks()):
        for n, table in enumerate(tables):
            opened = Envelope.open(block.slice(n, 1))
            assert (
                opened.part == str(n)
                and all(found.equals(table) for found in opened.tables)
                and len(opened.tables) == 2
            )


def test_an_error_arrives_as_it_was():
    envelope = Envelope.open(Envelope("part-1").failed(DataError("bad")).seal())
    assert envelope.tables == ()
    with pytest.raises(DataError, match="bad"):
        envelope.check()
    assert Envelope.open(Envelope("p", (), {"0": "ab"}, 2, 1.5).seal()).check() == Envelope(
        "p", (), {"0": "ab"}, 2, 1.5
    )

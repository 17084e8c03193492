import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.envelope import Call, Envelope, write
from raypipe.errors import DataError
from raypipe.part import add_up, with_figures
from raypipe.store import Folder


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


class Doubled:
    """Computes the first part only once the second one is prepared."""

    def __init__(self):
        self.prepared, self.threads, self.computing, self.most = threading.Event(), set(), 0, 0

    def prepare(self, tables):
        if tables[0]["n"][0].as_py() == 2:
            self.prepared.set()
        return [table["n"].to_pylist() for table in tables]

    def __call__(self, prepared):
        self.threads.add(threading.get_ident())
        self.computing += 1
        self.most = max(self.most, self.computing)
        assert self.prepared.wait(10), "the other part is not prepared meanwhile"
        self.computing -= 1
        return with_figures(pa.table({"n": [2 * n for n in prepared[0]]}), num_tokens=len(prepared[0]))


def test_one_part_is_prepared_while_another_is_computed(tmp_path):
    """A GPU that waits for a tokenizer; and of two parts that were begun, both would be blamed for a death that one caused."""
    function, begun, out = Doubled(), [], Folder.at(str(tmp_path))
    call = Call(lambda: function, out, lambda *begins: begun.append(begins) or begun.count(begins))
    first, second = Envelope("part-1", (pa.table({"n": [1]}),)), Envelope("part-2", (pa.table({"n": [2, 3]}),))
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(call, first)
        made = [threads.submit(call, second).result(20), one.result(20)]
    assert [envelope.tables[0]["n"].to_pylist() for envelope in made] == [[4, 6], [2]]
    assert function.most == 1 and len(function.threads) == 1 and threading.get_ident() not in function.threads
    assert [part for part, step in begun if step == "compute"] == ["part-1", "part-2"]
    second, first = (write(envelope, out).footer for envelope in made)
    assert first["idle_s"] == 0 <= second["idle_s"] and add_up([first, second])["figures"] == {"num_tokens": 3}


def test_a_part_whose_preparing_kills_its_process_is_named(tmp_path):
    """Of the last part, or of a new actor's first, nothing is computed meanwhile that would count its deaths."""
    begun = {"prepare": 8, "compute": 0}
    call = Call(
        Doubled, Folder.at(str(tmp_path)), lambda part, step: begun.update({step: begun[step] + 1}) or begun[step]
    )
    with pytest.raises(DataError, match="part-9: its process died each of the 8 times"):
        call(Envelope("part-9", (pa.table({"n": [2]}),))).check()
    assert not call.function.prepared.is_set() and begun == {"prepare": 9, "compute": 0}


def test_idle_share_by_hand():
    """3 s of waiting beside 9 s of work; a stage that has not computed was not idle."""
    footers = [
        {"rows": 1, "bytes": 1, "counts": {}, "figures": {}, "seconds": 4.5, "idle_s": idle} for idle in (0.0, 3.0)
    ]
    assert add_up(footers)["idle_share"] == 0.25 and add_up([])["idle_share"] == 0

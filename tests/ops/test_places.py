import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.places import Places

WORD = st.integers(0, 3) | st.integers(2**64 - 3, 2**64 - 1)


@given(st.lists(st.tuples(WORD, WORD), max_size=30), st.lists(st.tuples(WORD, WORD), max_size=10))
def test_every_id_finds_its_place(ids, asked):
    """Ids that share their leading word are told apart; of a repeated one the first row is the sample; none else is found."""
    words, others = (np.array(some, np.uint64).reshape(-1, 2) for some in (ids, asked))
    first = {pair: place for place, pair in reversed(list(enumerate(ids)))}
    places = Places.of(words, np.arange(len(ids)))
    assert places.find(words).tolist() == [first[pair] for pair in ids]
    assert places.find(others).tolist() == [first.get(pair, -1) for pair in asked]

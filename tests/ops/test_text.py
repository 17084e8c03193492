import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.text import draw, id_hex, id_words, is_held_out, normalise, normalise_all, sample_id, sample_ids


def test_sample_id_by_hand():
    """The id is a promise to other programs: blake2b-128 of 'instruction NUL response' in UTF-8."""
    assert sample_id("a", "b") == hashlib.blake2b(b"a\x00b", digest_size=16).hexdigest()
    assert normalise("  e\u0301 \n") == "\u00e9"


TEXT = st.text(
    st.sampled_from("ab \n\t\x1c\x85\u00a0\u0301e\u00e9\u2028\u3000\U00016123") | st.characters(codec="utf-8"),
    max_size=12,
)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=9))
def test_many_at_once_are_as_one_by_one(pairs):
    """A part that was read in one block, and one that was read row by row, would give one sample two ids."""
    columns = [pa.array([pair[side] for pair in pairs], pa.string()) for side in (0, 1)]
    normalised = [normalise_all(column) for column in columns]
    assert [texts.to_pylist() for texts in normalised] == [[normalise(pair[side]) for pair in pairs] for side in (0, 1)]
    assert sample_ids(*normalised).to_pylist() == [sample_id(*map(normalise, pair)) for pair in pairs]
    later = [column[1:] for column in normalised]
    assert sample_ids(*later).to_pylist() == [sample_id(*map(normalise, pair)) for pair in pairs[1:]]


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

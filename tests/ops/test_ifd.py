import numpy as np
import pytest

from raypipe.ops.ifd import ifd, scored_sequences


def test_by_hand():
    """Two response tokens, NLL 2 with the instruction and 4 without: perplexities e and e^2, ratio 1/e."""
    assert ifd(np.array([2.0]), np.array([4.0]), np.array([2])) == pytest.approx(np.exp(-1))


def test_failure_is_never_a_number():
    """The authors' code turns every failure into IFD 0, which keeps the row as 'easiest'."""
    found = ifd(np.array([np.nan, np.inf, 1.0]), np.array([1.0, 1.0, 1.0]), np.array([2, 2, 0]))
    assert np.isnan(found[:2]).all() and np.isnan(ifd(np.array([0.0]), np.array([0.0]), np.array([0])))[0]


def test_both_passes_score_the_same_tokens():
    """Otherwise the ratio compares perplexities of different texts."""
    sequences, context = scored_sequences([9], [[9, 1, 2]], [[5, 6]])
    assert [tokens[n:] for tokens, n in zip(sequences, context, strict=True)] == [[5, 6], [5, 6]]
    assert sequences == [[9, 1, 2, 5, 6], [9, 5, 6]]

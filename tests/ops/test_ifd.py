import numpy as np
import pytest

from raypipe.ops.ifd import authors_passes, exact_passes, ifd


def test_by_hand():
    """Two response tokens, NLL 2 with the instruction and 4 without: perplexities e and e^2, ratio 1/e."""
    assert ifd(np.array([[2.0, 4.0]]), np.array([[2, 2]])) == pytest.approx(np.exp(-1))


def test_each_perplexity_is_over_its_own_tokens():
    """The authors' two passes may differ by a token: e^(2/2) / e^(4/1)."""
    assert ifd(np.array([[2.0, 4.0]]), np.array([[2, 1]])) == pytest.approx(np.exp(-3))


def test_failure_is_never_a_number():
    """The authors' code turns every failure into IFD 0, which keeps the row as 'easiest'."""
    sums = np.array([[np.nan, 1.0], [np.inf, 1.0], [1.0, np.inf], [1.0, 1.0], [0.0, 0.0]])
    assert np.isnan(ifd(sums, np.array([[2, 2], [2, 2], [2, 2], [2, 0], [0, 0]]))).all()


def test_both_passes_score_the_same_tokens():
    """Otherwise the ratio compares perplexities of different texts."""
    passes = exact_passes([9], [[9, 1, 2], [9, 1, 2, 3]], [[5, 6], [7, 8]], 5)
    assert passes.sequences == [([9, 1, 2, 5, 6], [9, 5, 6]), ([9, 1, 2, 3, 7], [9, 7])]
    assert passes.num_context_N2.tolist() == [[3, 1], [4, 1]]
    assert passes.num_scored_N2.tolist() == [[2, 2], [1, 1]] and passes.num_lost.tolist() == [0, 1]


def test_a_prompt_that_fills_the_window_leaves_nothing_to_score():
    passes = exact_passes([9], [[9, 1, 2, 3, 4, 5]], [[7, 8]], 5)
    assert passes.num_scored_N2.tolist() == [[0, 0]] and passes.num_lost.tolist() == [2]


def test_the_authors_passes_by_hand():
    """A token goes across the boundary (2 + 5 become 25), so one response token fewer is scored with the prompt than without."""
    passes = authors_passes([[9, 1, 2]], [[9, 1, 25, 6]], [[9, 5, 6]], 100)
    assert passes.sequences == [([9, 1, 25, 6], [9, 5, 6])] and passes.num_scored_N2.tolist() == [[1, 2]]
    cut = authors_passes([[9, 1, 2]], [[9, 1, 2, 5, 6, 7]], [[9, 5, 6, 7]], 5)
    assert cut.sequences == [([9, 1, 2, 5, 6], [9, 5, 6])] and cut.num_lost.tolist() == [1]


def test_no_samples():
    assert exact_passes([9], [], [], 5).num_scored_N2.shape == (0, 2)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.ops.packing import best_fit, group_parts, padding_share


def test_worked_example():
    """The example of the module's docstring."""
    assert best_fit([5, 3, 4, 4, 2], 8) == [[0, 1], [2, 3], [4]]


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 120))
def test_every_sample_once_and_no_pack_too_full(lengths, capacity):
    """A lost sample is lost training data; an overfull pack breaks the training step."""
    packs = best_fit(lengths, capacity)
    assert sorted(place for pack in packs for place in pack) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in pack) <= capacity for pack in packs)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=120), st.integers(50, 120))
def test_equals_the_plain_algorithm(lengths, capacity):
    """The bit mask must find what scanning all open packs finds."""
    rooms, packs = [], []
    for place in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        fitting = [n for n, room in enumerate(rooms) if room >= lengths[place]]
        pack = min(fitting, key=lambda n: (rooms[n], n), default=None)
        if pack is None:
            pack = len(rooms)
            rooms.append(capacity)
            packs.append([])
        rooms[pack] -= lengths[place]
        packs[pack].append(place)
    assert best_fit(lengths, capacity) == packs


def test_fill_on_code_lengths():
    """Packing is where the method's time saving comes from."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.8, 0.7, 10_000), 8, 2048).astype(int).tolist()
    packs = best_fit(lengths, 2048)
    assert sum(lengths) / (len(packs) * 2048) > 0.995


def test_refuses_what_cannot_fit():
    with pytest.raises(ValueError, match=r"1\.\.8"):
        best_fit([9], 8)


def test_padding_by_hand():
    """One batch of lengths 1, 3 padded to 3: two of six tokens are padding."""
    assert padding_share([1, 3], np.random.default_rng(0)) == pytest.approx(2 / 6)
    assert padding_share([], np.random.default_rng(0)) == 0


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 50))
def test_groups_cover_all_parts_in_order(counts, least):
    """A part in no group would vanish from training."""
    runs = group_parts(counts, least)
    assert [n for a, b in runs for n in range(a, b)] == list(range(len(counts)))
    assert all(sum(counts[a:b]) >= least for a, b in runs) or len(runs) <= 1

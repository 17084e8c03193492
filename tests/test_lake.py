import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import ConfigError, DataError
from raypipe.lake import Slice, chain_digests, list_lake

SLICES = st.lists(
    st.builds(Slice, st.text(min_size=1, max_size=3), st.integers(0, 9), st.text(max_size=2)), min_size=1, max_size=8
)


@given(SLICES, SLICES)
def test_a_lake_that_grows_at_its_end_keeps_its_chain(old, new):
    """Otherwise a nightly run recomputes everything."""
    assert chain_digests(old + new)[: len(old)] == chain_digests(old)


@given(SLICES, SLICES)
def test_another_lake_has_another_digest(one, two):
    assert (chain_digests(one)[-1] == chain_digests(two)[-1]) == (one == two)


def test_order_is_paths_as_configured_then_names(tmp_path):
    for name in ("b/2.jsonl", "b/1.jsonl", "a/9.jsonl", "b/_SUCCESS", "b/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    lake = list_lake([str(tmp_path / "b"), str(tmp_path / "a" / "*.jsonl"), str(tmp_path / "b" / "1.jsonl")])
    assert [os.path.relpath(piece.uri, tmp_path) for piece in lake.slices] == ["b/1.jsonl", "b/2.jsonl", "a/9.jsonl"]


def test_missing_and_empty_input(tmp_path):
    with pytest.raises(ConfigError, match=r"ingest\.paths.*nowhere.*no such file"):
        list_lake([str(tmp_path / "nowhere")])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="all empty"):
        list_lake([str(tmp_path)])


def test_a_touched_file_is_another_lake(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("x")
    before = list_lake([str(tmp_path)]).digest
    os.utime(path, ns=(1, 1))
    assert list_lake([str(tmp_path)]).digest != before

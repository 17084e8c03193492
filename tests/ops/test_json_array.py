"""Elements of an array are found wherever the chunks are cut."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.ops.json_array import Elements

VALUE = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\[]{},: \n\u00e9'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a]\\", max_size=3), inner, max_size=3),
    max_leaves=6,
)


def fed(data, cuts, limit=1 << 20):
    """(elements, the reader as it then is), the stream cut after each of these lengths in turn."""
    elements, found, place = Elements(limit), [], 0
    while place < len(data) and not elements.is_over:
        length = cuts[len(found) % len(cuts)]
        found += elements.feed(data[place : place + length])
        place += length
    return found, elements


@settings(deadline=None)
@given(st.lists(VALUE, max_size=5), st.sampled_from([None, 1]), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_elements_are_those_of_json(values, indent, cuts):
    """Were a bracket in a string, or the end of a chunk, taken for an end, two samples would be one or none."""
    data = b" " + json.dumps(values, indent=indent).encode()
    found, elements = fed(data, cuts)
    assert [json.loads(one.data) for one in found] == values and elements.is_over
    assert all(data[one.offset :].startswith(one.data) and one.is_whole for one in found)


def test_a_broken_element_spoils_no_other():
    """One bad sample of a million, and the rest of the file would be lost."""
    found, _ = fed(b'[{"a": 1}, {"b": tru, {]}, "x" y, {"c": [}], {"d": 2},, ]', [7])
    assert [one.data for one in found] == [b'{"a": 1}', b'{"b": tru, {]}', b'"x" y', b'{"c": [}]', b'{"d": 2}']


def test_what_follows_and_what_is_missing():
    """Two arrays in a file, a file that breaks off, and an element that fits no memory."""
    found, elements = fed(b'[1, 2] {"next": 3}', [100])
    assert [one.data for one in found] == [b"1", b"2"] and (elements.begun, elements.offset) == (b' {"next": 3}', 6)
    found, elements = fed(b'[{"a": 1}, {"b": "cut', [4])
    assert len(found) == 1 and elements.begun.strip() == b'{"b": "cut' and not elements.is_over
    found, _ = fed(b'[1, "' + b"x" * 50 + b'", 3]', [6], limit=10)
    assert [(one.data, one.is_whole) for one in found] == [(b"1", True), (b'"xxxxxxxx', False), (b"3", True)]

"""Shingles against sets of words, MinHash against Jaccard similarities counted one by one."""

import random
import re

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.ops.minhash import WORDS, bands_and_sketches, near_pairs, rows_a_band, similarity_of
from raypipe.ops.shingles import shingles

WORD = re.compile(r"[a-z0-9_\u0080-\U0010ffff]+")


def words_of(text):
    return WORD.findall("".join(char.lower() if char.isascii() else char for char in text)) or [text]


def grams_of(text, n):
    words = words_of(text)
    return [tuple(words[first : first + n]) for first in range(max(1, len(words) - n + 1))]


TEXTS = st.lists(st.text(st.sampled_from("aB_9 .\u00e9\u4e2d\n"), min_size=1, max_size=12), max_size=6)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 3), st.integers(0, 2))
def test_shingles_are_words_in_a_row(texts, n, first):
    """Equal n-grams have equal hashes, others other ones, and each is where it says."""
    array = pa.array(["skipped"] * first + texts, pa.string())[first:]
    made, whole = shingles(array, n), "".join(texts).encode()
    wanted = [grams_of(text, n) for text in texts]
    assert np.diff(made.edges).tolist() == [len(grams) for grams in wanted]
    by_gram, every = {}, [gram for grams in wanted for gram in grams]
    for gram, value in zip(every, made.hashes.tolist(), strict=True):
        assert by_gram.setdefault(gram, value) == value
    assert len(set(by_gram.values())) == len(by_gram)
    for gram, start, end in zip(every, made.starts, made.ends, strict=True):
        assert tuple(words_of(whole[start:end].decode())) == gram
    longer = shingles(array, n, short=False)
    assert np.diff(longer.edges).tolist() == [
        len(grams) * (len(words_of(text)) >= n) for text, grams in zip(texts, wanted, strict=True)
    ]


def planted(count=3000, seed=0):
    """Pairs of texts of 30 to 120 words, of which some words differ: from none to a quarter."""
    rng, pairs = random.Random(seed), []
    for _ in range(count):
        one = [f"w{rng.randrange(3000)}" for _ in range(rng.randrange(30, 120))]
        changed = rng.random() * 0.06
        pairs.append((one, [f"x{rng.randrange(3000)}" if rng.random() < changed else word for word in one]))
    return [" ".join(one) for one, _ in pairs], [" ".join(other) for _, other in pairs]


def jaccard(one, other):
    a, b = set(grams_of(one, WORDS)), set(grams_of(other, WORDS))
    return len(a & b) / len(a | b)


def found_pairs(texts, similarity):
    keys, sketches = bands_and_sketches(pa.array(texts), similarity)
    return {
        pair
        for key in keys
        for pair in zip(*(side.tolist() for side in near_pairs(key, sketches, similarity)), strict=True)
    }


def test_planted_near_duplicates():
    """Recall and precision by Jaccard similarities that were counted. A missed one is trained on twice, a wrong one is a sample lost."""
    originals, copies = planted()
    exact = np.array([jaccard(*pair) for pair in zip(originals, copies, strict=True)])
    for similarity in (0.7, 0.8, 0.9):
        found = found_pairs(originals + copies, similarity)
        hit = np.array([(len(originals) + n, n) in found for n in range(len(originals))])
        assert hit.sum() == len(found), "of texts that have nothing in common none is near"
        recall, precision = hit[exact >= similarity].mean(), (exact[hit] >= similarity).mean()
        assert recall > 0.93 and precision > 0.9, (similarity, recall, precision)
        assert hit[exact >= similarity + 0.1].mean() > 0.99 and not hit[exact < similarity - 0.2].any()


def test_sketches_estimate_similarity():
    """Permutations that agreed with each other would count one difference 128 times: an estimate as good as a single one."""
    originals, copies = planted(2000, seed=1)
    (_, one), (_, other) = (bands_and_sketches(pa.array(texts), 0.8) for texts in (originals, copies))
    exact = np.array([jaccard(*pair) for pair in zip(originals, copies, strict=True)])
    error = similarity_of(one, other) - exact
    assert abs(error.mean()) < 0.01 and error[exact < 1].std() < 0.07


def test_rows_of_a_band():
    """The curve by hand: 1 - (1 - 0.8^7)^18 = 0.985, and with 8 rows 0.947."""
    assert [rows_a_band(similarity) for similarity in (0.5, 0.8, 0.9, 1.0)] == [3, 7, 12, 128]

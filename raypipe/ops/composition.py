"""What a selection is made of: its lengths, style, languages and clusters, beside what it dropped and beside chance.

Chance is what select.strategy=random would have kept of the same eligible rows: equally many, drawn with the run's own seed. So a
difference between `kept` and `random` is the strategy's, and one between `kept` and `dropped` is wider by what IFD limits took out.

N rows, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.ops.selection import BELOW_CUT, IFD_TOO_HIGH, IFD_TOO_LOW, NO_VALUE, SELECTED
from raypipe.ops.style import STYLES, distinct_ngrams, languages, shares
from raypipe.ops.text import draw, id_words

CANDIDATES = (SELECTED, BELOW_CUT, IFD_TOO_HIGH, IFD_TOO_LOW, NO_VALUE)  # scored, not held out
TOKENS = ("response_tokens", "instruction_tokens")
NGRAM_WORDS = (1, 2, 3)
LANGUAGE_TEXTS = 600  # whose language is guessed: six CPU seconds

Groups = Mapping[str, NDArray[np.bool_]]  # kept, dropped, random: [N] each


def groups(rows: pa.Table, seed: int) -> Groups:
    """Of rows with sample_id and reason."""
    reason_N = rows.column("reason").to_numpy()
    kept_N, eligible_N = reason_N == SELECTED, np.isin(reason_N, [SELECTED, BELOW_CUT])
    (eligible,) = np.nonzero(eligible_N)
    draws = draw(id_words(rows.column("sample_id").take(eligible)), seed)
    random_N = np.zeros(len(rows), bool)
    random_N[eligible[np.argsort(draws)[len(eligible) - kept_N.sum() :]]] = True  # the highest, as the strategy does
    return {"kept": kept_N, "dropped": np.isin(reason_N, CANDIDATES) & ~kept_N, "random": random_N}


def overall(rows: pa.Table, mask_N: NDArray[np.bool_]) -> dict[str, Any]:
    """Figures of the rows that are masked; a length or share of no rows is None."""
    some = rows.filter(pa.array(mask_N))
    found: dict[str, Any] = {"samples": len(some)}
    for name in TOKENS:
        tokens = some.column(f"num_{name}").to_numpy()
        found[name] = {"mean": float(tokens.mean()), "median": float(np.median(tokens))} if len(tokens) else None
    for name in STYLES:
        found[name] = float(np.mean(some.column(name).to_numpy())) if len(some) else None
    return found | {"cluster_entropy": entropy(np.bincount(some.column("cluster_id").to_numpy()))}


def entropy(counts_K: NDArray[np.int64]) -> float:
    """Of the shares of clusters, in bits (Shannon); 2 to its power is how many equal clusters would be as even."""
    share_K = counts_K[counts_K > 0] / max(counts_K.sum(), 1)
    return float(np.abs(-(share_K * np.log2(share_K)).sum()))


def by_cluster(rows: pa.Table, mask_N: NDArray[np.bool_], num_clusters: int) -> list[dict[str, Any]]:
    """[K]: of each cluster its masked rows, the mean of their lengths, and the shares of styles; None without rows."""
    some = rows.filter(pa.array(mask_N))
    cluster_N = some.column("cluster_id").to_numpy()
    size_K = np.bincount(cluster_N, minlength=num_clusters)
    found: list[dict[str, Any]] = [{"samples": size} for size in size_K.tolist()]
    for name, column in [(name, f"num_{name}") for name in TOKENS] + [(name, name) for name in STYLES]:
        sum_K = np.bincount(cluster_N, some.column(column).to_numpy().astype(float), num_clusters)
        for cluster, total, size in zip(found, sum_K.tolist(), size_K.tolist(), strict=True):
            cluster[name] = total / size if size else None
    return found


def of_texts(responses: Sequence[str], masks: Groups) -> dict[str, dict[str, Any]]:
    """By group: the shares of languages, and of distinct n-grams by n. `responses` come in an order drawn at random: of languages
    only the first of them count."""
    guessed = languages(responses[:LANGUAGE_TEXTS])
    texts = {
        name: [text for text, mine in zip(responses, mask_N, strict=True) if mine] for name, mask_N in masks.items()
    }
    distinct = {n: distinct_ngrams(texts, n) for n in NGRAM_WORDS}
    return {
        name: {
            "languages": shares([word for word, mine in zip(guessed, mask_N, strict=False) if mine]),
            "distinct_ngrams": {str(n): distinct[n][name] for n in NGRAM_WORDS},
        }
        for name, mask_N in masks.items()
    }

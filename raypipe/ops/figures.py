"""What the report shows of all rows, as states that add up over parts: histograms in fine bins, sums by cluster, exemplars.

Nothing grows with the lake: bins and clusters are fixed, exemplars are the few nearest. And the map's projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.ops.selection import BELOW_CUT, IFD_TOO_HIGH, SELECTED

QUANTITIES = ("ifd", "perplexity_conditional", "perplexity_unconditional", "response_tokens", "instruction_tokens")
FINE = {  # bins that the fold counts in; of tokens one bin a token, so that medians are exact
    "ifd": np.linspace(0, 2, 2001),
    "perplexity_conditional": np.geomspace(1, 1e5, 2301),
    "perplexity_unconditional": np.geomspace(1, 1e5, 2301),
    "response_tokens": np.arange(16386) - 0.5,
    "instruction_tokens": np.arange(16386) - 0.5,
}
SHOWN = {
    "ifd": np.linspace(0, 2, 81),
    "perplexity_conditional": np.geomspace(1, 1e5, 93),
    "perplexity_unconditional": np.geomspace(1, 1e5, 93),
    "response_tokens": np.geomspace(0.5, 16384.5, 61),
    "instruction_tokens": np.geomspace(0.5, 16384.5, 61),
}


@dataclass(frozen=True)
class Exemplar:
    """A sample near a centre, and where its text is."""

    sq_distance: float
    sample_id: str
    part: str
    row: int
    cluster_id: int
    reason: str
    ifd: float
    ppl_conditional: float
    ppl_unconditional: float
    response_tokens: int

    @property
    def selected(self) -> bool:
        return self.reason == SELECTED


@dataclass(frozen=True)
class Figures:
    """Counts in fine bins, [2, B]: of all scored samples, of the selected; of clusters [K]; and the nearest few of each."""

    counts: Mapping[str, NDArray[np.int64]]
    ifd_KB: NDArray[np.int64]
    sq_distance_K: NDArray[np.float64]
    selected_K: NDArray[np.int64]
    nearest: tuple[Exemplar, ...]
    keep: int

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            {name: self.counts[name] + other.counts[name] for name in QUANTITIES},
            self.ifd_KB + other.ifd_KB,
            self.sq_distance_K + other.sq_distance_K,
            self.selected_K + other.selected_K,
            nearest_few([*self.nearest, *other.nearest], self.keep),
            self.keep,
        )

    def histogram(self, name: str) -> dict[str, list[float]]:
        """In the shown bins, cut to those that hold something; what lies beyond the fine bins is in the last."""
        middles = (FINE[name][1:] + FINE[name][:-1]) / 2
        both = [np.histogram(middles, SHOWN[name], weights=row)[0].astype(int) for row in self.counts[name]]
        (filled,) = np.nonzero(both[0])
        a, b = (filled[0], filled[-1] + 1) if len(filled) else (0, 1)
        return {
            "edges": SHOWN[name][a : b + 1].tolist(),
            "all": both[0][a:b].tolist(),
            "selected": both[1][a:b].tolist(),
        }

    def medians(self, name: str) -> dict[str, float | None]:
        return {
            who: median_of(row, FINE[name]) for who, row in zip(("all", "selected"), self.counts[name], strict=True)
        }


def median_of(counts: NDArray[np.int64], edges: NDArray[Any]) -> float | None:
    """Middle of the bin that holds the lower median; None where nothing was counted."""
    if not counts.sum():
        return None
    place = int(np.searchsorted(np.cumsum(counts), (counts.sum() + 1) // 2))
    return float((edges[place] + edges[place + 1]) / 2)


def nearest_few(found: Sequence[Exemplar], keep: int) -> tuple[Exemplar, ...]:
    """Of each cluster the nearest to its centre: kept ones for the larger half of `keep`, dropped ones for the rest."""
    groups: dict[tuple[int, bool], list[Exemplar]] = {}
    for exemplar in found:
        groups.setdefault((exemplar.cluster_id, exemplar.selected), []).append(exemplar)
    most = {True: keep - keep // 2, False: keep // 2}
    ordered = (
        sorted(group, key=lambda e: (e.sq_distance, e.sample_id))[: most[key[1]]]
        for key, group in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    )
    return tuple(exemplar for group in ordered for exemplar in group)


@dataclass(frozen=True)
class Measure:
    """A part to Figures. Only scored samples count; a dropped exemplar is one that the cut or max_ifd dropped."""

    num_clusters: int
    exemplars: int

    def __call__(self, tables: list[pa.Table]) -> Figures:
        part = tables[0].schema.metadata[b"part"].decode()
        columns = {
            name: column for table in tables[:3] for name, column in zip(table.column_names, table.columns, strict=True)
        }
        columns["cluster_id"] = columns["cluster_id"].fill_null(-1)  # of a sample that is never eligible
        values = _values(pa.table({**columns, "row": np.arange(len(tables[0]))}).filter(columns["ifd"].is_valid()))
        selected = values["reason"] == SELECTED
        counts = {
            name: np.stack([_count(name, values[name]), _count(name, values[name][selected])]) for name in QUANTITIES
        }
        inside = values["cluster_id"] >= 0
        values = {name: column[inside] for name, column in values.items()}
        selected, cluster = values["reason"] == SELECTED, values["cluster_id"]
        return Figures(
            counts,
            np.stack([_count("ifd", values["ifd"][cluster == k]) for k in range(self.num_clusters)]),
            np.asarray(np.bincount(cluster, values["sq_distance"], self.num_clusters), np.float64),
            np.bincount(cluster[selected], minlength=self.num_clusters),
            nearest_few(self._exemplars(values, part), self.exemplars),
            self.exemplars,
        )

    def _exemplars(self, values: Mapping[str, NDArray[Any]], part: str) -> list[Exemplar]:
        (shown,) = np.nonzero(np.isin(values["reason"], [SELECTED, BELOW_CUT, IFD_TOO_HIGH]))
        shown = _first_of_each(
            2 * values["cluster_id"] + (values["reason"] == SELECTED), shown, values["sq_distance"], self.exemplars
        )
        names = ("reason", "ifd", "perplexity_conditional", "perplexity_unconditional", "response_tokens")
        return [
            Exemplar(
                float(values["sq_distance"][n]),
                values["sample_id"][n],
                part,
                int(values["row"][n]),
                int(values["cluster_id"][n]),
                *(values[name][n].item() if name != "reason" else values[name][n] for name in names),
            )
            for n in shown
        ]


def project(x_ND: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float32], float]:
    """[N, 2]: rows on their first two principal components, and the share of their variance that these explain."""
    from sklearn.decomposition import PCA

    if len(x_ND) < 2:  # nothing varies
        return np.zeros((len(x_ND), 2), np.float32), 0.0
    pca = PCA(min(2, *x_ND.shape), random_state=seed)
    xy = np.pad(pca.fit_transform(x_ND), ((0, 0), (0, 2)))[:, :2]
    return xy, float(pca.explained_variance_ratio_.sum())


def _values(rows: pa.Table) -> dict[str, NDArray[Any]]:
    values = {name: rows.column(name).to_numpy() for name in rows.column_names}
    n = values["num_response_tokens"].astype(float)
    return values | {
        "perplexity_conditional": np.exp(values["nll_conditional"] / n),
        "perplexity_unconditional": np.exp(values["nll_unconditional"] / n),
        "response_tokens": values["num_response_tokens"],
        "instruction_tokens": values["num_instruction_tokens"],
    }


def _first_of_each(
    group_N: NDArray[Any], among: NDArray[np.int64], key_N: NDArray[Any], count: int
) -> NDArray[np.int64]:
    """Of the rows `among`, the `count` of each group with the lowest keys."""
    order = among[np.lexsort([key_N[among], group_N[among]])]
    rank = np.arange(len(order)) - np.searchsorted(group_N[order], group_N[order])
    return np.asarray(order[rank < count])


def _count(name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    edges = FINE[name]
    return np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], 0)), edges)[0].astype(np.int64)

"""Where the method is out of its depth: for every warning a lake that fires it, and a healthy one that fires none."""

import re

import numpy as np
import pyarrow as pa
import pytest

from raypipe.config import Select
from raypipe.lake import Lake
from raypipe.ops import warnings
from raypipe.ops.selection import mark
from raypipe.ops.text import sample_id
from raypipe.part import Table, add_up, commit_part, read_footers
from raypipe.stage import Inputs
from raypipe.stages import cluster, pack, select
from raypipe.store import Folder
from tests.ops.test_selection import cuts_of, row, tables
from tests.stages import test_cluster, test_select


def warned(folder, *, ifd=(0.3, 0.99), num_clusters=4, rising=0.0, short=0.0, num_rows=800, **keys):
    """What select says of a lake of four parts. IFD is uniform between two ends; lengths are 20 to 200 tokens, `rising` with the IFD, and
    short where the IFD is in the top share `short`."""
    rng = np.random.default_rng(0)
    place = rng.random(num_rows)
    tokens = rng.integers(20, 200, num_rows) * np.exp(rising * (place - 0.5))
    tokens = np.where(place > 1 - short, 5, np.maximum(tokens, 1)).astype(int)
    values = ifd[0] + place * (ifd[1] - ifd[0])
    rows = [row(n, float(v), int(t), n % num_clusters) for n, (v, t) in enumerate(zip(values, tokens, strict=True))]
    rule = Select(held_out_fraction=0.05, **keys)
    parts = [tables(rows[number::4]) for number in range(4)]
    cuts = cuts_of([[part] for part in parts], rule)
    names = tuple(f"part-{number:07d}.parquet" for number in range(4))
    score, made = (
        Table(Folder(str(folder / stage)), names, manifest={"rows": num_rows}) for stage in ("score", "select")
    )
    for name, part in zip(names, parts, strict=True):
        commit_part(score.folder, name, part[2], counts={})
        commit_part(made.folder, name, mark(part, rule, 0, cuts)[0], counts={})
    return select.warned(rule, cuts, score, made)


@pytest.mark.parametrize(
    ("lake", "keys", "said"),
    [
        ({}, {}, None),
        ({"ifd": (0.02, 0.4)}, {}, r"IFD is low everywhere: median 0\.2\d\d \(below 0\.25\).*score with a model"),
        ({"ifd": (0.9, 0.98)}, {}, r"IFD is flat: half of all samples lie between 0\.9\d\d and 0\.9\d\d .*cluster_random"),
        ({"ifd": (0.5, 1.4)}, {}, r"4\d% of the scored samples have an IFD of 1 or more.*Check template"),
        ({"short": 0.3}, {}, r"scores are dominated by short responses: \d+% of what is kept has fewer than 16 tokens, \d+% of what was eligible\..*short responses out"),
        ({"rising": 2.0}, {}, r"selection favours long responses: median \d+ -> \d+ tokens\. Compare with select\.strategy=cluster_random"),
        ({"rising": -2.0}, {}, r"selection favours short responses"),
        ({"rising": 2.0}, {"strategy": "longest"}, None),  # asked for
        ({"rising": 2.0}, {"strategy": "cluster_random"}, None),
        ({"num_clusters": 390}, {}, r"of \d+ groups keep nothing: \d+ eligible samples, 2 in the largest.*Lower cluster\.num_clusters"),
        ({"num_clusters": 390}, {"strategy": "global_ifd"}, None),
    ],
    ids=lambda value: "_".join(map(str, value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_selection_knows_when_it_means_little(lake, keys, said, tmp_path):
    """A number that is noise looks like any other: without a word the user trains on it."""
    found = warned(tmp_path, **lake, **keys)
    if said is None:
        assert found == []
    else:
        assert any(re.search(said, text) for text in found), found


@pytest.mark.usefixtures("ray_here")
def test_clusters_of_noise(tmp_path):
    """Embeddings without structure are cut into as many clusters as asked, and look like any."""
    blobs = test_cluster.embeddings(tmp_path / "blobs", num_parts=4)
    assert cluster.run(test_cluster.config(tmp_path), blobs, Folder(str(tmp_path / "a"))).summary["warnings"] == []
    rng, noise = np.random.default_rng(0), Folder(str(tmp_path / "noise"))
    for number, name in enumerate(blobs["embed"].parts):
        x = rng.normal(size=(500, 256)).astype(np.float16)
        ids = [sample_id(f"{number} {n}", "") for n in range(500)]
        table = pa.table({"sample_id": ids, "embedding": cluster_column(x)})
        commit_part(noise, name, table, counts={"ok": 500})
    manifest = add_up(read_footers(noise, blobs["embed"].parts).values())
    inputs = Inputs(blobs.lake, {"embed": Table(noise, blobs["embed"].parts, manifest=manifest)})
    (said,) = cluster.run(test_cluster.config(tmp_path), inputs, Folder(str(tmp_path / "b"))).summary["warnings"]
    assert "clusters do not cohere: mean silhouette 0.0" in said and "Try raypipe sweep-k" in said


def cluster_column(x):
    return test_cluster.embedding_column(x, np.ones(len(x), bool))


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("words", "max_length", "said"),
    [
        ((5, 120), 1024, None),
        ((58, 60), 1024, "packing gains little: padding would take only"),
        ((300, 320), 512, "of the samples are longer than half a pack, and no two of those share one. Raise pack.max_length"),
        ((5, 120), 20_000, "there are only 3 packs, and what is left of the last weighs. Lower pack.max_length"),
    ],
)  # fmt: skip
def test_packs_that_gain_little(words, max_length, said, tmp_path, random_model):
    """Who packs for the paper's 28 % of time and does not get them wants to know why."""
    rng, names = np.random.default_rng(0), ["part-0000000.parquet"]
    responses = [" ".join(["word"] * int(rng.integers(*words))) for _ in range(500)]
    ids = [sample_id(str(n), "") for n in range(500)]
    made = {
        "ingest": pa.table({"sample_id": ids, "instruction": ["do"] * 500, "response": responses}),
        "cluster": pa.table({"cluster_id": pa.array([0] * 500, pa.int32())}),
        "select": pa.table({"reason": ["selected"] * 500}),
    }
    found = {}
    for stage, table in made.items():
        footer, _ = commit_part(Folder(str(tmp_path / stage)), names[0], table, counts={"selected": 500})
        found[stage] = Table(Folder(str(tmp_path / stage)), tuple(names), manifest={"rows": 500, "parts": [footer]})
    config = test_select.config(tmp_path)
    config = config.model_copy(
        update={"model": str(random_model), "pack": config.pack.model_copy(update={"max_length": max_length})}
    )
    summary = pack.run(config, Inputs(Lake((), ("a" * 12,)), found), Folder(str(tmp_path / "out"))).summary
    assert [said in text for text in summary["warnings"]] == ([True] if said else []), summary


def test_few_steps():
    assert warnings.of_steps(100) == [] and "only 99 optimiser steps" in warnings.of_steps(99)[0]


def test_secrets_by_kind():
    figures = {"secrets: E-mail address": 79, "secrets: Public IP (ipv4)": 1200, "other": 3}
    (said,) = warnings.of_secrets(figures, "count")
    assert "1,200 Public IP (ipv4), 79 E-mail address." in said and said.endswith("clean.secrets=drop")
    assert (
        warnings.of_secrets(figures, "drop")[0].endswith("They were left out") and warnings.of_secrets({}, None) == []
    )


def test_all_of_a_run_in_the_order_of_its_stages():
    """Also of stages that have none, and of manifests of before there were any."""
    manifests = {
        "ingest": {"summary": {}},
        "cluster": {"summary": {"warnings": ["a"]}},
        "select": {"summary": {"warnings": ["b", "c"]}},
    }
    assert warnings.said(manifests) == ["a", "b", "c"]

"""The stage on Ray: as sort-and-cut says under any number of actors, what its files say, what is refused."""

import json

import numpy as np
import pyarrow as pa
import pytest

from raypipe.config import Config
from raypipe.errors import DataError
from raypipe.lake import Lake
from raypipe.part import Table, commit_part
from raypipe.stage import Inputs
from raypipe.stages import select
from raypipe.store import Folder
from tests.ops.test_selection import brute_force, tables

pytestmark = pytest.mark.usefixtures("ray_here")


def config(root, **keys):
    tree = {
        "name": "t", "model": "m", "ingest": {"paths": ["x"], "carry": ["lang", "quality"]}, "embed": {"model": "e"},
        "storage": {"root": str(root)}, "select": {"held_out_fraction": 0.1, **keys},
    }  # fmt: skip
    return Config.model_validate_json(json.dumps(tree))


def lake(folder, num_parts=8, num_rows=150):
    """Parts of clean, cluster and score, as inputs; and the tables themselves."""
    rng, parts, names = np.random.default_rng(0), [], []
    for number in range(num_parts):
        rows = [
            (
                f"{number} {n}",
                ["ok", "ok", "ok", "duplicate"][rng.integers(4)],
                ["ok", "ok", "ok", "non_finite"][rng.integers(4)],
                [round(1.2 * rng.random(), 2), 0.5][rng.integers(2)],  # many are equal
                int(rng.integers(1, 9)),
                int(rng.integers(3)),
                [None, "python", "rust"][rng.integers(3)],
                [None, "none", str(rng.integers(50))][rng.integers(3)],
            )
            for n in range(num_rows if number != 3 else 0)
        ]
        parts.append(tables(rows))
        names.append(f"part-{number:07d}.parquet")
        for stage, table in zip(("clean", "cluster", "score"), parts[-1], strict=True):
            commit_part(Folder(str(folder / stage)), names[-1], table, counts={})
    manifest = {"rows": sum(len(part[0]) for part in parts)}
    stages = ("clean", "cluster", "score")
    found = {stage: Table(Folder(str(folder / stage)), tuple(names), manifest=manifest) for stage in stages}
    return Inputs(Lake((), ("a" * 12,)), found), parts


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"strategy": "cluster_random", "fraction_of": "cluster", "keep_fraction": 0.3},
        {"strategy": "global_ifd", "min_ifd": 0.2, "num_samples": 123},
        {"num_tokens": 5000, "per": "lang"},
        {"strategy": "column", "column": "quality"},
    ],
    ids=lambda keys: keys.get("strategy", "paper"),
)
def test_equals_sort_and_cut(keys, tmp_path):
    inputs, parts = lake(tmp_path)
    out, asked = Folder(str(tmp_path / "out")), config(tmp_path, **keys)
    result = select.run(asked, inputs, out)
    made = pa.concat_tables(Table(out, inputs["clean"].parts).read(part) for part in inputs["clean"].parts)
    wanted = brute_force(parts, asked.select, asked.seed)
    assert made["reason"].to_pylist() == wanted
    groups = json.loads(out.read("cuts.json"))
    assert sum(group["keep"] for group in groups) == result.summary["kept"] == wanted.count("selected") > 0
    tokens = pa.concat_tables(part[2] for part in parts)["num_response_tokens"].to_numpy() * 4
    kept_tokens = sum(footer["figures"]["kept_tokens"] for footer in result.parts.values())
    assert kept_tokens == tokens[made["selected"].to_numpy()].sum() <= keys.get("num_tokens", np.inf)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"min_ifd": 0.995, "max_ifd": 0.996}, "widen the band"),
        ({"keep_fraction": 0.0001}, r"select\.keep_fraction: 0\.0001 of 3 groups of at most \d+ samples keeps none"),
        ({"num_tokens": 3}, r"select\.num_tokens: 3 of 3 groups"),
    ],
)
def test_what_keeps_nothing_is_refused(keys, said, tmp_path):
    inputs, _ = lake(tmp_path)
    with pytest.raises(DataError, match=said):
        select.run(config(tmp_path, **keys), inputs, Folder(str(tmp_path / "out")))

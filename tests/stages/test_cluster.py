"""The stage on Ray: bits under any number of actors, frozen centres, bounded clusters, what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from raypipe.config import Config
from raypipe.errors import ConfigError, DataError
from raypipe.lake import Lake
from raypipe.ops import kmeans
from raypipe.ops.splitting import split
from raypipe.ops.text import sample_id
from raypipe.part import Table, add_up, commit_part, read_footers
from raypipe.recipes import STAGES
from raypipe.stage import Inputs, folder_name, recipe
from raypipe.stages import cluster
from raypipe.stages.embed import embedding_column
from raypipe.store import Folder
from tests.lakes import PROJECT, ray_workers


def config(root, actors=(1, 1), **keys):
    """One actor: to start more takes longer than what they do here. `None`: as many as fit."""
    tree = {
        "name": "t", "model": "m", "ingest": {"paths": ["x"]}, "embed": {"model": "e"}, "storage": {"root": str(root)},
        "cluster": {"num_clusters": 6, **keys}, "resources": {"cluster": {"actors": actors}},
    }  # fmt: skip
    return Config.model_validate_json(json.dumps(tree))


def embeddings(folder, shift=0.0, seed=0, num_parts=10, num_rows=120, dimensions=16):
    """Parts as embed's, of blobs around ten centres, some rows without one; as an input."""
    rng, out, names = np.random.default_rng(seed), Folder(str(folder)), []
    blobs = np.random.default_rng(9).normal(size=(10, dimensions)) + shift
    for number in range(num_parts):
        x = blobs[rng.integers(10, size=num_rows)] + 0.4 * rng.normal(size=(num_rows, dimensions))
        there = rng.random(num_rows) > 0.05
        ids = [sample_id(f"{seed} {number} {row}", "") for row in range(num_rows)]
        table = pa.table({"sample_id": ids, "embedding": embedding_column(x[there].astype(np.float16), there)})
        names.append(f"part-{number:07d}-0000-aaaaaaaaaaaa-end.parquet")
        commit_part(out, names[-1], table, counts={"ok": int(there.sum()), "null": int((~there).sum())})
    manifest = add_up(read_footers(out, names).values())
    return Inputs(Lake((), ("a" * 12,)), {"embed": Table(out, tuple(names), manifest=manifest)})


def columns(folder, inputs):
    table = pa.concat_tables(Table(folder, inputs["embed"].parts).read(part) for part in inputs["embed"].parts)
    return table["cluster_id"].to_pylist(), table["sq_distance"].to_pylist()


def bits(folder, inputs):
    names = ("centers.npy", "counts.npy", "distances.npy")
    footers = read_footers(folder, inputs["embed"].parts)
    return [folder.read(name).hex() for name in names], [footers[name]["columns"] for name in inputs["embed"].parts]


def fit_with_actors(root, number, kills):
    """In a process of its own, whose Ray believes in eight CPUs."""
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    inputs, advance, rounds = embeddings(os.path.join(root, "embed")), kmeans.Fit.advance, []

    def advance_and_kill(fit, fold, state):
        rounds.append(state)
        if kills and len(rounds) == 3:
            ray_workers("_Shard")[0].kill()
        return advance(fit, fold, state)

    kmeans.Fit.advance = advance_and_kill
    out = Folder(os.path.join(root, f"out-{number}-{kills}"))
    cluster.run(config(root, [number, number]), inputs, out)
    print(json.dumps([len(rounds), bits(out, inputs)]))


@pytest.mark.slow
def test_same_bits_with_any_number_of_actors_and_a_killed_one(tmp_path):
    """A resumed run on another cluster must not mix two fits."""
    found = []
    for number, kills in ((1, False), (2, False), (5, False), (2, True)):
        code = f"from tests.stages.test_cluster import fit_with_actors; fit_with_actors({str(tmp_path)!r}, {number}, {kills})"
        done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        rounds, made = json.loads(done.stdout.splitlines()[-1])
        assert rounds > 3
        found.append(made)
    assert all(made == found[0] for made in found)


@pytest.mark.usefixtures("ray_here")
class TestOnRay:
    def test_assignment_is_that_of_the_centres(self, tmp_path):
        """And what the manifest says is what the columns hold, row by row."""
        inputs, out = embeddings(tmp_path / "embed"), Folder(str(tmp_path / "out"))
        result = cluster.run(config(tmp_path, actors=None), inputs, out)
        centers = cluster.load_npy(out, "centers.npy")
        table = pa.concat_tables(inputs["embed"].read(part) for part in inputs["embed"].parts)
        there = table["embedding"].is_valid().to_numpy()
        x = kmeans.rows_of(table, "cosine")
        full = ((x[:, None] - centers[None]) ** 2).sum(2)
        ids, distances = (np.array(column, dtype=object) for column in columns(out, inputs))
        assert ids[there].tolist() == full.argmin(1).tolist() and set(ids[~there]) == {None} == set(distances[~there])
        assert distances[there].astype(float) == pytest.approx(full.min(1), abs=1e-5)
        two = np.sqrt(np.sort(full, 1)[:, :2])
        summary = result.summary
        assert summary["inertia"] == pytest.approx(full.min(1).mean(), abs=1e-5)
        assert summary["silhouette"] == pytest.approx((1 - two[:, 0] / two[:, 1]).mean(), abs=1e-4)
        assert summary["cluster_sizes"] == np.bincount(full.argmin(1), minlength=6).tolist()
        assert cluster.load_npy(out, "counts.npy").tolist() == summary["cluster_sizes"] and summary["warnings"] == []

    def test_frozen_centres_and_drift(self, tmp_path):
        """Next month's lake keeps this month's clusters, and says when they no longer fit it."""
        inputs, fitted = embeddings(tmp_path / "embed"), Folder(str(tmp_path / "fitted"))
        cluster.run(config(tmp_path), inputs, fitted)
        frozen = config(tmp_path, centers=fitted.uri("centers.npy"))
        same = cluster.run(frozen, inputs, Folder(str(tmp_path / "same")))
        assert columns(Folder(str(tmp_path / "same")), inputs) == columns(fitted, inputs)
        assert same.summary["drift"] == 0 and same.summary["warnings"] == []
        alike = cluster.run(frozen, embeddings(tmp_path / "alike", seed=1), Folder(str(tmp_path / "alike-out")))
        assert 0 < alike.summary["drift"] < 0.1 and alike.summary["warnings"] == []
        other = cluster.run(frozen, embeddings(tmp_path / "other", shift=2.0), Folder(str(tmp_path / "other-out")))
        assert other.summary["drift"] > 0.3 and "lie elsewhere" in other.summary["warnings"][0]
        fitted.delete("distances.npy")
        unknown = cluster.run(frozen, inputs, Folder(str(tmp_path / "unknown")))
        assert unknown.summary["drift"] is None and "drift is unknown" in unknown.summary["warnings"][0]

    def test_semantic_duplicates(self, tmp_path):
        """Asking for them changes no cluster and no figure; a rerun finds its parts made."""
        inputs, out = embeddings(tmp_path / "embed"), Folder(str(tmp_path / "out"))
        asked = config(tmp_path, semantic_similarity=0.9)
        made = cluster.run(asked, inputs, out)
        rows = [
            (place, row)
            for place, part in enumerate(inputs["embed"].parts)
            for row in range(len(inputs["embed"].read(part)))
        ]
        tables = [
            out_table.to_pylist() for out_table in (Table(out, tuple(made.parts)).read(part) for part in made.parts)
        ]
        vectors = [row["embedding"] for part in inputs["embed"].parts for row in inputs["embed"].read(part).to_pylist()]
        unit = [np.array(v, np.float32) / np.linalg.norm(v) if v is not None else None for v in vectors]
        ids = [row["cluster_id"] for table in tables for row in table]
        found = [row["repeats"] for table in tables for row in table]
        for later, said in enumerate(found):
            near = [
                n for n in range(later) if ids[n] is not None and ids[n] == ids[later] and unit[n] @ unit[later] >= 0.9
            ]
            assert said == (f"{inputs['embed'].parts[rows[near[0]][0]]} {rows[near[0]][1]}" if near else None)
        assert any(found) and not all(found)
        plain = cluster.run(config(tmp_path), inputs, Folder(str(tmp_path / "plain")))
        assert made.summary == plain.summary and columns(out, inputs) == columns(
            Folder(str(tmp_path / "plain")), inputs
        )
        assert set(cluster.run(asked, inputs, out).parts.values()) == {None}, "parts were made again"

    def test_a_large_cluster_is_split(self, tmp_path):
        """One cluster of half a lake makes 'the top share of every cluster' a global cut."""
        inputs = embeddings(tmp_path / "embed")
        whole = cluster.run(config(tmp_path, num_clusters=2), inputs, Folder(str(tmp_path / "two"))).summary
        assert max(whole["cluster_sizes"]) > 0.4 * sum(whole["cluster_sizes"])
        bounded = config(tmp_path, num_clusters=2, max_cluster_fraction=0.2)
        sizes = cluster.run(bounded, inputs, Folder(str(tmp_path / "bounded"))).summary["cluster_sizes"]
        assert len(sizes) > 5 and max(sizes) <= 0.2 * sum(sizes) and sum(sizes) == sum(whole["cluster_sizes"])

    def test_what_is_refused(self, tmp_path):
        inputs, out = embeddings(tmp_path / "embed", num_parts=1, num_rows=8), Folder(str(tmp_path / "out"))
        with pytest.raises(DataError, match=r"num_clusters: 50 clusters asked for, \d samples there"):
            cluster.run(config(tmp_path, num_clusters=50), inputs, out)
        (tmp_path / "text.npy").write_text("no array")
        np.save(tmp_path / "flat.npy", np.zeros(3))
        np.save(tmp_path / "other.npy", np.zeros((3, 8), np.float32))
        for name, said in (
            ("text", "is no array of numpy"),
            ("flat", r"float64 of shape \(3,\), wanted finite numbers of shape"),
            ("other", "centres have 8 dimensions, wanted the 16 of the embeddings"),
        ):
            with pytest.raises(ConfigError, match=said):
                cluster.run(
                    config(tmp_path, centers=str(tmp_path / f"{name}.npy")), inputs, Folder(str(tmp_path / name))
                )


def test_rows_that_are_all_the_same_end_a_split():
    """A lake of one instruction a thousand times must not split for ever."""
    drawn = kmeans.Drawn(np.ones((50, 4), np.float32), np.arange(50, dtype=np.uint64))
    fit = kmeans.Fit(50, 1, "euclidean", seed=0)
    state = kmeans.State(np.ones((1, 4), np.float32), 1.0, done=True)
    assert split(fit, lambda function: function(drawn), state, 0.1).shape == (1, 4)


def test_rows_that_are_nearly_all_the_same_end_a_split():
    """Each halving may take away one odd row only: a bound, and a warning in the manifest, end that."""
    x = np.concatenate([np.ones((900, 4)), 5 * np.eye(4)[np.arange(100) % 4] * np.linspace(1, 9, 100)[:, None]])
    drawn = kmeans.Drawn(kmeans.on_grid(x.astype(np.float32)), np.arange(1000, dtype=np.uint64))
    state = kmeans.State(x[:1].astype(np.float32), 1.0, done=True)
    centers = split(kmeans.Fit(1000, 1, "euclidean", seed=0), lambda function: function(drawn), state, 0.5)
    assert 2 <= len(centers) <= 9


def test_frozen_centres_make_the_stage_row_wise(tmp_path):
    """Else every lake that grew would be assigned anew from its first part; other centres must be another folder."""
    stage = next(stage for stage in STAGES if stage.name == "cluster")
    np.save(tmp_path / "one.npy", np.zeros((3, 8), np.float32))
    np.save(tmp_path / "two.npy", np.ones((3, 8), np.float32))

    def folder(lake, **keys):
        return folder_name(recipe(stage, config(tmp_path, **keys), {"embed": "embed-0"}, lake))

    one, two = ({"centers": str(tmp_path / f"{name}.npy")} for name in ("one", "two"))
    assert folder("a", **one) == folder("b", **one) == folder("a", num_clusters=50, **one)
    assert len({folder("a", **one), folder("a", **two), folder("a", metric="euclidean", **one), folder("a")}) == 4
    assert folder("a") != folder("b")
    with pytest.raises(ConfigError, match=r"cluster\.centers: .*gone\.npy is not there"):
        folder("a", centers=str(tmp_path / "gone.npy"))

"""Rows of the user's own in place of a model's: the same selection as computed, whatever their order; what is missing or odd is said."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe import given as bring
from raypipe import read
from raypipe.errors import ConfigError, DataError, Stopped
from raypipe.given import exchange, put_beside
from raypipe.lake import Lake
from raypipe.ops.text import sample_id
from raypipe.part import Table, commit_part
from raypipe.stages import cluster, embed, score
from raypipe.store import Folder
from tests.lakes import digests, manifest, raypipe
from tests.s3.fake import BUCKET, moto_bucket

LAKE = Lake((), ("a" * 12,))


def lake(folder, sizes):
    """Parts with sample_ids; the first row of each part after the first repeats one before it."""
    ids, names = [], []
    for number, size in enumerate(sizes):
        mine = [sample_id(f"{number} {row}", "") for row in range(size)]
        if number and size and ids[0]:
            mine[0] = ids[0][0]
        ids.append(mine)
        names.append(f"part-{number:07d}.parquet")
        commit_part(
            Folder(str(folder)), names[-1], pa.table({"sample_id": pa.array(mine, pa.string())}), counts={"ok": size}
        )
    return Table(Folder(str(folder)), tuple(names), manifest={"counts": {"ok": sum(sizes)}}), ids


@pytest.fixture
def one_by_one(monkeypatch):
    """Items one after the other, in this process."""
    monkeypatch.setattr(bring, "map_items", lambda function, work, **_: [function(item) for item in work])


def beside(made, samples, folder):
    """Parts with what was given, row for row."""
    out = Folder(str(folder))
    parts = put_beside(made, samples, lambda mine, rows: rows.add_column(0, "sample_id", mine["sample_id"]), out)
    assert list(parts) == list(samples.parts) and all(parts.values())
    return Table(out, samples.parts)


@pytest.mark.usefixtures("one_by_one")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(sum),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_any_order_in_any_files(tmp_path_factory, sizes, num_files, random):
    """Rows of another sample, or of none, would be selected by; of two rows of one id the first counts, and a rerun gives the same."""
    folder = tmp_path_factory.mktemp("given")
    samples, ids = lake(folder / "samples", sizes)
    known = list(dict.fromkeys(one for part in ids for one in part))
    brought = [
        *random.sample(known, random.randint(1, len(known))),
        sample_id("another", ""),
        *random.choices(known, k=3),
    ]
    values = [float(n) for n in range(len(brought))]
    (folder / "files").mkdir()
    cuts = sorted(random.choices(range(len(brought) + 1), k=num_files - 1))
    for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(brought)], strict=True)):
        rows = pa.table(
            {"sample_id": pa.array(brought[a:b], pa.string()), "value": pa.array(values[a:b], pa.float64())}
        )
        pq.write_table(rows, folder / "files" / f"{number}.parquet", row_group_size=2)
    files, out = [str(folder / "files")], Folder(str(folder / "out"))
    made = exchange("given", files, ["value"], lambda rows: rows, samples, out, LAKE, None)
    wanted = dict(reversed(list(zip(brought, values, strict=True))))
    placed = beside(made, samples, folder / "beside")
    before: set[str] = set()
    for part, mine in zip(samples.parts, ids, strict=True):
        found = placed.read(part).column("value").to_pylist()
        assert found == [None if one in before else wanted.get(one) for one in mine]
        before |= set(mine)
    assert (made.rows, made.unknown) == (len(brought), 1)
    whole = sorted((file.uri, file.size) for file in out.walk())
    for name in (name for name in made.folder.list() if name.endswith("0000.json")):
        made.folder.delete(name)  # as a kill leaves it: rows are there, their account is not
    again = exchange("given", files, ["value"], lambda rows: rows, samples, out, LAKE, None)
    for file in [file for file in out.walk() if "_given" in file.uri and file.uri.endswith(".parquet")][::2]:
        made.folder.delete(
            file.uri[len(made.folder.path) + 1 :]
        )  # as --repair leaves it: the account is there, rows are not
    again = exchange("given", files, ["value"], lambda rows: rows, samples, out, LAKE, None)
    assert sorted((file.uri, file.size) for file in out.walk()) == whole and again == made


def shuffled(table, folder, files=3):
    """A table's rows in another order, in several files."""
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.random.default_rng(0).permutation(len(table)), files)):
        pq.write_table(table.take(rows), folder / f"{number}.parquet", row_group_size=50)
    return folder


def test_what_was_computed_may_be_given(finished, tmp_path, shared_ray):
    """All three of a finished run, in another order, give its selection again without loading a model that embeds or scores."""
    root, tables = tmp_path / "root", {}
    for stage, names in (
        ("embed", ["sample_id", "embedding"]),
        ("cluster", ["sample_id", "cluster_id"]),
        ("score", ["sample_id", *score.GIVEN]),
    ):
        tables[stage] = read(str(finished[0] / "root"), stage).to_table(columns=names).drop_null()
        shuffled(tables[stage], tmp_path / stage)
    words = [f"{stage}.given={tmp_path / stage}" for stage in tables] + ["embed.model=null", f"storage.root={root}"]
    done = raypipe("run", finished[1], *words, "--until", "select")
    assert done.returncode == 0, done.stderr
    one, two = digests(finished[0] / "root"), digests(root)
    assert one["embed"] == two["embed"] and one["select"] == two["select"]
    for stage in ("cluster", "score"):
        for mine, theirs in zip(one[stage].values(), two[stage].values(), strict=True):
            names = (
                ("cluster_id",) if stage == "cluster" else ("ifd", "nll_conditional", "num_response_tokens", "status")
            )
            assert [mine[name] for name in names] == [theirs[name] for name in names]
    summary = manifest(root, "cluster")["summary"]
    assert summary["cluster_sizes"] == manifest(finished[0] / "root", "cluster")["summary"]["cluster_sizes"]
    assert (
        summary["inertia"] <= manifest(finished[0] / "root", "cluster")["summary"]["inertia"] * 1.0001
    )  # means are the best centres
    assert [manifest(root, stage)["summary"]["warnings"] for stage in ("embed", "score")] == [[], []]


def test_what_is_missing_or_too_much_is_counted(finished, tmp_path, shared_ray):
    """A sample that is silently without a score is one that can never be selected, and nobody knows why."""
    root = tmp_path / "root"
    shutil.copytree(finished[0] / "root", root)
    embeddings = read(str(root), "embed").to_table().drop_null().slice(7)
    scores = read(str(root), "score").to_table(columns=["sample_id", *score.GIVEN]).drop_null().slice(0, 150)
    extra = scores.slice(0, 2).set_column(0, "sample_id", pa.array([sample_id("a", "b"), sample_id("c", "d")]))
    shuffled(embeddings, tmp_path / "embed")
    shuffled(pa.concat_tables([scores, extra]), tmp_path / "score")
    words = [f"{stage}.given={tmp_path / stage}/*.parquet" for stage in ("embed", "score")]
    done = raypipe(
        "run", finished[1], *words, "embed.model=null", f"storage.root={root}", "name=own", "--until", "select"
    )
    assert done.returncode == 0, done.stderr
    samples = manifest(root, "clean", "own")["counts"]["ok"]
    assert f"! embed.given: 7 of {samples} samples are not among the given rows, and are never selected" in done.stdout
    assert f"! score.given: {samples - 150} of {samples} samples are not among" in done.stdout
    assert "! score.given: 2 of 152 given ids are of no sample of this lake" in done.stdout
    counts = manifest(root, "score", "own")["counts"]
    assert counts["not_given"] == samples - 150 and counts["ok"] <= 150
    reasons = manifest(root, "select", "own")["counts"]
    assert 0 < reasons["no_cluster"] <= 7 and reasons["not_given"] > 0
    lost = (
        read(str(root), "select", "own").to_table().filter(pc.field("reason") == "no_cluster")["sample_id"][0].as_py()
    )
    told = raypipe("explain", finished[1], lost, f"storage.root={root}", "name=own", *words, "embed.model=null")
    assert "no_cluster" in told.stdout and "not among the given rows" in told.stdout, told.stderr


def test_from_s3_to_s3(tmp_path, monkeypatch, one_by_one):
    """Users' files lie where the lake lies."""
    samples, ids = lake(tmp_path / "samples", [5, 4])
    known = [*ids[0], *ids[1][1:]]
    ids_and_texts = {"sample_id": known[::-1], "response": ["a text that nobody asked for"] * len(known)}
    rows = pa.table({**ids_and_texts, "cluster_id": pa.array(range(len(known)), pa.int64())})
    pq.write_table(rows, tmp_path / "x.parquet")
    with moto_bucket(monkeypatch, tmp_path):
        Folder.at(f"s3://{BUCKET}/mine").put("x.parquet", (tmp_path / "x.parquet").read_bytes())
        files, out = [f"s3://{BUCKET}/mine/*.parquet"], Folder.at(f"s3://{BUCKET}/out")
        made = exchange("cluster.given", files, ["cluster_id"], cluster.clusters_of, samples, out, LAKE, None)
        placed = beside(made, samples, tmp_path / "beside")
    wanted = dict(zip(known[::-1], range(len(known)), strict=True))
    assert placed.read(samples.parts[0])["cluster_id"].to_pylist() == [wanted[one] for one in ids[0]]
    assert placed.read(samples.parts[1])["cluster_id"].to_pylist() == [None, *(wanted[one] for one in ids[1][1:])]


def test_a_lake_that_grows_and_files_that_change(tmp_path, one_by_one, monkeypatch):
    """A row whose sample comes later must find it; of files that change under a run nothing is taken."""
    samples, ids = lake(tmp_path / "samples", [3, 4])
    rows = pa.table({"sample_id": [*ids[1][1:], *ids[0]], "value": [float(n) for n in range(6)]})
    pq.write_table(rows, tmp_path / "x.parquet")
    before, out = Table(samples.folder, samples.parts[:1], manifest=samples.manifest), Folder(str(tmp_path / "out"))
    words = ("given", [str(tmp_path / "x.parquet")], ["value"], lambda rows: rows)
    first = exchange(*words, before, out, LAKE, None)
    assert first.unknown == 3 and len(put_beside(first, before, lambda mine, rows: rows, out)) == 1
    grown = exchange(*words, samples, out, Lake((), ("a" * 12, "b" * 12)), None)
    assert grown.unknown == 0
    put_beside(grown, samples, lambda mine, rows: rows, out)
    assert Table(out, samples.parts).read(samples.parts[1])["value"].to_pylist() == [None, 0, 1, 2]

    def changed(rows):
        pq.write_table(rows, tmp_path / "x.parquet", compression="none")
        return rows

    with pytest.raises(Stopped, match=r"x\.parquet was changed since it was listed"):
        exchange(*words[:3], changed, samples, Folder(str(tmp_path / "other")), LAKE, None)


ID = sample_id("a", "b")


@pytest.mark.parametrize(
    ("stage", "columns", "said"),
    [
        (embed, {"embedding": [[1.0]]}, "wanted sample_id as text"),
        (embed, {"sample_id": ["12"], "embedding": [[1.0]]}, "got sample_id '12', wanted 32 hexadecimal digits"),
        (embed, {"sample_id": [ID], "vector": [[1.0]]}, "wanted embedding too"),
        (embed, {"sample_id": [ID], "embedding": ["x"]}, "column embedding: got string, wanted list"),
        (embed, {"sample_id": [ID, ID], "embedding": [[1.0], [1.0, 2.0]]}, "got 1 to 2 numbers a row"),
        (embed, {"sample_id": [ID], "embedding": [[1.0, float("nan")]]}, f"for {ID}, wanted finite numbers"),
        (embed, {"sample_id": [ID], "embedding": [[1e6]]}, "wanted finite numbers below 65,504"),
        (cluster, {"sample_id": [ID], "cluster_id": [-1]}, "got -1 to -1, wanted numbers from 0"),
        (cluster, {"sample_id": [ID], "cluster_id": [0.5]}, "column cluster_id: got double, wanted int32"),
        (score, {"sample_id": [ID], "ifd": [0.5]}, "wanted num_instruction_tokens too"),
    ],
)
def test_what_is_no_such_table_is_refused(stage, columns, said, tmp_path, one_by_one):
    """With file, what it has, what is wanted: before an hour of work."""
    samples, _ = lake(tmp_path / "samples", [3])
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    wanted, check = {
        embed: (["embedding"], embed.embeddings_of),
        cluster: (["cluster_id"], cluster.clusters_of),
        score: (list(score.GIVEN), score.scores_of),
    }[stage]
    with pytest.raises(ConfigError, match=r"given: .*x\.parquet: ") as error:
        exchange(
            "given", [str(tmp_path / "x.parquet")], wanted, check, samples, Folder(str(tmp_path / "out")), LAKE, None
        )
    assert said in str(error.value)


def test_files_that_do_not_fit_together(tmp_path, one_by_one):
    """Two models' embeddings, another lake's ids, or no Parquet at all."""
    samples, ids = lake(tmp_path / "samples", [3])
    for name, size in (("a", 2), ("b", 3)):
        pq.write_table(pa.table({"sample_id": ids[0][:1], "embedding": [[1.0] * size]}), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"sample_id": [ID], "embedding": [[1.0]]}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_text("no")

    def given_by(*names):
        files = [str(tmp_path / f"{name}.parquet") for name in names]
        exchange(
            "embed.given",
            files,
            ["embedding"],
            embed.embeddings_of,
            samples,
            Folder(str(tmp_path / "_".join(names))),
            LAKE,
            None,
        )

    with pytest.raises(ConfigError, match=r"a\.parquet has fixed_size_list.*\[2\] and .*b\.parquet has .*\[3\]"):
        given_by("a", "b")
    with pytest.raises(DataError, match=f"none of the 1 given ids is of a sample of this lake, for example {ID}"):
        given_by("c")
    with pytest.raises(ConfigError, match=r"d\.parquet is no Parquet file"):
        given_by("d")


def test_config_wants_one_source(finished):
    done = raypipe("plan", finished[1], "embed.given=/x")
    assert done.returncode == 2 and "both of embed.model and embed.given" in done.stderr
    done = raypipe("plan", finished[1], "embed.given=/no/such", "embed.model=null")
    assert done.returncode == 2 and "embed.given: /no/such: no such file" in done.stderr
    done = raypipe("plan", finished[1], "cluster.given=/x", "cluster.centers=/y")
    assert done.returncode == 2 and "both centers and given" in done.stderr

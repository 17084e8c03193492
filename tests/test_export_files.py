"""The files of an export: a law on which parts make which, and what is rare in a run, by a root that nobody ran."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe import export, export_files, load_config, pipeline
from raypipe.cli import main
from raypipe.part import add_up, commit_part
from raypipe.store import Folder
from tests.lakes import raypipe, write_config
from tests.s3.fake import BUCKET, moto_bucket
from tests.test_export import REASONS, loaded, tree, without_ray

counts = st.fixed_dictionaries({}, optional={"selected": st.integers(0, 40), "held_out": st.integers(0, 5)})


@given(st.lists(st.tuples(counts, st.integers(0, 9)), max_size=30), st.integers(1, 30))
def test_shards_are_all_parts_in_order(parts, most):
    """A part left out, twice, or out of order is samples lost, doubled or shuffled; a split of one empty file does not load."""
    listed = [
        {"name": f"part-{n}", "counts": found, "figures": {"kept_tokens": tokens * found.get("selected", 0)}}
        for n, (found, tokens) in enumerate(parts)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_files, "SHARD_SAMPLES", most)
        patch.setattr(export_files, "SHARD_TOKENS", 5 * most)
        shards = export_files.planned_shards(listed, "jsonl")
    for split, reason in REASONS.items():
        mine = [shard for shard in shards if shard.split == split]
        in_order = [part["name"] for part in listed if part["counts"].get(reason)]
        assert [part for shard in mine for part in shard.parts] == in_order and all(shard.parts for shard in mine)
        assert [shard.name for shard in mine] == [f"{split}-{n:05d}-of-{len(mine):05d}.jsonl" for n in range(len(mine))]
        total = sum(part["counts"].get(reason, 0) for part in listed)
        sizes = [sum(p["counts"][reason] for p in listed if p["name"] in shard.parts) for shard in mine]
        largest = max((part["counts"].get(reason, 0) for part in listed), default=0)
        assert sum(sizes) == total and all(size < most + largest for size in sizes)
        tokens, selected = (sum(p["figures"]["kept_tokens"] for p in listed), sum(p["counts"].get("selected", 0) for p in listed))  # fmt: skip
        assert len(mine) <= math.ceil(total / max(min(most, 5 * most * selected / max(tokens, 1)), 1))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory, random_model, embedder):
    """A root whose stages nobody ran, with what is rare: carried columns, a part without a sample, held out without a score."""
    folder = tmp_path_factory.mktemp("by-hand")
    (folder / "lake").mkdir()
    (folder / "lake" / "a.jsonl").write_text("{}\n")
    path = write_config(
        folder / "hand.yaml", model=random_model, embedder=embedder, ingest={"carry": ["license", "ifd"]}
    )
    planned = pipeline.plan(load_config(path))
    pipeline._record(planned, rewrite=True)
    parts = [["selected", "held_out", "duplicate"], ["below_cut"], ["selected", "selected", "unscored"]]
    accounts: dict[str, list] = {}
    for number, reasons in enumerate(parts):
        for stage, table in hand_made(number, reasons).items():
            found = {item["values"]: item["counts"] for item in pc.value_counts(table["reason"]).to_pylist()} if stage == "select" else {"ok": len(table)}  # fmt: skip
            footer, _ = commit_part(
                planned[stage].folder, f"part-{number}.parquet", table, counts=found, figures={"kept_tokens": 9.0}
            )
            accounts.setdefault(stage, []).append(footer)
    for stage, footers in accounts.items():
        told = {"lake": planned.lake.digest, "finished": "2026-11-27T00:00:00Z", "packages": {"raypipe": "0.1.0"}}
        told |= {
            "config": load_config(path).model_dump(mode="json"),
            "summary": {"cluster_sizes": [7]},
            "parts": footers,
            **add_up(footers),
        }
        planned[stage].folder.put(f"manifest-{planned.lake.digest}.json", json.dumps(told).encode())
    return path


def hand_made(number, reasons):
    rows = range(len(reasons))
    ids = pa.array([f"{number:016x}{row:016x}" for row in rows])
    lonely = [None if reason in ("held_out", "unscored") else 0.5 for reason in reasons]
    carried = {"license": pa.array([["MIT", None, "a`b"][row] for row in rows]), "ifd": pa.array(["mine"] * len(ids))}
    source = {"source_uri": pa.array(["/lake/a"] * len(ids)), "source_line": pa.array(rows, pa.int64())}
    texts = {name: pa.array([f"{name} {number} {row}\u2028" for row in rows]) for name in ("instruction", "response")}
    tokens = pa.array([None if ifd is None else 2 for ifd in lonely], pa.int32())
    floats = pa.array(lonely, pa.float64())
    found = {"num_instruction_tokens": tokens, "num_response_tokens": tokens, "ifd": floats}
    return {
        "ingest": pa.table({"sample_id": ids, **source, **texts, **carried}),
        "clean": pa.table({"sample_id": ids, **carried}),
        "embed": pa.table({"sample_id": ids}),
        "cluster": pa.table({"sample_id": ids, "cluster_id": pa.array(np.zeros(len(ids)), pa.int32())}),
        "score": pa.table({"sample_id": ids, **found, "nll_conditional": floats, "nll_unconditional": floats}),
        "select": pa.table({"sample_id": ids, "reason": reasons}),
    }


def test_carried_columns_and_licences(by_hand, tmp_path, monkeypatch):
    """Who publishes needs to know under which licences; a sample held out before it had a score has none, and is there."""
    without_ray(monkeypatch)
    assert main(["export", str(by_hand), str(tmp_path / "out"), "--format", "parquet"]) == 0
    found = loaded(tmp_path / "out", tmp_path / "cache")
    assert [row["license"] for row in found["train"]] == ["MIT", "MIT", None]
    assert [(row["ifd"], row["carried_ifd"]) for row in found["train"]] == [(0.5, "mine")] * 3
    assert [(row["ifd"], row["ppl_conditional"]) for row in found["test"]] == [(None, None)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "By the field `license` of the rows, the split train has:\n\n- 2 of `MIT`\n- 1 of no value\n" in card
    assert "license: other\n" in card


def test_on_s3_it_is_the_same(by_hand, tmp_path, monkeypatch, capsys):
    """Root and folder in a bucket: the same bytes as on a disk, and again nothing is done."""
    without_ray(monkeypatch)
    assert main(["export", str(by_hand), str(tmp_path / "out")]) == 0
    root = Path(load_config(by_hand).storage.root)
    with moto_bucket(monkeypatch, tmp_path) as client:
        for path in filter(Path.is_file, root.rglob("*")):
            client.put_object(Bucket=BUCKET, Key=f"root/{path.relative_to(root)}", Body=path.read_bytes())
        words = ["export", str(by_hand), f"s3://{BUCKET}/exports/mine", f"storage.root=s3://{BUCKET}/root"]
        assert main(words) == 0
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix="exports/mine/")["Contents"]
        got = {
            one["Key"].removeprefix("exports/mine/"): client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
            for one in listed
        }
        assert got == tree(tmp_path / "out")
        monkeypatch.setattr(export, "ray_session", lambda: pytest.fail("Ray was started"))
        assert main(words) == 0
        assert f"export  s3://{BUCKET}/exports/mine  (messages, whole already" in capsys.readouterr().out
        assert main([*words, "--format", "alpaca"]) == 2
        client.put_object(Bucket=BUCKET, Key="exports/other/data/train.csv", Body=b"mine")
        assert main([*words[:2], f"s3://{BUCKET}/exports/other", words[3]]) == 2
        assert "with data/train.csv in it" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_writes_to_a_real_store(by_hand, bucket, tmp_path, monkeypatch):
    """Tasks are other processes: endpoint, credentials and conditional puts must reach them."""
    root, place = Path(load_config(by_hand).storage.root), Folder.at(bucket)
    for path in filter(Path.is_file, root.rglob("*")):
        place.put(f"root/{path.relative_to(root)}", path.read_bytes())
    done = raypipe("export", by_hand, f"{bucket}/out", f"storage.root={bucket}/root", "--format", "parquet")
    assert done.returncode == 0, done.stderr
    without_ray(monkeypatch)
    assert main(["export", str(by_hand), str(tmp_path / "out"), "--format", "parquet"]) == 0
    out = place / "out"
    assert {name: out.read(name) for name in tree(tmp_path / "out")} == tree(tmp_path / "out")

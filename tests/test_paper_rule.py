"""The paper's selection against its rule written out plainly, on the scores of real samples."""

import gzip

import pytest

from raypipe import read
from tests.lakes import raypipe, write_config

NUM_ROWS = 600


@pytest.mark.slow
def test_on_code_alpaca(shared, tmp_path, random_model, embedder, shared_ray):
    """Synthetic scores have no ties, no clusters of one kind and no samples that are hard for a reason; real ones have."""
    with gzip.open(shared / "data" / "code_alpaca_20k" / "part-00.jsonl.gz") as lines:
        rows = [next(lines) for _ in range(NUM_ROWS)]
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "part-00.jsonl").write_bytes(b"".join(rows))
    columns = {"instruction": ["instruction", "input"], "response": "output"}
    path = write_config(
        tmp_path / "test.yaml", model=random_model, embedder=embedder, cluster={"num_clusters": 10},
        ingest={"columns": columns, "part_bytes": 20_000}, select={"keep_fraction": 0.4, "held_out_fraction": 0.0},
    )  # fmt: skip
    done = raypipe("run", path, "--until", "select")
    assert done.returncode == 0, done.stderr
    tables = {
        stage: read(str(tmp_path / "root"), stage).to_table() for stage in ("clean", "cluster", "score", "select")
    }
    clusters: dict[int, list[tuple[float, str]]] = {}
    for sample, cluster, ifd in zip(
        *(
            tables[stage][name].to_pylist()
            for stage, name in (("clean", "sample_id"), ("cluster", "cluster_id"), ("score", "ifd"))
        ),
        strict=True,
    ):
        if ifd is not None and ifd < 1:
            clusters.setdefault(cluster, []).append((-ifd, sample))
    wanted = {sample for survivors in clusters.values() for _, sample in sorted(survivors)[: len(survivors) * 4 // 10]}
    select = tables["select"].filter(tables["select"]["selected"])
    assert set(select["sample_id"].to_pylist()) == wanted and len(select) == len(wanted) > 50

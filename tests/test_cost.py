"""What scoring will cost, by hand."""

import pyarrow as pa
import pytest

from raypipe.cost import Batch, Cost, check_budget, cost_of_scoring, estimate, remember
from raypipe.errors import ConfigError
from raypipe.part import commit_part
from raypipe.resources import Pool
from raypipe.store import Folder

INGEST = {"parts": [{"name": f"part-{n}.parquet", "rows": rows} for n, rows in enumerate((100, 200, 300, 400))]}


def finish(folder, number, rows, **costs):
    figures = {"num_tokens": costs["tokens"], "cpu_s": costs["cpu_s"]}
    table = pa.table({"sample_id": [f"{n:032x}" for n in range(rows)]})
    commit_part(
        folder,
        f"part-{number}.parquet",
        table,
        counts={"ok": rows},
        seconds=costs["seconds"],
        idle_s=1.0,
        figures=figures,
    )


def test_from_finished_parts(tmp_path):
    """100 rows took 10 s and 200 took 20: 700 are left, 70 s. Parts of a longer lake count nothing."""
    folder = Folder(str(tmp_path))
    assert cost_of_scoring(folder, INGEST) == Cost(1000)
    finish(folder, 0, 100, tokens=5000, seconds=9, cpu_s=4)
    finish(folder, 1, 200, tokens=10_000, seconds=19, cpu_s=8)
    finish(folder, 9, 50, tokens=10**9, seconds=10**6, cpu_s=10**6)
    cost = cost_of_scoring(folder, INGEST)
    assert (cost.rows, cost.basis) == (700, "2 finished parts")
    assert cost.seconds == pytest.approx((70, 70, 70)) and cost.tokens == pytest.approx((35_000,) * 3)
    assert cost.cpu_s == pytest.approx((28,) * 3)


def test_from_rows_that_were_measured(tmp_path):
    folder = Folder(str(tmp_path))
    remember(folder, [Batch(50, 1000, 2.0, 1.0), Batch(50, 3000, 4.0, 1.0)], "a machine")
    cost = cost_of_scoring(folder, INGEST)
    assert (cost.rows, cost.basis) == (1000, "100 rows measured on a machine")
    assert cost.tokens.mid == 40_000 and cost.seconds.mid == 60 and cost.cpu_s == pytest.approx((20, 20, 20))
    assert cost.seconds.low == 0 and cost.seconds.high == pytest.approx(60 + 1000 / 50 * 12.7062, rel=1e-4)  # t(1)


def test_a_run_that_costs_too_much_is_not_started():
    """7,200 s of actors with half a GPU each are one GPU-hour."""
    known, pool = estimate([Batch(10, 100, 72.0, 1.0)] * 2, 1000, "2 finished parts"), Pool(gpus=0.5)
    check_budget(known, pool, 1.01)
    check_budget(known, Pool(), 0.01)  # CPUs only
    check_budget(Cost(0), pool, 0.01)  # nothing is left
    check_budget(Cost(10), pool, None)
    with pytest.raises(
        ConfigError, match=r"scoring 1,000 rows takes about 1 GPU-h, wanted at most 0\.99 \(from 2 finished"
    ):
        check_budget(known, pool, 0.99)
    with pytest.raises(
        ConfigError, match=r"what scoring 10 rows costs is unknown\. Measure it by: raypipe plan CONFIG --m"
    ):
        check_budget(Cost(10), pool, 5)

"""The report of a finished run: its figures against pandas, and what it may not hold."""

import json
import re
import shutil

import pandas
import pytest

from raypipe import read
from raypipe.lake import Lake
from raypipe.ops.ifd import num_scored
from raypipe.ops.style import STYLES, languages
from raypipe.part import Table
from raypipe.stage import Inputs
from raypipe.stages import report
from raypipe.store import Folder
from tests.lakes import manifest, raypipe, stage_folder

CANDIDATES = ("selected", "below_cut", "ifd_too_high", "ifd_too_low")


def rows_of(root):
    """Texts, scores, clusters and reasons of all rows, put together apart from raypipe's own way."""
    columns = {
        "ingest": ["sample_id", "instruction", "response"], "cluster": ["cluster_id"], "select": ["reason"],
        "score": ["num_response_tokens", "num_instruction_tokens", "ifd", "nll_conditional"],
    }  # fmt: skip
    return pandas.concat(
        [read(str(root), stage).to_table().to_pandas()[names] for stage, names in columns.items()], axis=1
    )


def test_what_selection_did_agrees_with_pandas(finished):
    """Who decides by these figures to train or not must be able to trust them to the sample."""
    root = finished[0] / "root"
    told, rows = json.loads((stage_folder(root, "report") / "report.json").read_text()), rows_of(root)
    found = told["composition"]
    candidates = rows[rows["reason"].isin(CANDIDATES)]
    assert found["measured_samples"] == len(candidates) and found["measured_parts"] == found["num_parts"]
    for name, some in (
        ("kept", candidates[candidates["reason"] == "selected"]),
        ("dropped", candidates[candidates["reason"] != "selected"]),
    ):
        group = found["groups"][name]
        assert group["samples"] == len(some)
        assert group["response_tokens"]["median"] == some["num_response_tokens"].median()
        assert group["instruction_tokens"]["mean"] == pytest.approx(some["num_instruction_tokens"].mean())
        for style, pattern in STYLES.items():
            share = some["response"].map(lambda text, pattern=pattern: bool(re.search(pattern, text))).mean()
            assert group[style] == pytest.approx(share), style
        assert sum(group["languages"].values()) == pytest.approx(1)
        for cluster in told["clusters"]:
            mine = some[some["cluster_id"] == cluster["cluster_id"]]
            assert cluster["composition"][name]["samples"] == len(mine)
            assert cluster["composition"][name]["response_tokens"] == pytest.approx(mine["num_response_tokens"].mean())
    assert found["groups"]["random"]["samples"] == found["groups"]["kept"]["samples"]


def test_every_row_leaves_once():
    """Worked by hand: of 100 rows read 4 are rejected, 6 duplicates, 5 not scored, of which one is held out, as 8 others are."""
    counts = {
        "ingest": {"ok": 96, "not_json": 4}, "clean": {"ok": 90, "duplicate": 6}, "score": {"ok": 85, "non_finite": 5, "duplicate": 6},
        "select": {"duplicate": 6, "held_out": 9, "non_finite": 4, "ifd_too_high": 7, "below_cut": 40, "selected": 30},
        "pack": {"ok": 28, "too_long": 2},
    }  # fmt: skip
    tables = {stage: Table(Folder(""), (), manifest={"counts": of}) for stage, of in counts.items()}
    flow = report._flow(Inputs(Lake((), ()), tables))
    assert [(step["stage"], step["rows_in"], step["rows_out"]) for step in flow] == [
        ("ingest", 100, 96), ("clean", 96, 90), ("score", 90, 86), ("select", 86, 30), ("pack", 30, 28),
    ]  # fmt: skip
    assert flow[2]["reasons"] == {"non_finite": 4} and flow[3]["reasons"] == {
        "held_out": 9,
        "ifd_too_high": 7,
        "below_cut": 40,
    }


@pytest.mark.parametrize(
    ("rule", "on_overflow", "scored"), [("exact", "drop", 7), ("exact", "truncate", 9), ("authors", "drop", 9)]
)
def test_scored_are_those_with_an_ifd(rule, on_overflow, scored):
    """A sample that was cut and scored may be selected: without it more would be kept than were scored."""
    made = {"counts": {"ok": 7, "truncated": 2}, "config": {"score": {"rule": rule, "on_overflow": on_overflow}}}
    assert num_scored(made) == scored


def test_every_sample_shown_is_what_the_lake_holds(finished):
    """A text beside another sample's numbers would be found by nobody."""
    root = finished[0] / "root"
    told = json.loads((stage_folder(root, "report") / "report.json").read_text())
    rows = rows_of(root).drop_duplicates("sample_id").set_index("sample_id")
    assert len({one["sample_id"] for one in told["samples"]}) == len(told["samples"]) > 100
    near = [one for one in told["samples"] if one.get("near_centre")]
    assert {one["cluster_id"] for one in near} == set(range(4)) and len(near) <= 20
    for one in told["samples"]:
        row = rows.loc[one["sample_id"]]
        assert [one[name] for name in ("instruction", "cluster_id", "reason", "ifd", "response_tokens")] == [
            row[name] for name in ("instruction", "cluster_id", "reason", "ifd", "num_response_tokens")
        ]
        assert row["response"].startswith(one["response"][:2000]) and one["ppl_conditional"] >= 1
    warnings = [
        text
        for stage in ("cluster", "select", "pack", "train")
        for text in manifest(root, stage)["summary"]["warnings"]
    ]
    assert told["warnings"] == warnings and all(f"! {text}" in finished[2].stdout for text in warnings)


def test_no_text_where_none_is_asked_for(finished, tmp_path, shared_ray):
    """`exemplars_per_cluster: 0` is a promise: the page may be shown to those who may not see the data."""
    root = tmp_path / "root"
    shutil.copytree(finished[0] / "root", root)
    done = raypipe("run", finished[1], f"storage.root={root}", "report.exemplars_per_cluster=0")
    assert done.returncode == 0, done.stderr
    folder = stage_folder(root, "report")
    page, numbers = (folder / "index.html").read_text(), (folder / "report.json").read_text()
    for _, row in rows_of(root).iterrows():
        assert row["instruction"][:60] not in page and row["instruction"][:60] not in numbers
    assert len(json.loads(numbers)["samples"]) > 100 and "This report shows no texts" in page


def test_held_out_losses_by_language(finished):
    """No column is carried here; of each held-out sample the language is guessed, so that groups add up to all."""
    root = finished[0] / "root"
    told = json.loads((stage_folder(root, "report") / "report.json").read_text())["training"]
    held_out = json.loads((stage_folder(root, "train") / "held_out.json").read_text())
    rows = told["by_column"]["language"]
    assert sum(row["num_samples"] for row in rows) == len(held_out["sample_ids"])
    texts = read(str(root), "ingest").to_table(columns=["sample_id", "response"]).to_pydict()
    response = dict(zip(texts["sample_id"], texts["response"], strict=True))
    spoken = languages([response[sample] for sample in held_out["sample_ids"]])
    first, last = (held_out["nll"][step] for step in (min(held_out["nll"], key=int), max(held_out["nll"], key=int)))
    for row in rows:
        its = [n for n, language in enumerate(spoken) if language == row["value"]]
        tokens = sum(held_out["num_tokens"][n] for n in its)
        assert row["num_samples"] == len(its)
        assert row["loss_before"] == pytest.approx(sum(first[n] for n in its) / tokens)
        assert row["loss_after"] == pytest.approx(sum(last[n] for n in its) / tokens)

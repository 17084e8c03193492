"""What `raypipe ablate` shows on the terminal: the runs and the power before, the table and the sentences after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raypipe.ablation import Plans, Results, last_stage, outcome_of, power, stages_of
from raypipe.experiment_file import Cell, Experiment
from raypipe.ops.experiment import LEVEL, POWER
from raypipe.ops.experiment_page import OUTCOMES
from raypipe.ops.pages import is_number
from raypipe.screen import aligned, duration, size
from raypipe.store import Folder

HEADS = (
    "arm",
    "kept",
    "samples",
    "target tokens",
    "steps",
    "epochs",
    "outcome",
    "",
    "difference",
    "",
    "response",
    "training",
    "memory",
    "padding",
    "tokens/s",
)


def shown_plan(experiment: Experiment, cells: Sequence[Cell], plans: Plans) -> str:
    """Runs with what of each is done, what they share, and what the experiment can show."""
    wanted = stages_of(experiment)
    rows = [("run", last_stage(experiment), "state")]
    for name, planned in plans.items():
        done = sum(planned[stage].done for stage in wanted)
        state = "done" if done == len(wanted) else f"{done} of {len(wanted)} stages done" if done else "to do"
        rows.append((name, planned[last_stage(experiment)].folder.name, state))
    folders = {
        stage: {(planned.folders[stage], planned.lake.digest): planned[stage].done for planned in plans.values()}
        for stage in wanted
    }
    whole, done = (sum(map(of, folders.values())) for of in (len, lambda found: sum(found.values())))
    shared = ", ".join(f"{len(found)} {stage}" for stage, found in folders.items())
    return "\n".join(
        [
            aligned(rows),
            f"{len(plans)} runs of {len(cells)} arms are {whole} stages to make once ({shared}); {done} are done",
            power_words(outcome_of(experiment), power(experiment, cells, plans)),
        ]
    )


def power_words(outcome: str, found: Mapping[str, Any]) -> str:
    source = (
        f"as measured on {found['finished']} finished seeds"
        if found["finished"]
        else "which is a guess, as no two seeds of an arm are finished"
    )
    return (
        f"power: {found['num_seeds']} seeds show a difference of {found['difference']:.2g} in {OUTCOMES[outcome]} or more in {POWER:.0%} of such "
        f"experiments, at {LEVEL:.0%}; a seed's difference has a standard deviation of {found['sd_of_seeds']:.2g}, {source}"
    )


def shown(results: Results, folder: Folder) -> str:
    """The table, what all of it means in words, where the page is."""
    cells = [HEADS, *(_cells(row, results["comparisons"]) for row in results["arms"])]
    legend = (
        f"means over {results['power']['num_seeds']} seeds; outcome: {OUTCOMES[results['outcome']]} of {results['num_units']:,} "
        f"{'held-out samples' if results['lower_is_better'] else 'problems'}; intervals of {LEVEL:.0%}; response: median tokens of what is kept, "
        f"{_number(results['all_scored']['median_response_tokens'], ',.0f')} of all scored"
    )
    said = [pair["sentence"] for pair in results["comparisons"]]
    return "\n".join([aligned(cells, right=range(1, len(HEADS))), legend, *said, f"page  {folder.uri('index.html')}"])


def _cells(row: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A difference stands in the table where there is one; of an arm with several the sentences tell."""
    mine = [pair for pair in pairs if pair["arm"] == row["arm"]]
    difference = (
        (f"{mine[0]['mean']:+.4f}", _interval(mine[0], "+")) if len(mine) == 1 else ("below" if mine else "-", "")
    )
    return (
        row["arm"],
        *(_number(row[name], ",.0f") for name in ("kept", "samples", "target_tokens", "steps")),
        _number(row["epochs"], ".2f"),
        f"{row['outcome']['mean']:.4f}",
        _interval(row["outcome"], ""),
        *difference,
        _number(row["drift"]["median_response_tokens"], ",.0f"),
        duration(row["train_s"]) if is_number(row["train_s"]) else "-",
        size(row["peak_memory_bytes"]) if is_number(row["peak_memory_bytes"]) else "-",
        _number(row["padding"], ".1%"),
        _number(row["tokens_per_s"], ",.0f"),
    )


def _interval(found: Mapping[str, Any], sign: str) -> str:
    return f"{found['low']:{sign}.4f} to {found['high']:{sign}.4f}"


def _number(value: Any, shown: str) -> str:
    return format(value, shown) if is_number(value) else "-"

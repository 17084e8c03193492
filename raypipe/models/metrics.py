"""What is known of a training run while it runs: `metrics.jsonl`, a line a step and a line an evaluation, and trackers beside it.

Keys by Hugging Face's habit. Nothing is appended to storage: the file is put whole from time to time, and before every checkpoint.
Only rank 0 has one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from raypipe.models.checkpoints import Output
from raypipe.models.trackers import Tracker

METRICS = "metrics.jsonl"
FLUSH_S = 10.0


class Metrics:
    """Begins with the lines of steps that are not run again."""

    def __init__(self, out: Output, trackers: Sequence[Tracker], after_step: int) -> None:
        self.out, self.trackers = out, trackers
        kept = (out.find(METRICS) or b"").decode().splitlines(keepends=True) if after_step else []
        self.lines = [line for line in kept if json.loads(line)["step"] <= after_step]
        self.flushed = time.monotonic()

    def add(self, values: Mapping[str, Any]) -> None:
        self.lines.append(json.dumps({name: value for name, value in values.items() if value is not None}) + "\n")
        for tracker in self.trackers:
            tracker.log(values["step"], _shown(values))
        if time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.out.replace(METRICS, "".join(self.lines).encode())
        for tracker in self.trackers:
            tracker.put()
        self.flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        for tracker in self.trackers:
            tracker.close()


def _shown(values: Mapping[str, Any]) -> dict[str, float]:
    """As trackers group them: train/loss, eval/loss, eval/cluster_3_loss."""
    by_cluster = values.get("eval_loss_by_cluster", {})
    flat = {name: value for name, value in values.items() if isinstance(value, (int, float)) and name != "step"}
    flat |= {f"eval_cluster_{cluster}_loss": loss for cluster, loss in by_cluster.items()}
    return {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": float(value)
        for name, value in flat.items()
    }

"""metrics.jsonl of a training: a line a step and a line an evaluation."""

from __future__ import annotations

import json
from typing import Any


def steps_and_evaluations(data: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    lines = [json.loads(line) for line in data.splitlines()]
    return [line for line in lines if "loss" in line], [line for line in lines if "loss" not in line]

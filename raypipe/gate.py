"""The gate that every part passes on its way into an actor: it counts how often each was begun, and can be shut.

So a part that kills its process is begun a bounded number of times, whatever else dies, and a run that is to stop begins
nothing more. One small Ray actor beside the driver for all stages of a run, as starting one takes a second or two.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Gate:
    """State by `work`, the name of one piece of work, such as one map over parts."""

    def __init__(self) -> None:
        self.begun: dict[str, Counter[str]] = defaultdict(Counter)
        self.shut_for: set[str] = set()

    def enter(self, work: str, part: str) -> int:
        """How often the part was begun, this time included; 0 where the gate is shut."""
        if work in self.shut_for:
            return 0
        self.begun[work][part] += 1
        return self.begun[work][part]

    def enter_together(self, work: str, parts: Sequence[str]) -> dict[str, int]:
        """As `enter` for each; none where one was begun before: a death would not say which part is to blame."""
        if work in self.shut_for or not self.begun[work].keys().isdisjoint(parts):
            return {}
        return {part: self.enter(work, part) for part in parts}

    def shut(self, work: str) -> set[str]:
        """Let nothing more in; returns what was begun."""
        self.shut_for.add(work)
        return set(self.begun[work])

    def is_shut(self, work: str) -> bool:
        return work in self.shut_for

    def forget(self, work: str, part: str | None = None) -> None:
        """What was begun of a piece of work, or one part of it."""
        if part is None:
            self.begun.pop(work, None)
        else:
            self.begun[work].pop(part, None)


def gate() -> Any:
    """This driver's gate: on its own node, so that no other node's death loses the counts."""
    return _gate_of(ray.get_runtime_context().get_worker_id())


@cache
def _gate_of(driver: str) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Gate).options(**options).remote()

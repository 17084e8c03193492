"""Start of both processes inside: shuts itself in, then takes its part."""

from __future__ import annotations

import json
import sys

from .confine import confine
from .judge import judge
from .plain import Gone, Pipe
from .solver import solve


def main() -> None:
    """argv[1]: {part, pipes: {name: [source, sink]}, limits: what `confine` takes}."""
    given = json.loads(sys.argv[1])
    pipes = {name: Pipe(*ends) for name, ends in given["pipes"].items()}
    confine(**given["limits"])
    try:
        if given["part"] == "solver":
            solve(pipes["judge"])
        else:
            task = pipes["supervisor"].receive()
            pipes["supervisor"].send(judge(task["problem"], task["code"], pipes["solver"]))
    except Gone:
        pass  # the other one ended, which the supervisor sees

"""A Ray cluster of one node in a process of its own: prints its address, and ends when its standard input does.

Not in the tests' process: there a cluster and a Ray that was begun beside it take each other's place (ray.cluster_utils, Ray 2.60).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parents[1]


@contextmanager
def ray_cluster() -> Iterator[str]:
    """Its workers have the environment of now, whatever the process has that takes them."""
    command = [sys.executable, "-m", "tests.cluster"]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        address = process.stdout.readline().strip()
        assert address, f"no cluster came up: exit code {process.wait()}"
        yield address
        process.stdin.close()


def kill(head: subprocess.Popen) -> None:
    """A head with its own processes only; told to end, it takes 30 s."""
    for process in [head, *psutil.Process(head.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()


def main() -> None:
    from ray.cluster_utils import Cluster

    settings = {"idle_worker_killing_time_threshold_ms": 10_000}  # as Ray on one machine has it here
    head = {"num_cpus": os.cpu_count(), "object_store_memory": 500 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": settings})
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()

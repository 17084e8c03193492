"""A Ray cluster that grows and shrinks by itself on one machine: its nodes are raylets that Ray's own fake provider starts.

The autoscaler is the one of a real cluster (version 2); only what it calls to get a node is fake, and its nodes come in seconds.
Ray's `AutoscalingCluster` cannot be used, as the wheel lacks a file that it reads (2.60).
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.cluster import kill
from tests.rgw import free_ports

HEAD = f"{'f' * 51}00000"  # the id by which the provider knows it
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
STORE_BYTES = 100 << 20
IDLE_S = 5  # of a node, before it goes
LISTS = (  # keys of commands and files that the launcher's schema wants
    "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    "initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip


@dataclass(frozen=True)
class Growing:
    address: str
    config: Path  # what its autoscaler reads, as a launcher's file: for RAYPIPE_AUTOSCALING_CONFIG
    head: psutil.Process

    @property
    def environment(self) -> dict[str, str]:
        """For a driver."""
        return {"RAY_ADDRESS": self.address, "RAYPIPE_AUTOSCALING_CONFIG": str(self.config)}

    def raylets(self, kind: str) -> list[psutil.Process]:
        """Of the nodes of a kind, oldest first."""
        found = []
        for process in self.head.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name() == "raylet" and process.environ().get("RAY_NODE_TYPE_NAME") == kind:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())


@contextmanager
def growing(folder: Path, kinds: Mapping[str, Mapping[str, Any]]) -> Iterator[Growing]:
    """A head without CPUs, and nodes as `kinds` allows: {name: {resources, max_workers}}, as in a launcher's file. `folder` is short."""
    port, agent, dashboard = free_ports(3)
    address, config = f"127.0.0.1:{port}", folder / "bootstrap.json"
    config.write_text(json.dumps(_launched(address, kinds)))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1",
        f"--temp-dir={folder}", f"--autoscaling-config={config}", "--num-cpus=0", "--num-gpus=0", f"--object-store-memory={STORE_BYTES}",
        "--include-dashboard=false", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats",
    ]  # fmt: skip
    own = {
        "RAY_AUTH_MODE": "disabled", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_idle_worker_killing_time_threshold_ms": "1000",
        "RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4",
    }  # fmt: skip
    log = open(folder / "head.log", "w")  # noqa: SIM115  the head's, as long as it lives
    head = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)
    try:
        _wait_for(port, head, folder / "head.log")
        yield Growing(address, config, psutil.Process(head.pid))
    finally:
        kill(head)


def _launched(address: str, kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    provider = {
        "type": "external", "module": PROVIDER, "gcs_address": address, "head_node_id": HEAD, "launch_multiple": True,
        "disable_node_updaters": True, "foreground_node_launch": True, "disable_launch_config_check": True,
    }  # fmt: skip
    types = {
        name: {
            **kind,
            "resources": {"object_store_memory": STORE_BYTES, **kind["resources"]},
            "node_config": {},
            "min_workers": 0,
        }
        for name, kind in kinds.items()
    }
    return {
        **{key: [] for key in LISTS},
        "auth": {},
        "file_mounts": {},
        "cluster_name": "growing",
        "max_workers": sum(kind["max_workers"] for kind in kinds.values()),
        "idle_timeout_minutes": IDLE_S / 60,
        "upscaling_speed": 100,
        "provider": provider,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **types,
        },
    }


def _wait_for(port: int, head: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, f"the head ended: {log.read_text()[-2000:]}"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            return
        time.sleep(0.2)
    raise AssertionError(f"the head did not answer in 90 s: {log.read_text()[-2000:]}")

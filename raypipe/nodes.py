"""The nodes of a cluster: those that are alive, and those that an autoscaler may add.

What it may add Ray tells no driver, so it is read where the autoscaler itself reads it: from KubeRay's RayCluster, or from the
cluster launcher's file on the head. A driver that is on no head, or may not read it, sees what is alive.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raypipe.errors import ConfigError

log = logging.getLogger("raypipe")
LAUNCHED_BY = "~/ray_bootstrap_config.yaml"  # where `ray up` leaves its file on the head
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # of this pod
ANSWER_S = 10.0

Nodes = Sequence[tuple[Mapping[str, float], int]]  # kinds, as resources by Ray's names, and how many of each


def alive() -> Nodes:
    import ray

    return [(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]


def alive_at(address: str) -> Nodes:
    """The same of a cluster that this process is not connected to. ConfigError where no Ray answers, after half a minute."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RpcError

    try:
        found = GcsClient(address=address).get_all_node_info(timeout=ANSWER_S).values()
    except RpcError as error:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, where something answers that is no Ray of this version ({error}). Wanted the head's host:port"
        ) from error
    return [(dict(node.resources_total), 1) for node in found if node.state == node.ALIVE]


def at_most(there: Nodes | None = None) -> Nodes:
    """Of a cluster that grows, the head and as many of each kind as it may have; of another, those that are alive, or `there`."""
    config = _launched() or _in_kubernetes()
    if config is None:
        return alive() if there is None else there
    limit, head = config["max_workers"], config["head_node_type"]
    kinds = config["available_node_types"].items()
    workers = {name: min(limit, kind.get("max_workers", 0 if name == head else limit)) for name, kind in kinds}
    return [(kind["resources"], workers[name] + (name == head)) for name, kind in kinds]


def _launched() -> Any:
    """The autoscaler's configuration, where the launcher began this cluster."""
    path = Path(os.environ.get("RAYPIPE_AUTOSCALING_CONFIG") or LAUNCHED_BY).expanduser()
    if not path.is_file():
        return None
    import yaml

    return yaml.safe_load(path.read_text())


def _in_kubernetes() -> Any:
    """The same, where KubeRay did; in a job's pod that is the head, whose account may read it."""
    name, namespace = os.environ.get("RAY_CLUSTER_NAME"), ACCOUNT / "namespace"
    if not name or not namespace.is_file():
        return None
    import requests
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    try:
        found = node_provider.KubernetesHttpApiClient(namespace.read_text().strip()).get(f"rayclusters/{name}")
    except requests.RequestException as error:
        log.warning("the cluster's RayCluster cannot be read (%s): only nodes that are alive count", error)
        return None
    grows = found["spec"].get("enableInTreeAutoscaling")
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(found) if grows else None

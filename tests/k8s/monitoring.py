"""The metrics that alerts and the dashboard read."""

import json
import re

from tests.k8s.rendering import K8S, load_all

MONITORING = K8S / "overlays" / "monitoring"
METRIC = re.compile(r"\b(?:ray|autoscaler)_[a-z0-9_]+\b(?!\s*[=!]~?)")  # not a label's name before its value
LABELS = {"ray_io_cluster", "ray_io_group"}  # that our PodMonitors add
OURS = {"ray_raypipe_parts_done", "ray_raypipe_parts_total", "ray_raypipe_rows"}
RARE = {  # what a small job that ends well does not export, and why
    "autoscaler_active_nodes": "of the autoscaler's own process",
    "autoscaler_pending_nodes": "of the autoscaler's own process",
    "ray_memory_manager_worker_eviction_total": "once something was ended for want of memory",
    "ray_node_gpus_utilization": "where there is a GPU",
}


def expressions() -> list[str]:
    rules = [
        rule["expr"]
        for doc in load_all((MONITORING / "rules.yaml").read_text())
        for group in doc["spec"]["groups"]
        for rule in group["rules"]
    ]
    panels = json.loads((MONITORING / "raypipe.json").read_text())["panels"]
    return rules + [target["expr"] for panel in panels for target in panel["targets"]]


def metric_names() -> set[str]:
    """All that rules and dashboard name, to be compared with what a running job exports."""
    return {name for expression in expressions() for name in METRIC.findall(expression)} - LABELS

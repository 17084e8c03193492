"""What one object of an overlay needs another for: names that must exist, quotas, accelerators, alerts that help."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ray.autoscaler._private.kuberay.autoscaling_config import _node_type_from_group_spec

from raypipe import load_config
from raypipe.config import Config
from raypipe.errors import ConfigError
from raypipe.sizing import demand, room
from raypipe.sizing import limits as limits_of
from tests.k8s.faults import Found, Pod, clusters, containers, groups, jobs, limits, pods, quantity

CLUSTER_WIDE = {"Namespace", "PriorityClass", "ClusterQueue", "ResourceFlavor"}
AUTOSCALER = {"cpu": 0.5, "memory": 2.0**30}
POOLS = {"prepare.py": ("embed", "cluster", "score"), "train.py": ("train", "evaluate")}
Overlay = list[dict]


def namespace(doc: dict, overlay: Overlay) -> Iterator[Found]:
    wanted = None if doc["kind"] in CLUSTER_WIDE else "raypipe"
    if (got := doc["metadata"].get("namespace")) != wanted:
        yield Found("metadata.namespace", got, f"Wanted {wanted}: what is elsewhere sees neither config nor quota")


def _names(overlay: Overlay, kind: str) -> set[str]:
    return {doc["metadata"]["name"] for doc in overlay if doc["kind"] == kind}


def references(doc: dict, overlay: Overlay) -> Iterator[Found]:
    for pod in pods(doc):
        for kind, name in _referred(pod):
            if name not in (known := _names(overlay, kind)):
                yield Found(
                    f"{pod.field}: {kind}",
                    name,
                    f"No such {kind} in this overlay, which has {sorted(known)}: the pod would not start",
                )
        for field, container in containers(pod):
            for source in container.get("envFrom", []):
                if "secretRef" in source and not source["secretRef"].get("optional"):
                    yield Found(
                        f"{field}.envFrom",
                        source,
                        "Set optional: true: where roles and public models do, there is no secret",
                    )


def _referred(pod: Pod) -> Iterator[tuple[str, str | None]]:
    yield "ServiceAccount", pod.spec.get("serviceAccountName")
    yield "PriorityClass", pod.spec.get("priorityClassName")
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def asked(overlay: Overlay) -> Counter:
    """All that the pods of an overlay can ask for at a time, Ray's autoscaler beside the head included."""
    total: Counter = Counter()
    for pod in (pod for doc in overlay for pod in pods(doc)):
        total["pods"] += pod.copies
        for name, number in limits(pod.spec).items():
            total[name] += number * pod.copies
    for _, cluster in (cluster for doc in overlay for cluster in clusters(doc)):
        if cluster.get("enableInTreeAutoscaling"):
            total.update(AUTOSCALER)
    return total


def quota(doc: dict, overlay: Overlay) -> Iterator[Found]:
    if doc["kind"] == "ResourceQuota":
        for name, number in asked(overlay).items():
            for field in (name, f"requests.{name}", f"limits.{name}"):
                if quantity(doc["spec"]["hard"].get(field, "1000T")) < number:
                    got = doc["spec"]["hard"][field]
                    yield Found(
                        f"spec.hard.{field}",
                        got,
                        f"The groups' maxima add up to {number:g}: raise it, or lower maxReplicas",
                    )


def queue_quota(doc: dict, overlay: Overlay) -> Iterator[Found]:
    """Kueue admits nothing that asks for a resource its queue does not cover."""
    if doc["kind"] != "ClusterQueue":
        return
    covered = {
        r["name"]: quantity(r["nominalQuota"])
        for g in doc["spec"]["resourceGroups"]
        for f in g["flavors"]
        for r in f["resources"]
    }
    for name, number in asked(overlay).items():
        if name != "pods" and covered.get(name, 0) < number:
            yield Found(
                f"spec.resourceGroups: {name}",
                covered.get(name),
                f"The job asks for {number:g}: cover it, else it is never admitted",
            )


def pipeline_yaml(doc: dict, overlay: Overlay) -> Iterator[Found]:
    if doc["kind"] == "ConfigMap" and "pipeline.yaml" in doc["data"]:
        try:
            loaded(doc["data"]["pipeline.yaml"])
        except ConfigError as error:
            yield Found("data: pipeline.yaml", "a ConfigError", f"Every run would end with exit code 2: {error}")


@cache
def loaded(text: str) -> Config:
    """As a run reads it."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, "pipeline.yaml")).write_text(text)
        return load_config(path)


def accelerators(doc: dict, overlay: Overlay) -> Iterator[Found]:
    """Every pool of pipeline.yaml that the job uses finds a group with its accelerator, and room for its minimum."""
    config_map = next((m for m in overlay if m["kind"] == "ConfigMap" and "pipeline.yaml" in m["data"]), None)
    if config_map is None or any(pipeline_yaml(config_map, overlay)):
        return
    config = loaded(config_map["data"]["pipeline.yaml"])
    for field, job in jobs(doc):
        try:
            kinds = [_node_type_from_group_spec(group, is_head=False) for _, group in groups(job["rayClusterSpec"])]
        except ValueError as error:
            yield Found(f"{field}.rayClusterSpec.workerGroupSpecs", "what Ray's autoscaler refuses", str(error))
            continue
        nodes = [(kind["resources"], kind["max_workers"]) for kind in kinds]
        for name in _used(job["entrypoint"], config):
            pool = getattr(config.resources, name)
            if (found := room(nodes, pool)) < (least := limits_of(pool)[0]):
                what = f"{field}.rayClusterSpec.workerGroupSpecs, for resources.{name} of pipeline.yaml"
                remedy = (
                    f"Wanted a group of {pool.accelerator} for {least} x {demand(pool)}: the run would wait for ever"
                )
                yield Found(what, f"room for {found}", remedy)


def _used(entrypoint: str, config: Config) -> list[str]:
    """Pools of GPUs that a script's stages take."""
    names = next((pools for script, pools in POOLS.items() if script in entrypoint), sum(POOLS.values(), ()))
    return [n for n in names if getattr(config.resources, n).gpus and (n != "evaluate" or config.evaluate.tasks)]


def nightly(doc: dict, overlay: Overlay) -> Iterator[Found]:
    if doc["kind"] == "CronJob":
        if (policy := doc["spec"].get("concurrencyPolicy")) != "Forbid":
            yield Found("spec.concurrencyPolicy", policy, "Set Forbid: two runs would share a root")
        if "timeZone" not in doc["spec"]:
            yield Found("spec.timeZone", None, "Name it: the controller's own differs from cluster to cluster")


def alerts(doc: dict, overlay: Overlay) -> Iterator[Found]:
    if doc["kind"] == "PrometheusRule":
        for alert in (alert for group in doc["spec"]["groups"] for alert in group["rules"]):
            notes, field = alert.get("annotations", {}), f"spec.groups: {alert['alert']}"
            if missing := {"summary", "do"} - notes.keys():
                yield Found(f"{field}.annotations", sorted(missing), "Say what is the matter, and what to do about it")
            if (got := notes.get("runbook_url")) != (url := f"docs/operations.md#{alert['alert'].lower()}"):
                yield Found(f"{field}.annotations.runbook_url", got, f"Wanted {url}")


OVERLAY_RULES = [namespace, references, quota, queue_quota, pipeline_yaml, accelerators, nightly, alerts]

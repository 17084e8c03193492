"""A fault of a manifest, and how manifests are walked: Ray clusters, jobs and pods, wherever they stand."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

SUFFIXES = {
    "": 1,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


class Found(NamedTuple):
    """Within one object: the field, what is there, what to do."""

    field: str
    got: object
    remedy: str


@dataclass(frozen=True)
class Fault:
    where: str  # file (overlay): kind/name
    field: str
    got: object
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: got {self.got!r}. {self.remedy}"


class Pod(NamedTuple):
    field: str
    spec: dict
    copies: int  # at most, at a time
    role: str  # head, worker, or other


def quantity(text: str | float) -> float:
    """A Kubernetes quantity as a number: cores, bytes, devices."""
    if not (match := re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))) or match[2] not in SUFFIXES:
        raise ValueError(f"{text!r} is no quantity, wanted a number and one of {', '.join(filter(None, SUFFIXES))}")
    return float(match[1]) * SUFFIXES[match[2]]


def jobs(doc: dict) -> Iterator[tuple[str, dict]]:
    """(field, spec) of a RayJob, also of one that a RayCronJob will make."""
    if doc["kind"] == "RayJob":
        yield "spec", doc["spec"]
    if doc["kind"] == "RayCronJob":
        yield "spec.jobTemplate", doc["spec"]["jobTemplate"]


def clusters(doc: dict) -> Iterator[tuple[str, dict]]:
    for field, job in jobs(doc):
        yield f"{field}.rayClusterSpec", job["rayClusterSpec"]
    if doc["kind"] == "RayCluster":
        yield "spec", doc["spec"]


def groups(cluster: dict) -> Iterator[tuple[str, dict]]:
    for group in cluster.get("workerGroupSpecs", []):
        yield f"workerGroupSpecs[{group['groupName']}]", group


def pods(doc: dict) -> Iterator[Pod]:
    for field, cluster in clusters(doc):
        yield Pod(f"{field}.headGroupSpec.template.spec", cluster["headGroupSpec"]["template"]["spec"], 1, "head")
        for name, group in groups(cluster):
            yield Pod(f"{field}.{name}.template.spec", group["template"]["spec"], group["maxReplicas"], "worker")
    for field, job in jobs(doc):
        if "submitterPodTemplate" in job:
            yield Pod(f"{field}.submitterPodTemplate.spec", job["submitterPodTemplate"]["spec"], 1, "other")
    if doc["kind"] == "CronJob":
        field = "spec.jobTemplate.spec.template.spec"
        yield Pod(field, doc["spec"]["jobTemplate"]["spec"]["template"]["spec"], 1, "other")


def containers(pod: Pod) -> Iterator[tuple[str, dict]]:
    for kind in ("initContainers", "containers"):
        for container in pod.spec.get(kind, []):
            yield f"{pod.field}.{kind}[{container['name']}]", container


def limits(spec: dict) -> dict[str, float]:
    """What the first container, Ray's own, may take."""
    named = spec["containers"][0].get("resources", {}).get("limits", {})
    return {name: quantity(value) for name, value in named.items()}

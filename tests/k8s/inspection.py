"""All that is asked of an overlay: schemas, then our own lints. `inspect` gives every fault, each with its file."""

from collections.abc import Callable, Iterable, Iterator

from tests.k8s import schemas
from tests.k8s.faults import Fault, Found, clusters, jobs, pods
from tests.k8s.lint_clusters import CLUSTER_RULES
from tests.k8s.lint_jobs import JOB_RULES, queued
from tests.k8s.lint_overlays import OVERLAY_RULES
from tests.k8s.lint_pods import POD_RULES, RAY_RULES
from tests.k8s.rendering import source_of


def inspect(overlay: str, docs: list[dict], crds: schemas.Crds) -> list[Fault]:
    """Lints rely on the schemas: where those find a fault, it is mended first."""
    found = [(doc, one) for doc in docs for one in schemas.faults(doc, crds)]
    found = found or [(doc, one) for doc in docs for one in _linted(doc, docs)]
    return [Fault(source_of(overlay, doc), *one) for doc, one in found]


def _linted(doc: dict, docs: list[dict]) -> Iterator[Found]:
    yield from _each(JOB_RULES, jobs(doc))
    yield from _each(CLUSTER_RULES, clusters(doc))
    for pod in pods(doc):
        for rule in POD_RULES + (RAY_RULES if pod.role != "other" else []):
            yield from rule(pod)
    for rule in OVERLAY_RULES:
        yield from rule(doc, docs)
    if doc["kind"] == "RayJob":
        yield from queued(doc)


def _each(rules: list[Callable[[dict], Iterator[Found]]], specs: Iterable[tuple[str, dict]]) -> Iterator[Found]:
    """A rule's field is within the spec."""
    for field, spec in specs:
        for rule in rules:
            yield from (Found(f"{field}.{one.field}", one.got, one.remedy) for one in rule(spec))

"""Strict validation without a cluster: as the API server would default and validate, but unknown fields are refused.

KubeRay's kinds by its CRDs (defaults, then the schema, then its CEL rules), core kinds by Kubernetes' own schemas, and
kinds of other operators by the fields that we use of them, which they are read from:
monitoring.coreos.com/v1: prometheus-operator, pkg/apis/monitoring/v1/{podmonitor,prometheusrule}_types.go;
kueue.x-k8s.io/v1beta2: kueue, apis/kueue/v1beta2/{clusterqueue,localqueue,resourceflavor}_types.go.
"""

import copy
import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import kubernetes_validate
import yaml
from celpy.adapter import json_to_cel
from jsonschema import Draft202012Validator

from tests.k8s.faults import Found

KUBERNETES = "1.36"
SELECTOR = {"matchLabels": {str: str}}
ENDPOINT = {"port": str, "interval": str, "path": str, "scheme": str}
RULE = {"alert": str, "expr": str, "for": str, "labels": {str: str}, "annotations": {str: str}}
QUOTA = {"name": str, "nominalQuota": str, "borrowingLimit": str, "lendingLimit": str}
GROUP = {"coveredResources": [str], "flavors": [{"name": str, "resources": [QUOTA]}]}
PREEMPTION = {"withinClusterQueue": str, "reclaimWithinCohort": str}
CLUSTER_QUEUE = {
    "namespaceSelector": SELECTOR,
    "queueingStrategy": str,
    "preemption": PREEMPTION,
    "resourceGroups": [GROUP],
}
OTHERS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): {"selector": SELECTOR, "podTargetLabels": [str], "podMetricsEndpoints": [ENDPOINT]},
    ("monitoring.coreos.com/v1", "PrometheusRule"): {"groups": [{"name": str, "interval": str, "rules": [RULE]}]},
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): {"nodeLabels": {str: str}},
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): CLUSTER_QUEUE,
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): {"clusterQueue": str},
}  # fmt: skip


class Crds:
    """KubeRay's definitions: 1.6 s of CPU to read, so once a session."""

    def __init__(self, folder: Path):
        self.schemas: dict[tuple[str, str], dict] = {}
        for path in sorted(folder.glob("*.yaml.gz")):
            crd = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)["spec"]
            for version in crd["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                self.schemas[f"{crd['group']}/{version['name']}", crd["names"]["kind"]] = schema
        self.validators: dict[tuple[str, str], Draft202012Validator] = {}

    def faults(self, doc: dict) -> Iterator[Found]:
        kind = doc["apiVersion"], doc["kind"]
        if kind not in self.validators:
            self.validators[kind] = Draft202012Validator(_strict(self.schemas[kind], root=True))
        doc = _defaulted(self.schemas[kind], copy.deepcopy(doc))
        wrong = [
            Found(
                ".".join(map(str, error.absolute_path)), _short(error.instance), f"{error.message[:200]}. See the CRD"
            )
            for error in self.validators[kind].iter_errors(doc)
        ]
        yield from wrong or _cel(self.schemas[kind], doc, "")


def faults(doc: dict, crds: Crds) -> Iterator[Found]:
    """Of one object. A kind that nobody knows is a fault."""
    kind = doc["apiVersion"], doc["kind"]
    if kind in crds.schemas:
        yield from crds.faults(doc)
    elif kind in OTHERS:
        yield from _listed(OTHERS[kind], doc.get("spec", {}), "spec")
    else:
        yield from _core(json.dumps(doc))


@cache
def _core(text: str) -> list[Found]:
    """Of one core object, once for all overlays that have it: its schema is read anew each time, 0.02 s."""
    doc = json.loads(text)
    try:
        kubernetes_validate.validate(doc, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        field = ".".join(map(str, error.absolute_path))
        return [Found(field, _short(error.instance), f"{error.message[:200]}. See Kubernetes {KUBERNETES}'s API")]
    except kubernetes_validate.SchemaNotFoundError:
        kind = doc["apiVersion"], doc["kind"]
        return [
            Found(
                "kind", kind, f"Wanted a kind of Kubernetes {KUBERNETES}, of KubeRay's CRDs or of tests/k8s/schemas.py"
            )
        ]
    return []


def _short(value: Any) -> str:
    return str(value)[:80]


def _strict(schema: dict, *, root: bool = False) -> dict:
    """A structural schema as JSON Schema that refuses fields it does not name; metadata is the server's own."""
    out = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = _strict(out[key])
    if "properties" in out:
        out["properties"] = {
            name: field if root and name == "metadata" else _strict(field) for name, field in out["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    if out.pop("nullable", False) and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def _defaulted(schema: dict, value: Any) -> Any:
    """As the server does first: a null that may not be is dropped, what is absent gets its default."""
    if isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            if value.get(name, ...) is None and not field.get("nullable"):
                del value[name]
            if name not in value and "default" in field:
                value[name] = copy.deepcopy(field["default"])
            if name in value:
                _defaulted(field, value[name])
    elif isinstance(value, list):
        for item in value:
            _defaulted(schema.get("items", {}), item)
    return value


def _cel(schema: dict, value: Any, field: str) -> Iterator[Found]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield Found(field, _short(value), f"{rule.get('message', rule['rule'])} (CEL rule of the CRD)")
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _cel(schema.get("properties", {}).get(name, {}), inner, f"{field}.{name}".lstrip("."))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _cel(schema.get("items", {}), item, f"{field}[{place}]")


def _holds(rule: str, value: Any) -> bool:
    return bool(_program(rule).evaluate({"self": json_to_cel(value)}))


@cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _listed(fields: Any, value: Any, field: str) -> Iterator[Found]:
    """A form is a type, [form of each], {str: form of each}, or {name: form of it}."""
    if isinstance(fields, type):
        if not isinstance(value, fields):
            yield Found(field, value, f"Wanted {fields.__name__}: put quotes around it")
    elif isinstance(fields, list) and isinstance(value, list):
        for place, item in enumerate(value):
            yield from _listed(fields[0], item, f"{field}[{place}]")
    elif isinstance(fields, dict) and isinstance(value, dict):
        for name, inner in value.items():
            form = fields.get(str, fields.get(name))
            if form is None:
                yield Found(f"{field}.{name}", _short(inner), f"Unknown field, wanted one of {', '.join(fields)}")
            else:
                yield from _listed(form, inner, f"{field}.{name}")
    else:
        yield Found(field, _short(value), f"Wanted a {type(fields).__name__}")

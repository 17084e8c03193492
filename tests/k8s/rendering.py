"""What the manifests say once kustomize has put them together, and where each object is written."""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

import yaml

from tests.lakes import PROJECT

K8S = PROJECT / "k8s"
KUSTOMIZE = PROJECT / ".venv" / "kustomize"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
GENERATED = {
    "pipeline": "base/pipeline.yaml",
    "rayjob": "rayjob/manifest/rayjob.yaml",
    "raypipe-dashboard": "overlays/monitoring/raypipe.json",
}
COPIED = {"RayJob", "RayCluster", "RayCronJob"}  # all from one file


class Loader(yaml.CSafeLoader):
    """Refuses a key that is given twice, of which YAML readers keep one or the other without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_all(text: str) -> list[dict]:
    return [doc for doc in yaml.load_all(text, Loader) if doc]


def build(folder: Path) -> list[dict]:
    """`kubectl kustomize` of a folder."""
    done = subprocess.run([KUSTOMIZE, "build", folder], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"{folder}: kustomize cannot build it: {done.stderr.strip()[:600]}. Mend the file that it names"
        )
    return load_all(done.stdout)


def render(overlay: str) -> list[dict]:
    """All objects of an overlay, and those that its pods create later from a config map of files."""
    docs = build(K8S / "overlays" / overlay)
    later = [doc["data"] for doc in docs if doc["kind"] == "ConfigMap" and "kustomization.yaml" in doc["data"]]
    return docs + [doc for files in later for doc in _from_map(files)]


def _from_map(files: dict[str, str]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text)
        return build(Path(folder))


def sources() -> list[Path]:
    return sorted(K8S.rglob("*.yaml"))


@cache
def _written() -> dict[tuple[str, str], str]:
    """(kind, name) -> file, of every object that is written somewhere."""
    names = {}
    for path in sources():
        for doc in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            if isinstance(doc, dict) and "name" in doc.get("metadata", {}):
                names[doc["kind"], doc["metadata"]["name"]] = f"k8s/{path.relative_to(K8S)}"
    return names


def source_of(overlay: str, doc: dict) -> str:
    """The file to look at, and the overlay that shows the fault."""
    kind, name = doc["kind"], doc["metadata"]["name"]
    generated = f"k8s/{GENERATED[name]}" if kind == "ConfigMap" and name in GENERATED else None
    copied = f"k8s/{GENERATED['rayjob']}" if kind in COPIED else None
    written = generated or copied or _written().get((kind, name), f"k8s/overlays/{overlay}/kustomization.yaml")
    return f"{written} (overlay {overlay}): {kind}/{name}"

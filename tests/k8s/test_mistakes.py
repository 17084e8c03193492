"""Each mistake is found, by a message that names file, field and remedy."""

import copy
import re

import pytest

from tests.k8s.inspection import inspect
from tests.k8s.mistakes import GONE, MISTAKES
from tests.k8s.rendering import PROJECT, build, load_all


def edit(docs: list[dict], which: str, field: str, value: object) -> None:
    kind, _, name = which.partition("/")
    node = next(doc for doc in docs if doc["kind"] == kind and name in ("", doc["metadata"]["name"]))
    *parents, leaf = [int(key) if key.isdigit() else key.replace("\\.", ".") for key in re.split(r"(?<!\\)\.", field)]
    for key in parents:
        node = node[key]
    if value is GONE:
        del node[leaf]
    else:
        node[leaf] = value


@pytest.mark.parametrize(
    "mistake", MISTAKES, ids=lambda m: f"{m[0]}-{m[2]}-{m[3] if m[3] is not GONE else 'gone'}"[-90:]
)
def test_mistake_is_found(mistake, rendered, crds):
    """It would cost a night and a node to find it otherwise."""
    overlay, which, field, value, *words = mistake
    docs = copy.deepcopy(rendered[overlay])
    edit(docs, which, field, value)
    messages = [str(fault) for fault in inspect(overlay, docs, crds)]
    found = [message for message in messages if all(word in message for word in words)]
    assert found, f"{words} in none of\n" + "\n".join(messages)
    file = found[0].partition(" (overlay")[0]
    assert (PROJECT / file).is_file(), f"{file} is no file to look at"


def test_a_key_given_twice_is_found():
    """Both readings of it are valid."""
    with pytest.raises(Exception, match=r"key 'replicas' is given twice(.|\n)*line 1"):
        load_all("{replicas: 0, minReplicas: 0, replicas: 9}")


def test_what_kustomize_cannot_build_is_said(tmp_path):
    """A patch of a group that has moved."""
    (tmp_path / "kustomization.yaml").write_text("resources: [away.yaml]\n")
    with pytest.raises(ValueError, match=r"kustomize cannot build it(.|\n)*away.yaml"):
        build(tmp_path)

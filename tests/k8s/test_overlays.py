"""Every overlay as it is: builds, validates, and says what it is meant to say."""

import json
import os
import shutil
import subprocess

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _node_type_from_group_spec

from tests.k8s.faults import groups
from tests.k8s.inspection import inspect
from tests.k8s.rendering import K8S, OVERLAYS, build, load_all, sources


def one(docs: list[dict], kind: str) -> dict:
    return next(doc for doc in docs if doc["kind"] == kind)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_wrong_with(overlay, rendered, crds):
    """`kubectl apply -k` is refused, or worse, taken, and fails hours later on rented nodes."""
    assert "\n".join(map(str, inspect(overlay, rendered[overlay], crds))) == ""


def test_no_key_is_given_twice():
    """kustomize keeps one of two, and the other, perhaps the right one, is dead text."""
    for path in sources():
        assert load_all(path.read_text()), path


def test_merge_keys_mean_what_yaml_says():
    """kustomize lets a value that came by two `<<` win over the one that is written: spot pods would be on demand, say."""
    folder = K8S / "rayjob" / "manifest"
    images = {image["name"]: image for image in yaml.safe_load((folder / "kustomization.yaml").read_text())["images"]}
    text = (folder / "rayjob.yaml").read_text()
    for name, image in images.items():
        text = text.replace(f"image: {name}", f"image: {image['newName']}:{image['newTag']}")
    (written,) = load_all(text)
    written["metadata"]["namespace"] = "raypipe"
    assert build(folder) == [written]


def test_no_deprecated_field_of_kustomize():
    """kustomize 5 warns of them, and a later one in kubectl drops them."""
    for path in K8S.rglob("kustomization.yaml"):
        tree = yaml.safe_load(path.read_text())
        old = {"bases", "patchesStrategicMerge", "patchesJson6902", "commonLabels", "vars", "imageTags"}
        assert not old & tree.keys(), path


def test_nightly_creates_the_pipeline(rendered):
    """The job of the night would be another than the one that was tried by hand."""
    assert one(rendered["nightly"], "RayJob") == one(rendered["pipeline"], "RayJob")
    assert (
        one(rendered["ray-cron-job"], "RayCronJob")["spec"]["jobTemplate"]
        == one(rendered["pipeline"], "RayJob")["spec"]
    )


def test_nightly_is_gone_before_the_next_one(rendered):
    """Its name is a lock: every second night `create` would be refused."""
    spec = one(rendered["nightly"], "RayJob")["spec"]
    kept = [
        r["condition"]["ttlSeconds"] for r in spec["deletionStrategy"]["deletionRules"] if r["policy"] == "DeleteSelf"
    ]
    assert len(kept) == 2 and spec["activeDeadlineSeconds"] + max(kept) < 23.5 * 3600


def test_nightly_tries_a_wrong_configuration_once(rendered):
    """Exit code 2 would be tried again at Kubernetes' pace, three times a night."""
    job = one(rendered["nightly"], "CronJob")["spec"]["jobTemplate"]["spec"]
    rule = job["podFailurePolicy"]["rules"][1]
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
        "containerName": "doctor",
        "operator": "In",
        "values": [2, 3, 4],
    }
    pod = job["template"]["spec"]
    assert [container["name"] for container in pod["initContainers"]] == ["doctor"], (
        "doctor is asked before anything is created"
    )
    assert pod["restartPolicy"] == "Never", "a podFailurePolicy is refused otherwise"


def test_nightly_may_create_rayjobs_and_nothing_else(rendered):
    """Who takes over the pod of the night would have the cluster."""
    assert one(rendered["nightly"], "Role")["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    ]


def test_rays_autoscaler_reads_the_groups_as_they_are_meant(rendered):
    """It starts nodes for what it believes a group has, by its own reading of the RayCluster."""
    spec = one(rendered["pipeline"], "RayJob")["spec"]["rayClusterSpec"]
    types = {group["groupName"]: _node_type_from_group_spec(group, is_head=False) for _, group in groups(spec)}
    score = {"CPU": 7, "GPU": 1, "memory": 54 * 2**30, "accelerator_type:L40S": 1}
    assert types["score"]["resources"] == types["score-spot"]["resources"] == score
    assert types["train"]["resources"]["GPU"] == 8 and types["train"]["resources"]["accelerator_type:H100"] == 1
    assert types["score-spot"]["priority"] == 10 and types["score"].get("priority", 0) == 0
    assert types["cpu"]["idle_timeout_s"] == 120 and {kind["min_workers"] for kind in types.values()} == {0}
    assert _node_type_from_group_spec(spec["headGroupSpec"], is_head=True)["resources"]["CPU"] == 0


def test_lifecycle_rule_deletes_no_data():
    """A rule that expires objects would delete what a run relies on for ever."""
    (rule,) = json.loads((K8S / "bucket-lifecycle.json").read_text())["Rules"]
    assert rule["Status"] == "Enabled" and rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert rule.keys() == {"ID", "Status", "Filter", "AbortIncompleteMultipartUpload"}


def test_a_head_that_goes_tells_its_driver_first(rendered, tmp_path):
    """`ray stop` alone ends the raylets under the driver, which then commits none of its parts in work."""
    for name, text in {"ray": f"echo ray $@ >> {tmp_path}/said", "sleep": f"echo sleep $@ >> {tmp_path}/said"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    spec = one(rendered["pipeline"], "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    hook = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    words = ["/opt/raypipe/.venv/bin/python", "/opt/raypipe/jobs/pipeline.py", "-f", "/dev/null"]
    with subprocess.Popen(words, executable=shutil.which("tail"), stderr=subprocess.DEVNULL) as driver:
        path = f"{tmp_path}:{os.environ['PATH']}"
        try:
            subprocess.run(hook, env={"PATH": path}, check=True, timeout=60)
            assert driver.wait(10) == -15, "the driver got no SIGTERM"
        finally:
            driver.kill()
    assert (tmp_path / "said").read_text() == "sleep 30\nray stop --grace-period 8\n", (
        "first the driver's grace, then Ray"
    )

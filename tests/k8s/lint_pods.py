"""What a pod of Ray needs from Kubernetes, and what the namespace refuses."""

import re
from collections.abc import Iterator

from raypipe.container import STORE_SHARE
from tests.k8s.faults import Found, Pod, containers, limits, quantity
from tests.k8s.lint_clusters import CAPACITY, RAY

STORE_CAP = 200e9  # Ray's own limit of its object store
GRACE_S = 30  # a run ends within it after SIGTERM
EFFECTS = {None, "NoSchedule", "PreferNoSchedule", "NoExecute"}
GPU = "nvidia.com/gpu"


def image(pod: Pod) -> Iterator[Found]:
    for field, container in containers(pod):
        name, _, tag = container["image"].rpartition("/")[2].partition(":")
        if tag in ("", "latest"):
            yield Found(
                f"{field}.image",
                container["image"],
                "Give a tag, not latest: head and workers would differ after a push",
            )
        elif name == "raypipe" and f"-ray{RAY}-" not in tag:
            yield Found(
                f"{field}.image",
                tag,
                f"Wanted -ray{RAY}- in it, as in requirements.lock: Ray refuses another version",
            )


def security(pod: Pod) -> Iterator[Found]:
    """Kubernetes' restricted profile, which the namespace enforces: the pod would not be created."""
    whole = pod.spec.get("securityContext", {})
    if not whole.get("runAsNonRoot") or whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield Found(f"{pod.field}.securityContext", whole, "Set runAsNonRoot: true and seccompProfile RuntimeDefault")
    for field, container in containers(pod):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield Found(
                f"{field}.securityContext", own, "Set allowPrivilegeEscalation: false and drop ALL capabilities"
            )


def token_mounted(pod: Pod) -> Iterator[Found]:
    """Only a head with an autoscaler and the nightly's kubectl speak to Kubernetes."""
    mounted = pod.spec.get("automountServiceAccountToken")
    if mounted is None or (mounted and pod.role == "worker"):
        yield Found(
            f"{pod.field}.automountServiceAccountToken",
            mounted,
            "Set it, and false for workers: they run what models wrote",
        )


def tolerations(pod: Pod) -> Iterator[Found]:
    for place, toleration in enumerate(pod.spec.get("tolerations", [])):
        if toleration.get("effect") not in EFFECTS:
            yield Found(
                f"{pod.field}.tolerations[{place}].effect",
                toleration["effect"],
                "Wanted NoSchedule or NoExecute: else it tolerates nothing",
            )


def _tolerates(pod: Pod, key: str) -> bool:
    return any(
        toleration.get("key") == key and toleration.get("effect") == "NoSchedule"
        for toleration in pod.spec.get("tolerations", [])
    )


def gpu_nodes(pod: Pod) -> Iterator[Found]:
    if not limits(pod.spec).get(GPU):
        return
    if not _tolerates(pod, GPU):
        yield Found(
            f"{pod.field}.tolerations",
            pod.spec.get("tolerations"),
            f"Tolerate {GPU}:NoSchedule, which keeps others off GPU nodes",
        )
    if "node.kubernetes.io/instance-type" not in pod.spec.get("nodeSelector", {}):
        yield Found(
            f"{pod.field}.nodeSelector",
            pod.spec.get("nodeSelector"),
            "Name node.kubernetes.io/instance-type: a GPU is not any GPU",
        )


def capacity(pod: Pod) -> Iterator[Found]:
    kind = pod.spec.get("nodeSelector", {}).get(CAPACITY)
    if kind not in ("spot", "on-demand"):
        yield Found(
            f"{pod.field}.nodeSelector",
            kind,
            f"Say {CAPACITY}: spot or on-demand. It decides what is lost, and the price",
        )
    if kind == "spot" and not _tolerates(pod, CAPACITY):
        yield Found(
            f"{pod.field}.tolerations",
            pod.spec.get("tolerations"),
            f"Tolerate {CAPACITY}=spot:NoSchedule: else the pod stays pending",
        )
    if kind == "spot" and pod.role != "worker":
        yield Found(f"{pod.field}.nodeSelector", kind, "On demand: with its head a run ends")


def requests(pod: Pod) -> Iterator[Found]:
    """Equal to limits: Ray counts on the limit, and a pod over its request is the first to be killed."""
    for field, container in containers(pod):
        resources = container.get("resources", {})
        for name in ("cpu", "memory", *(n for n in resources.get("limits", {}) if n not in ("cpu", "memory"))):
            asked, allowed = (resources.get(kind, {}).get(name) for kind in ("requests", "limits"))
            if asked is None or asked != allowed:
                yield Found(
                    f"{field}.resources.requests.{name}",
                    asked,
                    f"Wanted its limit, {allowed}, and both set: the quota asks for it",
                )


def restart(pod: Pod) -> Iterator[Found]:
    if (policy := pod.spec.get("restartPolicy")) != "Never":
        yield Found(
            f"{pod.field}.restartPolicy",
            policy,
            "Set Never: autoscaler v2 makes a new pod, and must not see the old one come back",
        )


def shared_memory(pod: Pod) -> Iterator[Found]:
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.spec["containers"][0].get("volumeMounts", [])}
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    empty = volumes.get(mounts.get("/dev/shm"), {}).get("emptyDir", {})
    memory = limits(pod.spec).get("memory", 0)
    wanted = min(STORE_SHARE * memory, STORE_CAP)
    if empty.get("medium") != "Memory" or not wanted <= quantity(empty.get("sizeLimit", 0)) < memory:
        remedy = f"Mount an emptyDir of medium Memory and at least {wanted / 2**30:.1f}Gi there: Ray's object store would be on disk"
        yield Found(f"{pod.field}.volumes: /dev/shm", empty, remedy)


def grace(pod: Pod) -> Iterator[Found]:
    """What runs before SIGTERM counts towards the grace; `ray stop --grace-period 8` waits 24 s at most."""
    hook = " ".join(
        pod.spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    )
    waits = sum(int(seconds) for seconds in re.findall(r"sleep (\d+)", hook))
    if "ray stop" not in hook or waits < GRACE_S - 5:
        yield Found(
            f"{pod.field}: preStop",
            hook,
            "Wait 25 s, then `ray stop`: parts in work would be lost, and the node be missed only later",
        )
    seconds = pod.spec.get("terminationGracePeriodSeconds", 30)
    if seconds <= waits + GRACE_S:
        yield Found(
            f"{pod.field}.terminationGracePeriodSeconds",
            seconds,
            f"Wanted more than {waits + GRACE_S}: the preStop's waits and `ray stop`",
        )


RAY_RULES = [gpu_nodes, capacity, restart, shared_memory, grace]
POD_RULES = [image, security, token_mounted, tolerations, requests]

"""What makes a Ray cluster scale from nothing, and back. Read in KubeRay 1.7's validation.go and Ray 2.60's autoscaler v2."""

from collections.abc import Iterator

from raypipe.sizing import KIND
from tests.k8s.faults import Found, groups, limits
from tests.lakes import lock

V2_VARIABLE = "RAY_enable_autoscaler_v2"
CAPACITY = "karpenter.sh/capacity-type"
RAY = lock()["ray"]


def ray_version(cluster: dict) -> Iterator[Found]:
    if (version := cluster.get("rayVersion")) != RAY:
        yield Found("rayVersion", version, f"requirements.lock has {RAY}: KubeRay chooses probes and commands by it")


def token(cluster: dict) -> Iterator[Found]:
    if (mode := cluster.get("authOptions", {}).get("mode")) != "token":
        yield Found("authOptions.mode", mode, "Set token: else whoever reaches the dashboard runs code")


def autoscaler(cluster: dict) -> Iterator[Found]:
    options, names = cluster.get("autoscalerOptions", {}), _variables(cluster["headGroupSpec"])
    if V2_VARIABLE in names:
        yield Found(
            f"headGroupSpec: env {V2_VARIABLE}",
            names,
            "Remove it: autoscalerOptions.version says so, and KubeRay refuses both",
        )
    if cluster.get("enableInTreeAutoscaling") and options.get("version") != "v2":
        yield Found(
            "autoscalerOptions.version",
            options.get("version"),
            "Set v2: v1 knows neither idleTimeoutSeconds of a group nor priority",
        )


def _variables(group: dict) -> list[str]:
    return [variable["name"] for variable in group["template"]["spec"]["containers"][0].get("env", [])]


def head_without_work(cluster: dict) -> Iterator[Found]:
    if (cpus := cluster["headGroupSpec"]["rayStartParams"].get("num-cpus")) != "0":
        yield Found(
            "headGroupSpec.rayStartParams.num-cpus",
            cpus,
            'Set "0": an actor there takes the run with it when memory ends',
        )


def group_names(cluster: dict) -> Iterator[Found]:
    names = [group["groupName"] for _, group in groups(cluster)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Found(
            "workerGroupSpecs", name, "Two groups of one name: the autoscaler sees the last one only. Rename one"
        )


def replicas(cluster: dict) -> Iterator[Found]:
    scales = cluster.get("enableInTreeAutoscaling", False)
    for field, group in groups(cluster):
        low, high = group.get("minReplicas", -1), group.get("maxReplicas", -1)
        now = group.get("replicas", low)
        if not 0 <= low <= now <= high:
            yield Found(
                field, (low, now, high), "Wanted 0 <= minReplicas <= replicas <= maxReplicas, the outer two written"
            )
        elif scales and low:
            yield Found(f"{field}.minReplicas", low, "Set 0: such a node is paid for through stages that do not use it")
        elif scales and "replicas" in group:
            yield Found(
                f"{field}.replicas", now, "Leave it out: each apply would set the autoscaler's number back to it"
            )
        if scales != ("idleTimeoutSeconds" in group):
            remedy = "Set it with the autoscaler, and not without: KubeRay refuses it"
            yield Found(f"{field}.idleTimeoutSeconds", group.get("idleTimeoutSeconds"), remedy)


def ray_resources(cluster: dict) -> Iterator[Found]:
    """A group of GPUs says which: a node tells its accelerator only once it is there, so none would be started for it."""
    for field, group in groups(cluster):
        declared = [name for name in group.get("resources", {}) if name.startswith(KIND)]
        if group.get("resources") and group["rayStartParams"].keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield Found(
                f"{field}.rayStartParams",
                group["rayStartParams"],
                "KubeRay refuses resources in two places: keep `resources`",
            )
        if limits(group["template"]["spec"]).get("nvidia.com/gpu") and len(declared) != 1:
            remedy = 'Declare one, {"accelerator_type:L4": "1"}: else no node starts for who names it'
            yield Found(f"{field}.resources", declared, remedy)


def twins(cluster: dict) -> Iterator[Found]:
    """A spot group and its on-demand twin offer the same, so that priority decides, and the one stands in for the other."""
    by_name = {group["groupName"]: group for _, group in groups(cluster)}
    for name, group in by_name.items():
        spot = group["template"]["spec"]["nodeSelector"].get(CAPACITY) == "spot"
        if spot != name.endswith("-spot"):
            yield Found(
                f"workerGroupSpecs[{name}].groupName",
                name,
                f"Groups whose nodeSelector says {CAPACITY}: spot, and only they, end in -spot",
            )
        if not spot:
            continue
        twin = by_name.get(name.removesuffix("-spot"))
        if name == "train-spot" or twin is None:
            yield Found(
                f"workerGroupSpecs[{name}]",
                None,
                "Training is on demand, and every spot group has an on-demand twin to stand in",
            )
        elif _offer(group) != _offer(twin):
            yield Found(
                f"workerGroupSpecs[{name}].template",
                _offer(group),
                f"Wanted what its twin offers, {_offer(twin)}: else priority never decides",
            )
        elif group.get("priority", 0) <= twin.get("priority", 0):
            yield Found(
                f"workerGroupSpecs[{name}].priority",
                group.get("priority", 0),
                "Wanted more than its twin's, so that spot comes first",
            )


def _offer(group: dict) -> tuple:
    return limits(group["template"]["spec"]), group.get("resources", {})


CLUSTER_RULES = [ray_version, token, autoscaler, head_without_work, group_names, replicas, ray_resources, twins]

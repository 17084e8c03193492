"""What KubeRay's CRD lets pass in a RayJob, and its controller refuses or does otherwise than was meant.

Read in KubeRay 1.7: ray-operator/controllers/ray/utils/validation.go and rayjob_controller.go.
"""

from collections.abc import Iterator

from tests.k8s.faults import Found, groups
from tests.k8s.rendering import PROJECT

MODES = {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
ORDER = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
PYTHON, SCRIPTS, CONFIG = "/opt/raypipe/.venv/bin/python", "/opt/raypipe/", "/etc/raypipe/pipeline.yaml"
QUEUE = "kueue.x-k8s.io/queue-name"


def submission_mode(job: dict) -> Iterator[Found]:
    if (mode := job.get("submissionMode", "K8sJobMode")) not in MODES:
        yield Found("submissionMode", mode, f"An unknown mode submits nothing: one of {', '.join(sorted(MODES))}")
    if mode == "SidecarMode" and job.keys() & {"submitterPodTemplate", "submitterConfig"}:
        yield Found("submissionMode", mode, "Leave submitterPodTemplate and submitterConfig out: there is no such pod")


def retries(job: dict) -> Iterator[Found]:
    """Each is a new cluster, whatever the exit code was."""
    if not 0 <= (limit := job.get("backoffLimit", 0)) <= 5:
        yield Found("backoffLimit", limit, "Wanted 0 to 5: each retry is a new cluster, also after exit code 2")


def deadlines(job: dict) -> Iterator[Found]:
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if (seconds := job.get(name, 0)) <= 0:
            yield Found(
                name, seconds, "Set it: a run that hangs, or never gets a head, is paid for until someone looks"
            )


def deletion(job: dict) -> Iterator[Found]:
    rules, shutdown = (
        job.get("deletionStrategy", {}).get("deletionRules", []),
        job.get("shutdownAfterJobFinishes", False),
    )
    if job.get("ttlSecondsAfterFinished", 0) and not shutdown:
        yield Found(
            "ttlSecondsAfterFinished", job["ttlSecondsAfterFinished"], "It needs shutdownAfterJobFinishes: true"
        )
    if rules and shutdown:
        yield Found("shutdownAfterJobFinishes", shutdown, "KubeRay refuses it beside deletionRules: keep one of them")
    if not rules and not shutdown:
        yield Found(
            "deletionStrategy", None, "Give deletionRules: the cluster stays, and is paid for, when the job is over"
        )
    elif rules:
        yield from _rules(rules)


def _rules(rules: list[dict]) -> Iterator[Found]:
    """Each condition must lead to DeleteCluster; what ends by a deadline is no FAILED job, but a Failed deployment."""
    seconds: dict[str, dict[str, int]] = {"SUCCEEDED": {}, "Failed": {}}
    for place, rule in enumerate(rules):
        condition, field = rule["condition"], f"deletionStrategy.deletionRules[{place}]"
        after = seconds.setdefault(condition.get("jobStatus") or condition["jobDeploymentStatus"], {})
        if rule["policy"] in after:
            yield Found(field, rule, "The same condition and policy twice: remove one")
        if rule["policy"] == "DeleteWorkers":
            yield Found(field, rule, "Not with the autoscaler, which owns the workers: DeleteCluster")
        after[rule["policy"]] = condition.get("ttlSeconds", 0)
    for status, after in seconds.items():
        if status != "FAILED" and "DeleteCluster" not in after:
            remedy = f"No rule deletes the cluster of a job that is {status}: add DeleteCluster for it"
            yield Found("deletionStrategy.deletionRules", sorted(after), remedy)
        times = [after[policy] for policy in ORDER if policy in after]
        if times != sorted(times):
            yield Found("deletionStrategy.deletionRules", after, "ttlSeconds must not fall from cluster to RayJob")


def entrypoint(job: dict) -> Iterator[Found]:
    words = job.get("entrypoint", "").split()
    script = words[1] if len(words) > 1 else ""
    if not words or words[0] != PYTHON:
        yield Found(
            "entrypoint", words[:1], f"Wanted {PYTHON}: a bare name is looked up in the PATH of the head's own shell"
        )
    if not script.startswith(f"{SCRIPTS}jobs/") or not (PROJECT / script.removeprefix(SCRIPTS)).is_file():
        yield Found("entrypoint", script, f"Wanted a script of jobs/, under {SCRIPTS}jobs/ in the image")
    if CONFIG not in words:
        yield Found("entrypoint", words[2:], f"Give {CONFIG}, where the config map is mounted")


def suspension(job: dict) -> Iterator[Found]:
    if job.get("suspend") and not job.get("shutdownAfterJobFinishes"):
        yield Found("suspend", True, "KubeRay suspends only with shutdownAfterJobFinishes: true")


JOB_RULES = [submission_mode, retries, deadlines, deletion, entrypoint, suspension]


def queued(doc: dict) -> Iterator[Found]:
    """Of a RayJob that Kueue admits: kueue, pkg/controller/jobs/{rayjob,raycluster}/*_webhook.go."""
    if QUEUE not in doc["metadata"].get("labels", {}):
        return
    cluster, spec = doc["spec"]["rayClusterSpec"], doc["spec"]
    if not spec.get("suspend"):
        yield Found("spec.suspend", False, "Set it true: Kueue lets it go when there is room")
    if not spec.get("shutdownAfterJobFinishes"):
        yield Found("spec.shutdownAfterJobFinishes", False, "Kueue wants the cluster to end with the job: set it true")
    if cluster.get("enableInTreeAutoscaling"):
        yield Found("spec.rayClusterSpec.enableInTreeAutoscaling", True, "Kueue admits a fixed size: set it false")
    if (number := len(list(groups(cluster)))) > 7:
        yield Found("spec.rayClusterSpec.workerGroupSpecs", number, "Kueue takes 7 worker groups at most")

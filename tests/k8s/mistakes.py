"""Mistakes that people make in manifests, each as one edit of a rendered object, and what the message must name.

overlay, kind/name (or kind), field, value (GONE: removed), then words of the message. A field is a path of keys and places.
"""

GONE = object()
HEAD = "spec.rayClusterSpec.headGroupSpec"
POD = f"{HEAD}.template.spec"
# 0 cpu, 1 cpu-spot, 2 embed, 3 embed-spot, 4 score, 5 score-spot, 6 train
GROUP = "spec.rayClusterSpec.workerGroupSpecs"
WORKER = "template.spec"
SIZE = f"{WORKER}.containers.0.resources"
NIGHT = "spec.jobTemplate.spec.template.spec"
NODE = f"{WORKER}.nodeSelector"
CAPACITY = "karpenter\\.sh/capacity-type"
IMAGE = "ghcr.io/your-org/raypipe"
TUNE = "/opt/raypipe/.venv/bin/python /opt/raypipe/jobs/tune.py /etc/raypipe/pipeline.yaml"
RULES = "spec.deletionStrategy.deletionRules"
WRONG_CONFIG = "name: x\nmodel: m\ningest: {paths: [a]}\nembed: {modle: m}\nstorage: {root: r}\nresources: {}\n"

MISTAKES = [
    # What KubeRay's CRD says
    ("pipeline", "RayJob", "spec.backofLimit", 2, "backofLimit", "unexpected"),
    ("pipeline", "RayJob", "spec.activeDeadlineSeconds", "12h", "activeDeadlineSeconds", "not of type 'integer'"),
    ("pipeline", "RayJob", f"{GROUP}.0.groupName", GONE, "workerGroupSpecs.0", "'groupName' is a required property"),
    ("pipeline", "RayJob", f"{GROUP}.0.{WORKER}.containers.0.imagePullpolicy", "Always", "containers.0", "imagePullpolicy"),
    ("pipeline", "RayJob", "spec.rayClusterSpec.autoscalerOptions.version", "v3", "autoscalerOptions.version", "not one of"),
    ("pipeline", "RayJob", f"{RULES}.0.policy", "DeleteEverything", "deletionRules.0.policy", "not one of"),
    ("pipeline", "RayJob", f"{RULES}.0.condition", {"ttlSeconds": 1}, "deletionRules[0].condition", "CEL"),
    ("pipeline", "RayJob", "spec.managedBy", "me", "spec.managedBy", "kueue.x-k8s.io/multikueue"),
    ("ray-cron-job", "RayCronJob", "spec.schedule", GONE, "spec", "'schedule' is a required property"),
    # What Kubernetes and other operators say
    ("pipeline", "NetworkPolicy", "spec.podSelectors", {}, "spec", "podSelectors"),
    ("nightly", "CronJob", f"{NIGHT}.restartPolicy", 1, "restartPolicy", "not of type 'string'"),
    ("pipeline", "PriorityClass/raypipe-head", "value", "high", "value", "'high'"),
    ("monitoring", "PodMonitor/ray-nodes", "spec.podMetricEndpoints", [], "spec.podMetricEndpoints", "podMetricsEndpoints"),
    ("monitoring", "PrometheusRule", "spec.groups.0.rules.0.for", 30, "spec.groups[0].rules[0].for", "quotes"),
    ("kueue", "ClusterQueue", "spec.resourceGroups.0.flavors.0.resources.0.nominalQuotas", "1", "nominalQuotas", "nominalQuota"),
    ("pipeline", "NetworkPolicy", "apiVersion", "networking.k8s.io/v2", "kind", "Wanted a kind"),
    # What the CRD lets pass in a RayJob
    ("pipeline", "RayJob", "spec.submissionMode", "K8SJobMode", "spec.submissionMode", "K8sJobMode"),
    ("pipeline", "RayJob", "spec.backoffLimit", -1, "spec.backoffLimit", "0 to 5"),
    ("pipeline", "RayJob", "spec.activeDeadlineSeconds", GONE, "spec.activeDeadlineSeconds", "Set it"),
    ("pipeline", "RayJob", "spec.ttlSecondsAfterFinished", 60, "spec.ttlSecondsAfterFinished", "shutdownAfterJobFinishes"),
    ("pipeline", "RayJob", "spec.shutdownAfterJobFinishes", True, "spec.shutdownAfterJobFinishes", "deletionRules"),
    ("pipeline", "RayJob", "spec.deletionStrategy", GONE, "spec.deletionStrategy", "paid for"),
    ("pipeline", "RayJob", f"{RULES}.2.condition", {"jobStatus": "FAILED"}, "deletionRules", "a job that is Failed"),
    ("pipeline", "RayJob", f"{RULES}.2.policy", "DeleteWorkers", "deletionRules[2]", "DeleteCluster"),
    ("pipeline", "RayJob", "spec.suspend", True, "spec.suspend", "shutdownAfterJobFinishes: true"),
    ("pipeline", "RayJob", "spec.entrypoint", "python jobs/pipeline.py", "spec.entrypoint", "/opt/raypipe/.venv/bin/python"),
    ("train", "RayJob", "spec.entrypoint", TUNE, "tune.py", "a script of jobs/"),
    # In its cluster
    ("pipeline", "RayJob", "spec.rayClusterSpec.rayVersion", "2.59.0", "rayVersion", "requirements.lock"),
    ("pipeline", "RayJob", "spec.rayClusterSpec.authOptions", GONE, "authOptions.mode", "Set token"),
    ("pipeline", "RayJob", "spec.rayClusterSpec.autoscalerOptions.version", "v1", "autoscalerOptions.version", "Set v2"),
    ("pipeline", "RayJob", f"{POD}.containers.0.env.0.name", "RAY_enable_autoscaler_v2", "RAY_enable_autoscaler_v2", "Remove it"),
    ("pipeline", "RayJob", f"{HEAD}.rayStartParams", {}, "rayStartParams.num-cpus", 'Set "0"'),
    ("pipeline", "RayJob", f"{GROUP}.0.replicas", 9, "workerGroupSpecs[cpu]", "replicas <= maxReplicas"),
    ("dev", "RayCluster", "spec.workerGroupSpecs.0.replicas", 1, "workerGroupSpecs[cpu].replicas", "each apply"),
    ("pipeline", "RayJob", f"{GROUP}.0.minReplicas", -1, "workerGroupSpecs[cpu]", "0 <= minReplicas"),
    ("dev", "RayCluster", "spec.workerGroupSpecs.0.minReplicas", 1, "workerGroupSpecs[cpu]", "minReplicas"),
    ("pipeline", "RayJob", f"{GROUP}.4.idleTimeoutSeconds", GONE, "workerGroupSpecs[score].idleTimeoutSeconds", "Set it"),
    ("pipeline", "RayJob", f"{GROUP}.3.groupName", "embed", "workerGroupSpecs", "Rename one"),
    ("pipeline", "RayJob", f"{GROUP}.2.resources", GONE, "workerGroupSpecs[embed].resources", "accelerator_type"),
    ("pipeline", "RayJob", f"{GROUP}.2.rayStartParams", {"num-gpus": "1"}, "workerGroupSpecs[embed].rayStartParams", "two places"),
    ("pipeline", "RayJob", f"{GROUP}.5.priority", GONE, "workerGroupSpecs[score-spot].priority", "spot comes first"),
    ("pipeline", "RayJob", f"{GROUP}.5.{SIZE}.limits.cpu", "6", "workerGroupSpecs[score-spot].template", "twin"),
    # In its pods
    ("pipeline", "RayJob", f"{GROUP}.4.{WORKER}.containers.0.image", f"{IMAGE}:latest", "containers[ray-worker].image", "not latest"),
    ("pipeline", "RayJob", f"{POD}.containers.0.image", IMAGE, "containers[ray-head].image", "Give a tag"),
    ("pipeline", "RayJob", f"{POD}.containers.0.image", f"{IMAGE}:0.1.0-ray2.59.0-cpu", "containers[ray-head].image", "-ray2.60.0-"),
    ("pipeline", "RayJob", f"{POD}.securityContext.runAsNonRoot", False, "securityContext", "runAsNonRoot: true"),
    ("nightly", "CronJob", f"{NIGHT}.containers.0.securityContext.capabilities", GONE, "containers[create].securityContext", "drop ALL"),
    ("pipeline", "RayJob", f"{GROUP}.0.{WORKER}.automountServiceAccountToken", True, "automountServiceAccountToken", "false for workers"),
    ("pipeline", "RayJob", f"{GROUP}.4.{WORKER}.tolerations", GONE, "[score].template.spec.tolerations", "Tolerate nvidia.com/gpu"),
    ("pipeline", "RayJob", f"{GROUP}.4.{WORKER}.tolerations.0.effect", "NoScedule", "tolerations[0].effect", "Wanted NoSchedule"),
    ("pipeline", "RayJob", f"{GROUP}.4.{NODE}", {"karpenter.sh/capacity-type": "on-demand"}, "nodeSelector", "instance-type"),
    ("pipeline", "RayJob", f"{GROUP}.1.{WORKER}.tolerations", GONE, "[cpu-spot].template.spec.tolerations", "stays pending"),
    ("pipeline", "RayJob", f"{GROUP}.6.{NODE}.{CAPACITY}", "spot", "workerGroupSpecs[train].groupName", "end in -spot"),
    ("pipeline", "RayJob", f"{POD}.nodeSelector.{CAPACITY}", "spot", "headGroupSpec", "with its head a run ends"),
    ("pipeline", "RayJob", f"{GROUP}.0.{SIZE}", GONE, "containers[ray-worker].resources.requests.cpu", "both set"),
    ("pipeline", "RayJob", f"{GROUP}.4.{SIZE}.requests.memory", "20Gi", "resources.requests.memory", "Wanted its limit"),
    ("pipeline", "RayJob", f"{GROUP}.4.{SIZE}.requests.nvidia\\.com/gpu", GONE, "resources.requests.nvidia.com/gpu", "Wanted its limit"),
    ("pipeline", "RayJob", f"{POD}.restartPolicy", "Always", "restartPolicy", "Set Never"),
    ("pipeline", "RayJob", f"{GROUP}.4.{WORKER}.volumes.0.emptyDir", {}, "/dev/shm", "16.2Gi"),
    ("pipeline", "RayJob", f"{GROUP}.4.{WORKER}.volumes.0.emptyDir.sizeLimit", "2Gi", "/dev/shm", "16.2Gi"),
    ("pipeline", "RayJob", f"{GROUP}.0.{WORKER}.terminationGracePeriodSeconds", 30, "terminationGracePeriodSeconds", "more than 55"),
    ("pipeline", "RayJob", f"{GROUP}.0.{WORKER}.containers.0.lifecycle", GONE, "preStop", "ray stop"),
    # Between objects
    ("pipeline", "RayJob", f"{POD}.serviceAccountName", "ray", "ServiceAccount", "raypipe-head"),
    ("pipeline", "RayJob", f"{POD}.priorityClassName", "high", "PriorityClass", "No such PriorityClass"),
    ("pipeline", "RayJob", f"{POD}.volumes.1.configMap.name", "config", "ConfigMap", "No such ConfigMap"),
    ("pipeline", "RayJob", f"{POD}.volumes.2.persistentVolumeClaim.claimName", "models", "PersistentVolumeClaim", "model-cache"),
    ("pipeline", "RayJob", f"{POD}.containers.0.envFrom.0.secretRef.optional", GONE, "envFrom", "optional: true"),
    ("prepare", "NetworkPolicy", "metadata.namespace", "default", "metadata.namespace", "raypipe"),
    ("pipeline", "RayJob", f"{GROUP}.5.maxReplicas", 99, "spec.hard.requests.nvidia.com/gpu", "lower maxReplicas"),
    ("pipeline", "ConfigMap/pipeline", "data.pipeline\\.yaml", WRONG_CONFIG, "pipeline.yaml", "embed.modle: unknown key"),
    ("pipeline", "RayJob", f"{GROUP}.6.resources", {"accelerator_type:A100": "1"}, "resources.train of pipeline.yaml", "(H100)"),
    ("prepare", "RayJob", f"{GROUP}.4", GONE, "workerGroupSpecs[score-spot]", "on-demand twin"),
    ("nightly", "CronJob", "spec.concurrencyPolicy", GONE, "spec.concurrencyPolicy", "Set Forbid"),
    ("kueue", "RayJob", "spec.suspend", False, "spec.suspend", "Set it true"),
    ("kueue", "RayJob", "spec.rayClusterSpec.enableInTreeAutoscaling", True, "enableInTreeAutoscaling", "fixed size"),
    ("kueue", "ClusterQueue", "spec.resourceGroups.0.flavors.0.resources.3", GONE, "nvidia.com/gpu", "never admitted"),
    ("monitoring", "PrometheusRule", "spec.groups.0.rules.0.annotations.do", GONE, "RaypipeNoProgress", "what to do"),
]  # fmt: skip

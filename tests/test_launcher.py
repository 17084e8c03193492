"""cluster.yaml as Ray's launcher and EC2 would take it, by Ray's own code and EC2's own model of a request, without a network."""

import copy
import importlib
import re

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private import util

from raypipe.nodes import at_most
from raypipe.resources import Pool
from raypipe.sizing import room
from tests.lakes import PROJECT, lock
from tests.test_image import IMAGE_TAG, instructions

CONFIG = yaml.safe_load((PROJECT / "cluster.yaml").read_text())
GIB = 1024
EC2 = {  # vCPUs, MiB, GPUs: the pages of instance types m7i, g6, g6e and p5 at aws.amazon.com/ec2/instance-types
    "m7i.xlarge": (4, 16 * GIB, None),
    "m7i.4xlarge": (16, 64 * GIB, None),
    "g6.2xlarge": (8, 32 * GIB, (1, "L4")),
    "g6e.2xlarge": (8, 64 * GIB, (1, "L40S")),
    "p5.48xlarge": (192, 2048 * GIB, (8, "H100")),
}
TYPES = CONFIG["available_node_types"]
WORKERS = {name: kind for name, kind in TYPES.items() if name != CONFIG["head_node_type"]}


def check(config):
    """What `ray up` does with a file before it asks AWS for anything, and what it leaves to AWS."""
    config = util.prepare_config(copy.deepcopy(config))
    util.validate_config(config)
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, kind in config["available_node_types"].items():
        report = ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        if report.has_errors():
            raise ValueError(f"{name}: {report.generate_report()}")
        if kind["max_workers"] < kind["min_workers"]:
            raise ValueError(f"{name}: max_workers {kind['max_workers']} is below min_workers {kind['min_workers']}")
    return config


def described(monkeypatch):
    """The table in EC2's own words, for Ray's provider; the provider."""
    provider = importlib.import_module("ray.autoscaler._private.aws.node_provider")
    answer = [
        {
            "InstanceType": name,
            "VCpuInfo": {"DefaultVCpus": cpus},
            "MemoryInfo": {"SizeInMiB": memory},
            **({"GpuInfo": {"Gpus": [{"Count": gpus[0], "Name": gpus[1], "Manufacturer": "NVIDIA"}]}} if gpus else {}),
        }
        for name, (cpus, memory, gpus) in EC2.items()
    ]
    monkeypatch.setattr(provider, "list_ec2_instances", lambda *_: answer)
    return provider.AWSNodeProvider


def test_ray_and_ec2_take_it():
    """`ray up` would stop at the first word it does not know, EC2 an hour later at the first worker of that type."""
    config = check(CONFIG)
    assert config["setup_commands"] == config["head_setup_commands"] == config["worker_setup_commands"] == []


@pytest.mark.parametrize(
    ("path", "value", "error", "said"),
    [
        (["idle_timeout_minuts"], 3, ValidationError, "idle_timeout_minuts"),
        (["head_node_type"], None, ValueError, "`head_node_type` must be one of"),
        (["head_node_type"], "haed", ValueError, "must be one of `available_node_types`"),
        (["available_node_types", "score", "max_worker"], 4, ValidationError, "max_worker"),
        (["available_node_types", "score", "resources"], None, ValidationError, "'resources' is a required property"),
        (["available_node_types", "score", "resources", "GPU"], 0.5, ValidationError, "0.5 is not of type 'integer'"),
        (["available_node_types", "score", "docker", "image"], "x", ValidationError, "image"),
        (["available_node_types", "score", "min_workers"], 17, ValueError, "score: max_workers 16 is below"),
        (["available_node_types", "score", "min_workers"], 30, ValueError, "`max_workers` is smaller than the sum"),
        (["available_node_types", "score", "node_config", "InstanceTyp"], "p5", ValueError, "InstanceTyp"),
        (["docker", "container_name"], None, AssertionError, "Must provide a container & image name"),
    ],
)
def test_a_mistake_is_caught(path, value, error, said):
    """Else the test above could pass whatever the file says."""
    config = copy.deepcopy(CONFIG)
    section = config
    for key in path[:-1]:
        section = section[key]
    if value is None:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    with pytest.raises(error) as caught:
        check(config)
    assert said in re.sub(r"\s+", " ", str(caught.value))


def test_resources_are_those_of_the_instance_types(monkeypatch):
    """A type that promises more than its nodes have is started again and again, and what was to run there waits for ever."""
    asked = copy.deepcopy(CONFIG)
    for name in WORKERS:
        asked["available_node_types"][name]["resources"] = {}
    known = described(monkeypatch).fillout_available_node_types_resources(asked)["available_node_types"]
    for name, kind in WORKERS.items():
        assert kind["resources"] == {key: n for key, n in known[name]["resources"].items() if key != "memory"}, name
    assert known["head"]["resources"] == {"CPU": 0}, "an actor on the head ends every run where memory is short"


def test_the_pipeline_fits_and_costs_what_is_said(monkeypatch):
    """Actors of k8s/base/pipeline.yaml, counted as a driver on the head counts them; quotas are asked for by the sums of the comments."""
    monkeypatch.setenv("RAYPIPE_AUTOSCALING_CONFIG", str(PROJECT / "cluster.yaml"))
    fit = {
        kind: room(at_most(), Pool(gpus=gpus, accelerator=kind))
        for kind, gpus in (("L4", 0.25), ("L40S", 1), ("H100", 1))
    }
    assert fit == {"L4": 32, "L40S": 16, "H100": 8} and room([(WORKERS["cpu"]["resources"], 4)], Pool()) == 68
    most = {name: kind["max_workers"] for name, kind in WORKERS.items()}
    assert CONFIG["max_workers"] == sum(most.values()) == 29
    assert all(kind["min_workers"] == 0 for kind in WORKERS.values())
    vcpus = {name: kind["resources"]["CPU"] * most[name] for name, kind in WORKERS.items()}
    spot = {name for name, kind in WORKERS.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"embed", "score"} and sum(vcpus[name] for name in spot) == vcpus["train"] == 192


def test_each_type_runs_its_image():
    """A GPU type with the CPU image computes on CPUs at the price of GPUs; without --gpus it does so with the other one."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    config = AutoscalingConfig(copy.deepcopy(CONFIG), skip_content_hash=True)
    for name, kind in TYPES.items():
        docker = config.get_docker_config(name)
        variant = "cuda" if "GPU" in kind["resources"] else "cpu"
        assert docker["image"] == f"ghcr.io/your-org/raypipe:{IMAGE_TAG}-{variant}", name
        assert ("--gpus all" in docker.get("worker_run_options", [])) == (variant == "cuda"), name
        assert "--env RAY_AUTH_MODE=token" in docker["run_options"], name


def test_images_are_those_of_kubernetes():
    """Two names for one image are two builds, of which one is old."""
    names = re.findall(
        r"newName: (\S+), newTag: (\S+)\}",
        "".join(path.read_text() for path in PROJECT.glob("k8s/**/kustomization.yaml")),
    )
    ours = {CONFIG["docker"]["image"], CONFIG["docker"]["head_image"]}
    assert {f"{name}:{tag}" for name, tag in names if name.endswith("/raypipe")} <= ours


def test_ray_is_the_locks_and_the_images_own():
    """Nodes and a head of different versions of Ray refuse each other; and one that is installed at the start is another."""
    text = (PROJECT / "cluster.yaml").read_text()
    assert set(re.findall(r"ray(?:\[\w+\])?\W{0,2}(\d+\.\d+\.\d+)", text)) == {lock()["ray"]}
    commands = [command for key, value in CONFIG.items() if key.endswith("_commands") for command in value]
    assert not any(word in command for command in commands for word in ("pip", "conda", "curl"))


def test_workers_find_the_head_and_the_head_starts_them():
    """Without the bootstrap file a head never starts a worker; on another port none joins. No size of the object store is fixed."""
    head, workers = (CONFIG[f"{role}_start_ray_commands"][-1] for role in ("head", "worker"))
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    port = re.search(r"--port=(\d+)", head)
    assert port and f"--address=$RAY_HEAD_IP:{port[1]}" in workers
    assert "object-store" not in head + workers


def test_the_token_is_where_ray_looks():
    """In the image's home: elsewhere no node starts, as RAY_AUTH_MODE=token asks for one."""
    home = next(
        found[1] for _, name, value in instructions() if name == "ENV" and (found := re.search(r"HOME=(\S+)", value))
    )
    assert CONFIG["file_mounts"] == {f"{home}/.ray/auth_token": "~/.ray/auth_token"}


def test_nothing_secret_and_no_second_identity():
    """Storage is reached by roles; a key in this file would be in every copy of it."""
    assert not re.search(r"AKIA|aws_secret|AWS_ACCESS_KEY_ID|RAY_AUTH_TOKEN", (PROJECT / "cluster.yaml").read_text())
    assert all("IamInstanceProfile" in kind["node_config"] for kind in TYPES.values())

"""How many actors a cluster can hold, today's and the one that an autoscaler may make of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler._private.kuberay import node_provider
from requests import HTTPError

from raypipe import nodes, sizing
from raypipe.errors import ConfigError
from raypipe.resources import Pool
from raypipe.sizing import fit, fit_actors, room

L4, H100 = {"accelerator_type:L4": 1}, {"accelerator_type:H100": 1}
GROWS = {  # what the launcher gives its autoscaler
    "max_workers": 6,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "min_workers": 0, "max_workers": 2},
        "embed": {"resources": {"CPU": 4, "GPU": 1, **L4}, "max_workers": 4},
        "score": {"resources": {"CPU": 8, "GPU": 8, **H100}},
    },
}


def kind(cpus, gpus, **others):
    return {"CPU": cpus, "GPU": gpus, **others}


@pytest.mark.parametrize(
    ("there", "gpus", "actors"),
    [
        ([(2, 0)], 0, 2),
        ([(1, 0)], 0, 1),
        ([(0.5, 0)], 0, 0),
        ([(9, 0)], 0, 9),  # ten would leave nothing to read with
        ([(8, 0), (8, 0)], 0, 16),
        ([(4, 0)] * 8, 0, 32),
        ([(16, 2)], 1, 2),
        ([(16, 2)], 0.4, 4),  # two on each GPU: an actor does not span GPUs
        ([(16, 8), (16, 1)], 2, 4),
        ([(0, 0), (4, 0)], 0, 4),  # a head without CPUs
    ],
)
def test_room_by_hand(there, gpus, actors):
    """One actor more than fits leaves a fold waiting for ever; the sum over nodes is not what fits each."""
    assert room([(kind(*node), 1) for node in there], Pool(gpus=gpus)) == actors


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8), st.integers(0, 5)), max_size=4),
    st.sampled_from([0, 0.1, 0.25, 0.5, 1, 2, 8]),
)
def test_as_many_of_a_kind_are_so_many_nodes(there, gpus):
    """A cluster that grows is told by kinds: counting one as its nodes one by one must make no difference."""
    pool = Pool(gpus=gpus)
    by_kind = [(kind(cpus, has), count) for cpus, has, count in there]
    one_by_one = [(resources, 1) for resources, count in by_kind for _ in range(count)]
    assert room(by_kind, pool) == room(one_by_one, pool)


def test_only_the_accelerator_that_is_asked_for_counts():
    """An actor that names an H100 never starts on an L4: it would wait for a node that nobody adds."""
    there = [(kind(8, 4, **L4), 2), (kind(8, 1, **H100), 1)]
    assert room(there, Pool(gpus=1, accelerator="H100")) == 1
    assert room(there, Pool(gpus=0.5, accelerator="L4")) == 16
    assert room(there, Pool(gpus=1)) == 9
    with pytest.raises(
        ConfigError, match=r"2 actors of 0\.9 CPUs and 1 GPUs \(A100\).*9 GPUs \(H100, L4\) on 3 nodes: room for 0"
    ):
        fit(2, 2, Pool(gpus=1, accelerator="A100"), "actors", there)


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """The cluster launcher's file, and a head alone that is alive."""
    (file := tmp_path / "bootstrap.yaml").write_text(json.dumps(GROWS))
    monkeypatch.setenv("RAYPIPE_AUTOSCALING_CONFIG", str(file))
    monkeypatch.setattr(sizing, "alive", lambda: [({"CPU": 0.0}, 1)])


def test_a_cluster_that_grows_counts_as_what_it_may_become(launched):
    """With every group at zero nothing fits what is alive: the first run of the day would be refused."""
    assert fit_actors(Pool(gpus=0.25, accelerator="L4", actors=(1, 64)), 100) == (1, 16)
    assert fit_actors(Pool(gpus=1, accelerator="H100", actors=(8, 64)), 100) == (8, 48)  # six nodes in all
    assert fit_actors(Pool(), 1000) == (1, 16 + 4 * 4 + 6 * 8)
    with pytest.raises(ConfigError, match=r"49 actors.*room for 48"):
        fit_actors(Pool(gpus=1, accelerator="H100", actors=(49, 64)), 100)


def test_light_work_takes_what_is_there(launched, monkeypatch):
    """A select of seconds must not order every node that the cluster may have; with none it takes one node's worth."""
    assert fit_actors(Pool(), 1000, light=True) == (1, 8)
    assert fit_actors(Pool(actors=(12, 20)), 1000, light=True) == (12, 12)
    monkeypatch.setattr(sizing, "alive", lambda: [(kind(8, 0), 2), (kind(4, 1, **L4), 1)])
    assert fit_actors(Pool(), 1000, light=True) == (1, 20)
    assert fit_actors(Pool(), 3, light=True) == (1, 3)


RAY_CLUSTER = {
    "metadata": {"name": "raypipe-x", "namespace": "ml"},
    "spec": {
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": {"containers": [{"resources": {"limits": {"memory": "8Gi"}}}]}}},
        "workerGroupSpecs": [
            {
                "groupName": "score", "replicas": 0, "minReplicas": 0, "maxReplicas": 4,
                "rayStartParams": {"resources": '"{\\"accelerator_type:H100\\": 1}"'},
                "template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}}}]}},
            }
        ],
    },
}  # fmt: skip


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """A pod of KubeRay's head; gives a list of what was asked of Kubernetes."""
    asked = []
    (tmp_path / "namespace").write_text("ml")
    monkeypatch.setattr(nodes, "ACCOUNT", tmp_path)
    monkeypatch.setattr(nodes, "alive", lambda: [({"CPU": 0.0}, 1)])
    monkeypatch.setattr(nodes, "LAUNCHED_BY", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_CLUSTER_NAME", "raypipe-x")

    def get(client, path):
        asked.append((client._namespace, path))
        return RAY_CLUSTER

    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", get)
    return asked


def test_kuberay_tells_its_groups(pod):
    """The autoscaler reads the same object: what it may add is what a run may wait for."""
    most = nodes.at_most()
    assert pod == [("ml", "rayclusters/raypipe-x")]
    assert [count for _, count in most] == [1, 4]
    assert room(most, Pool(gpus=0.5, accelerator="H100")) == 4 * 4
    assert room(most, Pool()) == 4 * 8


def test_kuberay_that_does_not_grow_or_does_not_tell(pod, monkeypatch, caplog):
    """What nobody adds must not be waited for; and a role that is too narrow is said, not a crash."""
    monkeypatch.setitem(RAY_CLUSTER["spec"], "enableInTreeAutoscaling", False)
    assert nodes.at_most() == [({"CPU": 0.0}, 1)]

    def refuse(client, path):
        raise HTTPError("403 Client Error: Forbidden")

    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", refuse)
    assert nodes.at_most() == [({"CPU": 0.0}, 1)]
    assert "RayCluster cannot be read (403 Client Error: Forbidden): only nodes that are alive count" in caplog.text

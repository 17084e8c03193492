"""Nodes that come when there is work and go when there is none, by Ray's own autoscaler on one machine."""

import pytest

from tests.growing import growing
from tests.lakes import manifest, raypipe, wait_until
from tests.scaling_story import IN_FLIGHT_PARTS, PARTS, told

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "g"  # a socket's path has at most 107 bytes
    folder.mkdir(exist_ok=True)
    return lambda kinds: growing(folder, kinds)


def test_a_run_from_no_node_at_all(cluster, finished, tmp_path):
    """With every group at zero a run must neither be refused nor wait for ever, at any of its stages; and results are the same."""
    with cluster({"cpu": {"resources": {"CPU": 1}, "max_workers": 2}}) as grows:
        assert grows.raylets("cpu") == []
        done = raypipe("run", finished[1], f"storage.root={tmp_path}", "--until", "pack", **grows.environment)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: not grows.raylets("cpu"), timeout_s=60)
    for stage in ("ingest", "embed", "cluster", "score", "select", "pack"):
        mine, theirs = (manifest(root, stage) for root in (tmp_path, finished[0] / "root"))
        assert [part["columns"] for part in mine["parts"]] == [part["columns"] for part in theirs["parts"]], stage


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The story, with a node of the scorers killed while they work; and when each part was there by then."""
    out, short = tmp_path_factory.mktemp("story"), tmp_path_factory.getbasetemp() / "s"
    short.mkdir()
    return *told(out, short), out


def samples(events, since):
    """(nodes, actors) of each moment from an event on."""
    start = {what: at for at, what in events["events"]}[since]
    both = zip(events["nodes"], events["actors"], strict=True)
    return [(nodes, actors) for (at, nodes), (_, actors) in both if at >= start]


def test_nodes_grow_from_zero_and_shrink_to_zero(story):
    """A GPU that idles over night costs what the run did."""
    events, _, _ = story
    assert events["nodes"][0][1] == {} == events["nodes"][-1][1]
    assert max(found.get("L4", 0) for _, found in events["nodes"]) == 2
    assert events["events"][-1][1] == "no node is left"


def test_stages_do_not_hold_each_others_nodes(story):
    """Embedders' GPUs are not paid for while another kind scores, nor the scorers' while embedders work."""
    events, _, _ = story
    scoring = samples(events, "scoring begins")
    embedding = samples(events, "embedding begins")[: -len(scoring)]
    assert not any("H100" in nodes or "cpu" in nodes for nodes, _ in embedding)
    at_work = [nodes for nodes, actors in scoring if "models" in actors]
    assert "L4" not in at_work[-1] and not any("cpu" in nodes for nodes in at_work)


def test_the_gang_starts_when_scoring_lets_go(story):
    """A gang that took the scorers' nodes one by one would hold half of what it needs, and so would they."""
    events, _, _ = story
    waiting = samples(events, "training asks for its gang")
    assert "models" in waiting[0][1], "scoring was over before training asked"
    assert not any("models" in actors and "trainers" in actors for _, actors in waiting)
    assert max(actors.get("trainers", 0) for _, actors in waiting) == 2


def test_a_reclaimed_node_costs_only_its_parts_in_flight(story):
    """Spot nodes go all day: what was committed stays as it is, and what others have in work too."""
    events, before, out = story
    scorers = [nodes.get("H100", 0) for nodes, _ in samples(events, "training asks for its gang")]
    assert 1 in scorers[scorers.index(2) :], "no node was lost"
    parts = sorted(out.glob("score-*/part-*"))
    assert len(parts) == PARTS
    assert all(path.stat().st_mtime_ns == was for path, was in before.items())
    assert sum(attempt_of(part) > 1 for part in parts) <= IN_FLIGHT_PARTS and max(map(attempt_of, parts)) <= 2


def attempt_of(path):
    from raypipe.part import read_footer
    from raypipe.store import Folder

    return read_footer(Folder(str(path.parent)), path.name)["attempt"]

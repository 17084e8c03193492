"""What the driver sees of a training that runs elsewhere."""

import json
import threading
from concurrent.futures import Future

import pytest

from raypipe.config import Config
from raypipe.errors import Stopped
from raypipe.items import track
from raypipe.stages import train
from raypipe.store import Folder


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Of two to three workers on a cluster with room for two; looks all the time."""
    monkeypatch.setattr(train, "LOOK_S", 0.01)
    monkeypatch.setattr(train, "POLL_S", 0.01)
    monkeypatch.setattr(train, "fit_now", lambda pool: 2)
    tree = {
        "name": "t", "model": "m", "ingest": {"paths": ["x"]}, "embed": {"model": "e"}, "storage": {"root": "r"},
        "resources": {"train": {"workers": [2, 3]}},
    }  # fmt: skip
    config = Config.model_validate_json(json.dumps(tree))
    return lambda: train._Watch(config, Folder(str(tmp_path)), "work", Future())


def write(folder, *steps):
    lines = [{"step": 0, "eval_loss": 3.0}]
    lines += [{"step": n, "loss": 2.5 - n / 100, "tokens_per_s": 41204.4, "num_workers": 2} for n in steps]
    folder.replace("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


def test_each_step_is_seen_once_from_where_it_was(watch, tmp_path):
    """Metrics come in batches, and a rerun begins in their midst: the line counts what is left, or its ETA is a fiction."""
    folder = Folder(str(tmp_path))
    write(folder, 1, 2, 3)
    looking = watch()
    assert looking.first == 3

    def go_on():
        write(folder, *range(1, 6))
        write(folder, *range(1, 8))
        looking.fitted.set_result(None)

    threading.Timer(0.1, go_on).start()
    seen = list(track(looking.steps(), "train", 7, "steps", looking.words, looking.first))
    assert seen == [4, 5, 6, 7]
    assert looking.words(7) == "loss 2.430, 41,204 tokens/s, 2 workers, held-out loss 3.000"


def test_a_cluster_that_stays_too_small_ends_the_training(watch, monkeypatch):
    """Ray Train waits for a second node for ever, without a word: a night is lost before anyone looks."""
    monkeypatch.setattr(train, "fit_now", lambda pool: 1)
    monkeypatch.setattr(train, "START_S", 0.2)
    with pytest.raises(
        Stopped, match=r"room for fewer than 2 training workers, as resources.train.workers asks for\. Add nodes"
    ):
        list(watch().steps())


def test_a_cluster_that_was_small_for_a_while_goes_on(watch, monkeypatch):
    """A spot node comes back within minutes: that must not end a run of days."""
    room = iter([1] * 5 + [2] * 1000)
    monkeypatch.setattr(train, "fit_now", lambda pool: next(room))
    monkeypatch.setattr(train, "START_S", 0.5)
    looking = watch()
    threading.Timer(1.0, looking.fitted.set_result, [None]).start()
    assert list(looking.steps()) == []

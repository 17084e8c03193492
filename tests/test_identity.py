import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError

from raypipe.errors import ConfigError, Stopped, StorageError
from raypipe.identity import fetched_model, file_digest, model_identity, pinned_model, resolved_backend
from raypipe.ops.hub import split_revision
from raypipe.s3 import S3
from raypipe.store import Folder
from tests.lakes import PROJECT
from tests.s3.fake import KEYS, Server, chain, moto_bucket


def test_a_model_is_its_files(tmp_path):
    """A model replaced under the same path must not find the old scores."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".cache").write_text("not of the model")
    before = model_identity("model", str(tmp_path))
    assert set(before) == {"config.json"}
    (tmp_path / "weights").write_bytes(b"1")
    after = model_identity("model", str(tmp_path))
    assert after != before and after["config.json"] == before["config.json"]


def test_a_changed_file_has_another_digest_although_it_was_cached(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"1")
    first = file_digest(path)
    assert file_digest(path) == first
    path.write_bytes(b"2")
    os.utime(path, ns=(5, 5))
    assert file_digest(path) != first


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    """Most pods have no home to write to."""
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "f").write_bytes(b"1")
    assert len(file_digest(tmp_path / "f")) == 64


def test_neither_folder_nor_hub_id():
    with pytest.raises(ConfigError, match=r"embed\.model: no/such: no such model directory"):
        model_identity("embed.model", "no/such")


def test_a_hub_model_is_pinned_to_the_revision_in_its_recipe(monkeypatch):
    """The Hub's main branch moves; rows of another model must not come under the old recipe."""
    asked = []

    def model_info(self, name, *, revision, timeout):
        asked.append((name, revision))
        return types.SimpleNamespace(sha="c0ffee")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    assert pinned_model("model", "org/pinned-here") == "org/pinned-here@c0ffee"
    assert model_identity("model", "org/by-user@v1") == {"hub": "org/by-user", "revision": "c0ffee"}
    assert asked == [("org/pinned-here", None), ("org/by-user", "v1")]
    assert split_revision("org/x@c0ffee") == ("org/x", "c0ffee") and split_revision("/a/b@c") == ("/a/b@c", None)


def test_no_network_is_said_not_thrown(monkeypatch):
    """Without it the HTTP library's own error, which is no OSError, reaches the user as a traceback."""

    def unreachable(self, name, **options):
        raise HfHubHTTPError.__mro__[1]("connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(ConfigError, match="cannot be reached"):
        model_identity("model", "org/unreachable")


def test_backend_is_resolved_without_loading_it(monkeypatch):
    """`auto` decides content, so it must be known before anything runs."""
    assert (
        resolved_backend("score.backend", "auto") == "vllm"
        and resolved_backend("score.backend", "transformers") == "transformers"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolved_backend("score.backend", "auto") == "transformers"
    with pytest.raises(ConfigError, match=r"raypipe\[vllm\]"):
        resolved_backend("score.backend", "vllm")


MODEL = {"config.json": b"{}", "weights": bytes(100_000), "1_Pooling/config.json": b"{}", "empty": b""}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model in a bucket, and a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pinned_model.cache_clear()
    with moto_bucket(monkeypatch, tmp_path):
        folder = Folder.at("s3://lake/models/m")
        for name, data in MODEL.items():
            folder.put(name, data)
        yield folder
    pinned_model.cache_clear()


def files_of(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def test_a_model_on_s3_is_the_etags_of_its_objects(model):
    """A model replaced under the same prefix must not find the old scores; to know it, nothing of 13 GB is read."""
    pinned = pinned_model("model", model.path)
    assert pinned.startswith(f"{model.path}@") and model_identity("model", pinned) == {"etags": pinned[-24:]}
    assert pinned_model("model", model.path) == pinned
    for change in (
        lambda: model.replace("weights", b"2"),
        lambda: model.put("new", b""),
        lambda: model.delete("empty"),
    ):
        change()
        pinned_model.cache_clear()
        before, pinned = pinned, pinned_model("model", model.path)
        assert pinned != before


def test_another_prefix_with_the_same_objects_is_the_same_model(model):
    """A copy of a model in another bucket or region must find the old scores."""
    copy = Folder.at("s3://lake/elsewhere/copy")
    for name, data in MODEL.items():
        copy.put(name, data)
    first, second = (model_identity("model", pinned_model("model", folder.path)) for folder in (model, copy))
    assert first == second


def test_a_model_is_fetched_once(model, monkeypatch):
    """Every actor of a node asks for it; 13 GB for each would take the night."""
    pinned, asked, read_range = pinned_model("model", model.path), [], S3.read_range

    def counted(self, uri, *args):
        asked.append(uri)
        return read_range(self, uri, *args)

    monkeypatch.setattr(S3, "read_range", counted)
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetched_model(pinned))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4 and len(set(paths)) == 1 and files_of(paths[0]) == MODEL
    assert sorted(asked) == sorted(model.uri(name) for name, data in MODEL.items() if data)
    assert [name for name in os.listdir(Path(paths[0]).parent) if name.startswith(".")] == []


def test_processes_fetch_a_model_once(tmp_path, monkeypatch):
    """Ray's actors are processes: a lock of threads would not hold them apart."""
    chain(monkeypatch, tmp_path, **KEYS)
    pinned_model.cache_clear()
    with Server() as server:
        server.objects.update({f"/lake/m/{name}": data for name, data in MODEL.items()})
        pinned = pinned_model("model", "s3://lake/m", server.endpoint)
        code = f"from raypipe.identity import fetched_model; print(fetched_model({pinned!r}, {server.endpoint!r}))"
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        actors = [
            subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=PROJECT, text=True
            )
            for _ in range(2)
        ]
        paths = {actor.communicate(timeout=60)[0].strip() for actor in actors}
        assert len(paths) == 1 and files_of(paths.pop()) == MODEL
        assert len([line for line in server.asked() if line == "GET /lake/m/weights"]) == 1


def test_a_model_that_changed_since_it_was_planned(model):
    """Half the actors would score with another model than the other half."""
    pinned = pinned_model("model", model.path)
    model.replace("weights", b"other")
    with pytest.raises(ConfigError, match=f"{model.path}: changed since this run was planned"):
        fetched_model(pinned)


def test_a_model_that_changes_while_it_is_fetched_leaves_nothing(model, monkeypatch, tmp_path):
    """Half a model in the cache would be loaded by every later run."""
    pinned, stream = pinned_model("model", model.path), S3.stream

    def replaced(self, uri, size, version):
        if uri.endswith("weights"):
            model.replace("weights", bytes(size - 1) + b"x")
        return stream(self, uri, size, version)

    monkeypatch.setattr(S3, "stream", replaced)
    with pytest.raises(Stopped, match="weights: changed"):
        fetched_model(pinned)
    assert files_of(tmp_path / "cache" / "raypipe" / "models").keys() <= {f"{pinned[-24:]}.lock"}


def test_word_vectors_are_a_model(model, tmp_path):
    """sentence-transformers' static models: modules and no network, so no config.json at the top."""
    model.replace("modules.json", b"[]")
    model.delete("config.json")
    pinned_model.cache_clear()
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "modules.json").write_text("[]")
    assert pinned_model("embed.model", model.path).startswith(model.path)
    assert model_identity("embed.model", str(tmp_path / "bag")).keys() == {"modules.json"}


def test_what_is_no_model_on_s3(model):
    """A prefix that ends one folder too early or too late; and a bucket that is not there."""
    for path in (f"{model.path}/1_Pooling/x", "s3://lake/models", "s3://lake/nothing"):
        with pytest.raises(ConfigError, match=f"score.model: {path} has no config.json"):
            pinned_model("score.model", path)
    with pytest.raises(StorageError, match="NoSuchBucket"):
        pinned_model("score.model", "s3://no-such-bucket/m")


@pytest.mark.parametrize("name", ["/{outside}", "../../../../{outside}"])
def test_a_model_writes_into_the_cache_alone(model, tmp_path, name):
    """Keys may be any text: `model//root/.ssh/authorized_keys` is one, and models come from strangers."""
    from raypipe import s3

    key = "models/m/" + name.format(outside=f"{tmp_path}/outside".lstrip("/"))
    s3.client(None).put_object(Bucket="lake", Key=key, Body=b"x")
    with pytest.raises(ConfigError, match="outside"):
        fetched_model(pinned_model("model", model.path))
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("name", ["org/model@c0ffee", "/models/m", "models/m@x"])
def test_what_is_not_on_s3_is_loaded_from_where_it_is(name):
    """A copy of a local model in the cache would fill the node's disk."""
    assert fetched_model(name) == name

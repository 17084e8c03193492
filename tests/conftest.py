"""Shared models and lakes, and the suite's own accounts: every skip with its reason, minutes by marker.

A skip is allowed for two reasons only: no GPU, or no ../shared. Anything else that is skipped fails the run.
"""

import os
import shutil
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy machine cost three times the CPU
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="raypipe-cache-")  # empty, as on a fresh machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import hypothesis
import pytest
import yaml

hypothesis.settings.register_profile("no timing decides", deadline=None)
hypothesis.settings.load_profile("no timing decides")
SHARED = Path(__file__).resolve().parents[2] / "shared"
ALLOWED_SKIPS = ("no GPU", "no ../shared")
_skips: list[tuple[str, str]] = []
_seconds: dict[str, float] = defaultdict(float)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data beside the project; tests that use it are skipped, loudly, where it is not."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared")
    return SHARED


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    """A Qwen2 of random weights from a fixed seed, with a tokenizer without BOS."""
    from tests.lakes import save_random_model

    return save_random_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2", bos=False)


@pytest.fixture(scope="session")
def embedder(tmp_path_factory) -> Path:
    from raypipe.demo import link_embedder

    link_embedder(link := tmp_path_factory.mktemp("models") / "all-MiniLM-L6-v2")
    return link


@pytest.fixture(scope="session")
def ray_address():
    """A cluster for this process and those of the command line: to start Ray takes most of the time of a short one."""
    from tests.cluster import ray_cluster

    with ray_cluster() as address:
        yield address


@pytest.fixture
def shared_ray(ray_address, monkeypatch):
    """What a test starts takes that cluster. Its workers have the environment of when it began: not for S3."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, random_model, embedder, ray_address):
    """A finished run of the whole chain on 220 samples: (folder, config, its process)."""
    from tests.lakes import raypipe, write_config, write_lake

    folder = tmp_path_factory.mktemp("chain")
    write_lake(folder / "lake", num_samples=220)
    config = write_config(folder / "test.yaml", model=random_model, embedder=embedder)
    done = raypipe("run", config, RAY_ADDRESS=ray_address)
    assert done.returncode == 0, done.stderr
    return folder, config, done


@pytest.fixture(scope="session")
def evaluated(finished, tmp_path_factory, ray_address):
    """The same run with an evaluation of four problems, in a root of its own: (root, config, its process)."""
    from tests.lakes import TASKS, evaluation, raypipe

    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(finished[0] / "root", root := folder / "root")
    (folder / "own.jsonl").write_text(TASKS)
    tree = {
        **yaml.safe_load(finished[1].read_text()),
        "name": "evaluated",
        "evaluate": evaluation(f"{folder}/own.jsonl"),
    }
    (config := folder / "test.yaml").write_text(yaml.safe_dump({**tree, "storage": {"root": str(root)}}))
    done = raypipe("run", config, RAY_ADDRESS=ray_address)
    assert done.returncode == 0, done.stderr
    return root, config, done


@pytest.fixture(scope="session")
def ray_here(ray_address):
    """This process is connected to that cluster, from now to the end."""
    from raypipe.session import ray_session

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", ray_address)
            stack.enter_context(ray_session())
        yield


@pytest.fixture(scope="session")
def rgw(tmp_path_factory):
    """A real S3 server: `.endpoint`, `.environment`, `.bucket()`, `.user(name)`, `.allow(...)`, `.session_token(seconds)`."""
    from tests.rgw import running

    with running(tmp_path_factory.mktemp("rgw") / "ceph") as server:
        yield server


@pytest.fixture(scope="session")
def proxy(rgw):
    """The same server behind faults: `.endpoint`, `.environment`, `.rules([...], seed=0)`, `.stats()`, `.clear()`."""
    from tests.faultproxy import proxying

    with proxying(rgw.endpoint, rgw.environment) as process:
        yield process


@pytest.fixture
def bucket(rgw, monkeypatch) -> str:
    """`s3://...`, new and empty; AWS_* of this process (and of those it starts) point to it, past the proxy."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in rgw.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{rgw.bucket()}"


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="write tests/golden anew; only together with a new Stage.version"
    )


def pytest_collection_modifyitems(items):
    """Quick ones first; otherwise in the order of the files."""
    items.sort(key=lambda item: "slow" in item.keywords)


def _note_skip(report):
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skips.append((report.nodeid, reason.removeprefix("Skipped: ")))


def pytest_collectreport(report):
    _note_skip(report)


def pytest_runtest_logreport(report):
    _note_skip(report)
    _seconds["slow" if "slow" in report.keywords else "unmarked"] += report.duration


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 0 and any(not reason.startswith(ALLOWED_SKIPS) for _, reason in _skips):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("skips and minutes")
    for test, reason in _skips:
        verdict = "allowed" if reason.startswith(ALLOWED_SKIPS) else "NOT ALLOWED: the run fails"
        terminalreporter.write_line(f"skipped {test}: {reason} ({verdict})")
    if not _skips:
        terminalreporter.write_line("nothing skipped")
    for marker, seconds in sorted(_seconds.items()):
        terminalreporter.write_line(f"{marker}: {seconds / 60:.1f} minutes")
    terminalreporter.write_line(time.strftime("finished %Y-%m-%d %H:%M:%S"))

"""None passes, none escapes, none slows the next: under bubblewrap, and where namespaces are refused."""

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from raypipe.sandbox import supervisor
from raypipe.sandbox.supervisor import NOBODY, Sandbox
from tests.lakes import wait_until
from tests.sandbox.hostile import ATTACKS, FILES, NETWORK, PROCESSES, SECRETS, VERDICTS

PROBLEM = {
    "prompt": "def total(numbers):\n",
    "canonical_solution": "    return sum(numbers)\n",
    "entry_point": "total",
    "test": None,
    "inputs": [[[1, 2, 3]], [[]], [[5]], [[1.5, 2]]],
    "rule": "",
    "atol": 0.0,
}
TEST = """
def check(candidate):
    assert candidate([1, 2, 3]) == 6
    assert candidate([]) == 0
    assert abs(candidate([1.5, 2]) - 3.5) < 1e-6
"""
WITH_TEST = {**PROBLEM, "test": TEST}
GOOD = "def total(numbers):\n    return sum(numbers)\n"
WAYS = {"bubblewrap": Sandbox("bubblewrap"), "restricted": Sandbox("restricted")}
SYSTEM = Path("/usr/bin/python3")  # another user may read it, wherever the tests' own Python is
if os.geteuid() == 0 and SYSTEM.exists():
    WAYS |= {
        "restricted, another user": Sandbox("restricted", user=NOBODY),
        "another user": Sandbox("user", user=NOBODY),
    }
TRIED = {
    way: PROCESSES | FILES | NETWORK | SECRETS if "user" in way else ATTACKS for way in WAYS
}  # the rest is the same for any user
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    with pytest.MonkeyPatch.context() as patch:
        if "user" in request.param:
            patch.setattr(sys, "executable", str(SYSTEM))
            known = [path for path in supervisor.libraries() if path.startswith(("/usr", "/lib", "/etc"))]
            patch.setattr(supervisor, "libraries", lambda: known)
        yield request.param


@pytest.fixture(scope="module")
def outcomes(way, tmp_path_factory):
    """Of each attack: its verdicts in both layouts, that of an honest program right after it, and the seconds of all; four at once."""
    folder = tmp_path_factory.mktemp("witness")
    folder.chmod(0o755)
    witness, secret = folder / "witness", folder / "secret"
    witness.write_text("untouched")
    secret.write_text("the secret")
    before = witness.stat()
    (everybodys := folder / "everybodys").mkdir()
    (everybodys / "file").write_text("untouched")
    for path in (everybodys, everybodys / "file"):
        path.chmod(0o777)  # as Ray has its folder on every node
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    os.environ["RAYPIPE_TEST_SECRET"] = "the secret"
    callers = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                callers.append(server.accept()[1])

        threading.Thread(target=listen, daemon=True).start()
        places = {
            "WITNESS": str(witness), "SECRET_FILE": str(secret), "EVERYBODYS": str(everybodys), "PORT": str(server.getsockname()[1]), "PARENT": str(parent.pid)
        }  # fmt: skip

        def attacked(name):
            code = ATTACKS[name]
            for word, place in places.items():
                code = code.replace(word, place)
            sandbox, started = WAYS[way], time.monotonic()
            layouts = [PROBLEM, WITH_TEST] if name in VERDICTS else [PROBLEM]
            verdicts = [sandbox.judged(problem, code) for problem in layouts]
            return verdicts, sandbox.judged(PROBLEM, GOOD), time.monotonic() - started

        with ThreadPoolExecutor(4) as threads:
            found = dict(zip(TRIED[way], threads.map(attacked, TRIED[way]), strict=True))
    now = witness.stat()
    found["witness"] = witness.read_text() == "untouched" and (now.st_mode, now.st_uid, now.st_mtime) == (
        before.st_mode, before.st_uid, before.st_mtime
    )  # fmt: skip
    found["everybodys"] = [(path.name, path.read_text()) for path in everybodys.iterdir()] == [("file", "untouched")]
    found["parent"] = psutil.Process(parent.pid).status() in (psutil.STATUS_SLEEPING, psutil.STATUS_RUNNING)
    found["callers"] = callers
    parent.kill()
    parent.wait()
    del os.environ["RAYPIPE_TEST_SECRET"]
    return found


def test_none_passes_none_tells(outcomes, way):
    for name in TRIED[way]:
        verdicts, after, seconds = outcomes[name]
        for verdict in verdicts:
            print(f"{name}: {verdict} {seconds:.1f} s")
            assert not verdict.passed, name
            assert verdict.reason in ("wrong", "error", "time", "memory", "syntax"), name
            assert "ESCAPED" not in verdict.evidence, f"{name}: {verdict}"
        assert after.passed, f"an honest program after {name}: {after}"


def test_nothing_was_touched(outcomes):
    assert outcomes["witness"] and outcomes["everybodys"] and outcomes["parent"] and not outcomes["callers"]
    wait_until(lambda: not alive(), timeout_s=30)  # what is killed may take a moment to give its memory back


def alive():
    """What this process has begun, or nobody any more: others may judge on this machine meanwhile."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        with suppress(psutil.NoSuchProcess):
            mine = process.info["ppid"] == 1 or os.getpid() in (parent.pid for parent in process.parents())
            if mine and "sandbox.inside" in " ".join(process.info["cmdline"] or []):
                found.append(process)
    return found


REASONS = {
    "memory_bomb": "memory", "endless_call": "time", "endless_loop": "time", "sleeps": "time", "no_python": "syntax", "asserts": "error",
    "exits_hard": "error", "always_equal": "wrong", "not_a_number": "wrong", "no_function": "error",
}  # fmt: skip


def test_reasons(outcomes, way):
    found = {name: outcomes[name][0][0].reason for name in REASONS if name in TRIED[way]}
    assert found == {name: reason for name, reason in REASONS.items() if name in found}

"""Outside: starts a judge and a solver for each piece of code, and ends them.

How they are shut in, best first:

- `bubblewrap`: namespaces of their own, no network, a root of read-only libraries, a private /tmp in memory;
- `restricted`, where namespaces are refused, as in most pods: Landlock lets them read libraries only and write one private folder; as
  root they also run as another user;
- `user`, where the kernel has no Landlock (before Linux 5.13): as another user, who may read what anybody may, and write nothing;
- `unprotected`, if asked for only.

Under each of them a process has the limits of `confine`, no inherited environment or descriptors, and no system call that makes a
process, a socket or a signal.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

from raypipe.errors import ConfigError, DataError
from raypipe.sandbox import confine
from raypipe.sandbox.plain import Gone, Pipe, TooLate

HERE = Path(__file__).parent
MOUNTED = "/opt/raypipe"
DEADLINE_S = 400.0  # of one piece of code, all in all
POLL_S = 0.2
MUCH = 1 << 20  # bytes of a judge's last words
CPU_S = {"solver": 70, "judge": 150}
FOLDER_BYTES, FOLDER_FILES = 64 << 20, 1000  # that the code may write
NOBODY = 65534
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
PYTHON = ("-s", "-P", "-B", "-c")  # no module of the working directory's or of the user's
BOOT = "import sys; sys.path.append({0!r}); from sandbox.inside import main; sys.path.remove({0!r}); main()"
OF_SIGNAL = {
    int(signal.SIGXCPU): "time",
    int(signal.SIGPROF): "time",
    int(signal.SIGKILL): "memory",
}  # the kernel's own, as nobody else can send one


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reason: str  # "" where it passed; else wrong, error, time, memory, syntax
    evidence: str
    seconds: float  # that the code took to answer


@dataclass(frozen=True)
class Sandbox:
    kind: str  # bubblewrap, restricted, user, unprotected
    why_not: str = ""  # the better ones
    user: int | None = None

    def judged(self, problem: Mapping[str, Any], code: str) -> Verdict:
        """Of code that is taken to be hostile. DataError where the problem's own solution fails.

        `problem`: prompt, canonical_solution, entry_point, test, inputs (packed), rule, atol: see `judge`.
        """
        with tempfile.TemporaryDirectory(prefix="raypipe-") as folder, tempfile.TemporaryFile() as errors:
            return self._judged(problem, code, Path(folder), errors)

    def _judged(self, problem: Mapping[str, Any], code: str, folder: Path, errors: IO[bytes]) -> Verdict:
        asks, answers, tells, hears = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        ends = [*asks, *answers, *tells, *hears]
        started: list[subprocess.Popen[bytes]] = []
        try:
            solver = self._start("solver", folder, {"judge": (asks[0], answers[1])}, subprocess.DEVNULL)
            started.append(solver)
            pipes = {"supervisor": (tells[0], hears[1]), "solver": (answers[0], asks[1])}
            started.append(self._start("judge", folder, pipes, errors))
            for end in (*asks, *answers, tells[0], hears[1]):
                os.close(end)
                ends.remove(end)
            verdict = self._verdict(Pipe(hears[0], tells[1]), {"problem": problem, "code": code}, folder)
            if verdict["reason"] == "died":
                verdict |= {"reason": _cause(solver), "evidence": "its process ended"}
            if verdict["reason"] == "no verdict":
                errors.seek(0)
                said = errors.read(MUCH).decode(errors="replace").strip().splitlines() or ["it ended without a word"]
                verdict |= {"reason": "error", "evidence": f"no verdict of the judge: {said[-1]}"}
            return Verdict(**verdict)
        finally:
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for end in ends:
                os.close(end)

    def _start(
        self, part: str, folder: Path, pipes: Mapping[str, tuple[int, int]], errors: int | IO[bytes]
    ) -> subprocess.Popen[bytes]:
        own = folder / part
        own.mkdir(mode=0o700)
        limits: dict[str, Any] = {"cpu_s": CPU_S[part]}
        if self.user is not None:
            folder.chmod(0o711)
            os.chown(own, self.user, self.user)
            limits["user"] = self.user
        if self.kind == "unprotected":
            limits["calls"] = True
        if self.kind == "user":
            limits["frozen"] = True  # Ray's own folder on a node may be written by anybody
        if self.kind == "restricted":
            limits |= {"read": [*libraries(), *DEVICES], "write": [str(own), "/dev/null"]}
        wrapped = [*_bubblewrap(), "--"] if self.kind == "bubblewrap" else []
        at = MOUNTED if wrapped else str(HERE.parent)
        given = json.dumps({"part": part, "pipes": pipes, "limits": limits})
        return subprocess.Popen(
            [*wrapped, sys.executable, *PYTHON, BOOT.format(at), given],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=ENVIRONMENT if wrapped else ENVIRONMENT | {"HOME": str(own), "TMPDIR": str(own)},
            cwd=own,
            pass_fds=[end for both in pipes.values() for end in both],
            start_new_session=True,
        )

    def _verdict(self, judge: Pipe, task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        try:
            judge.send(task)
            while time.monotonic() < deadline:
                if select.select([judge.source], [], [], POLL_S)[0]:
                    said = judge.receive(POLL_S * 50)
                    if "broken" in said:
                        raise DataError(f"the problem's own solution fails: {said['broken']}")
                    return dict(said)
                if _too_full(folder):
                    return _failed("error", f"wrote more than {FOLDER_BYTES >> 20} MiB, or {FOLDER_FILES} files")
        except (Gone, TooLate):
            return _failed("no verdict")
        return _failed("time", f"no verdict in {DEADLINE_S:.0f} s")


def _failed(reason: str, evidence: str = "") -> dict[str, Any]:
    return {"passed": False, "reason": reason, "evidence": evidence, "seconds": 0.0}


def _cause(solver: subprocess.Popen[bytes]) -> str:
    """Of a solver that ended without an answer."""
    try:
        code = solver.wait(timeout=1)
    except subprocess.TimeoutExpired:  # it closed its pipe and lives on
        return "error"
    number = -code if code < 0 else code - 128  # bubblewrap's and shells' way to tell a signal
    return OF_SIGNAL.get(number, "error")


def _too_full(folder: Path) -> bool:
    size = count = 0
    for place, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        for name in files:
            with suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_blocks * 512
        if size > FOLDER_BYTES or count > FOLDER_FILES:
            return True
    return False


DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@cache
def libraries() -> list[str]:
    """Files and folders that Python and its packages are read from."""
    own = {
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        os.path.dirname(os.path.realpath(sys.executable)),
        *sysconfig.get_paths().values(),
    }
    system = {"/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/ld.so.conf"}
    every = {*own, *map(os.path.realpath, own), *system}
    known = {path for path in every if os.path.exists(path) and path != "/"}
    return sorted(path for path in known if not known & set(map(str, Path(path).parents)))  # the outermost


@cache
def _bubblewrap() -> list[str]:
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--hostname", "sandbox"]
    words += [
        "--size",
        str(FOLDER_BYTES),
        "--tmpfs",
        "/tmp",
    ]  # before what may be in it, as an environment for a try is
    for path in libraries():
        # a link at the top, as /lib -> usr/lib
        link = os.path.islink(path)
        words += ["--symlink", os.readlink(path), path] if link else ["--ro-bind", path, path]
    for device in DEVICES:
        words += ["--dev-bind", device, device]
    words += ["--ro-bind", str(HERE), f"{MOUNTED}/{HERE.name}"]
    return [*words, "--chdir", "/tmp", "--remount-ro", "/"]


PROBE = {
    "prompt": "def same(x):\n",
    "canonical_solution": "    return x\n",
    "entry_point": "same",
    "test": None,
    "inputs": [[1]],
    "rule": "",
    "atol": 0.0,
}
PROBE_CODE = (
    "import statistics\n\ndef same(x):\n    return statistics.mean([x])\n"  # a user must be able to read the library
)


@cache
def find_sandbox(unprotected: bool = False) -> Sandbox:
    """The best that this machine allows, tried out. ConfigError where it allows none and `unprotected` is not asked for."""
    root, why_not = os.geteuid() == 0, list[str]()
    kinds = [Sandbox("bubblewrap")] if not (refused := _bubblewrap_refused()) else []
    why_not += [refused] if refused else []
    has_landlock = confine.landlock_version() > 0
    kinds += [Sandbox("restricted", user=NOBODY)] if has_landlock and root else []
    kinds += [Sandbox("restricted")] if has_landlock else []
    kinds += [Sandbox("user", user=NOBODY)] if root else []
    kinds += [Sandbox("unprotected")] if unprotected else []
    for sandbox in kinds:
        found = sandbox.judged(PROBE, PROBE_CODE)
        if found.passed:
            return replace(sandbox, why_not="; ".join(why_not))
        why_not.append(f"{sandbox.kind}{f' as user {sandbox.user}' if sandbox.user else ''}: {found.evidence}")
    raise ConfigError(
        f"evaluate.execute: this machine has no sandbox for code that a model wrote ({'; '.join(why_not)}). Install bubblewrap and allow "
        "user namespaces, or use Linux 5.13 or newer; or set evaluate.execute_without_sandbox=true, which gives that code all this "
        "process may read, write and reach"
    )


def _bubblewrap_refused() -> str:
    """Why not, or nothing."""
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    tried = subprocess.run(
        [*_bubblewrap(), "--", sys.executable, "-I", "-c", ""], capture_output=True, text=True, check=False
    )
    return (
        ""
        if tried.returncode == 0
        else (tried.stderr.strip().splitlines() or [f"bubblewrap: exit code {tried.returncode}"])[-1]
    )

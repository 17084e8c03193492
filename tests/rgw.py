"""A real S3 server for the tests: Ceph RGW with one monitor and one OSD, on this machine, for as long as a `with` block.

Ceph because it checks what AWS checks: signatures, MD5, policies, `If-None-Match: *` as an atomic condition. Objects live in
memory (memstore): it starts in 1.0 to 1.7 s where BlueStore takes 8, and the disk plays no part. Measured on 2 cores:
0.13 GB of memory when empty, then 2.1 bytes per byte stored and 20 to 60 KB per object.
"""

import json
import random
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

CEPH = Path(__file__).resolve().parents[1] / ".venv" / "ceph"
START_S = 60
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")  # with the thread that started it: so only the main thread may


@dataclass(frozen=True)
class User:
    """Someone with keys, at the server itself or at a proxy before it."""

    name: str
    access_key: str
    secret_key: str
    endpoint: str
    session_token: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the AWS chain of boto3 and pyarrow reads."""
        token = {"AWS_SESSION_TOKEN": self.session_token} if self.session_token else {}
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key, **token}
        return {**keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.endpoint}

    def client(self, service: str = "s3", **settings: Any) -> Any:
        keys = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
        place = {"endpoint_url": self.endpoint, "region_name": "us-east-1", "config": Config(**settings)}
        return boto3.client(service, **keys, **place, aws_session_token=self.session_token)


@dataclass(frozen=True)
class Rgw:
    """A running server; every bucket is the owner's."""

    folder: Path
    endpoint: str
    owner: User

    @property
    def environment(self) -> dict[str, str]:
        return self.owner.environment

    def bucket(self, name: str | None = None) -> str:
        """The name of a new bucket; if none is given, one that nobody has."""
        name = name or f"test-{uuid.uuid4().hex[:12]}"
        self.owner.client().create_bucket(Bucket=name)
        return name

    def user(self, name: str) -> User:
        """A new user (0.2 s), who may do nothing with the owner's buckets until `allow` says so."""
        user = User(name, f"raypipe-key-{name}", f"raypipe-secret-of-{name}", self.endpoint)
        _create_user(self.folder, user)
        return user

    def allow(self, bucket: str, user: User, *actions: str, prefix: str = "") -> None:
        """These and nothing else, as "ListBucket", "GetObject", "PutObject", on objects under `prefix`."""
        resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{prefix}*"]
        policy = _policy([f"s3:{action}" for action in actions], Resource=resources, Principal=_principal(user))
        self.owner.client().put_bucket_policy(Bucket=bucket, Policy=policy)

    def session_token(self, seconds: int, policy: str = "") -> User:
        """Keys that do for so long what the policy says, or everything; then 403 InvalidAccessKeyId, where AWS says 400 ExpiredToken."""
        iam, name = self.owner.client("iam"), f"role-{uuid.uuid4().hex[:8]}"
        trust = _policy(["sts:AssumeRole"], Principal=_principal(self.owner))
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        policy = policy or _policy(["s3:*"], Resource="arn:aws:s3:::*")
        iam.put_role_policy(RoleName=name, PolicyName="some", PolicyDocument=policy)
        sts = self.owner.client("sts", parameter_validation=False)  # boto3 would refuse less than 900 s
        keys = sts.assume_role(RoleArn=role, RoleSessionName="test", DurationSeconds=seconds)["Credentials"]
        return User(name, keys["AccessKeyId"], keys["SecretAccessKey"], self.endpoint, keys["SessionToken"])


@contextmanager
def running(folder: Path) -> Iterator[Rgw]:
    """Started on free ports, with its files in `folder`, which is new and removed at the end."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a server dies with the thread that starts it: start it in the main thread")
    if not (CEPH / ".made").exists():
        raise RuntimeError(f"{CEPH}: the tests' S3 server is not there. Run: make .venv/ceph/.made")
    gateway, monitor = free_ports(2)
    endpoint = f"http://127.0.0.1:{gateway}"
    owner = User("owner", "raypipe-key-owner", "raypipe-secret-of-owner", endpoint)
    daemons: list[subprocess.Popen] = []
    try:
        _prepare(folder, monitor)
        daemons.append(_daemon(folder, "ceph-mon", "-i", "a"))
        _run(folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        daemons.append(_daemon(folder, "ceph-osd", "-i", "0"))
        frontend = f"beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1"  # without it 40 ms an answer
        daemons.append(_daemon(folder, "radosgw", "-n", "client.rgw", "--rgw-frontends", frontend))
        _wait(folder, daemons, gateway)
        _create_user(folder, owner, "--caps", "roles=*")
        yield Rgw(folder, endpoint, owner)
    finally:
        for daemon in daemons:  # nothing is worth saving, and after SIGTERM the gateway would stay for more than 5 s
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder)


def free_ports(count: int) -> list[int]:
    """Below those that the kernel hands out and above those that Ray takes, so that nobody gets them meanwhile; no two alike."""
    while True:
        ports = random.SystemRandom().sample(range(20_000, 32_000), count)
        if not any(map(_answers, ports)):
            return ports


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _principal(user: User) -> dict[str, list[str]]:
    return {"AWS": [f"arn:aws:iam:::user/{user.name}"]}


def _policy(actions: list[str], **statement: Any) -> str:
    """Without spaces: RGW takes the "+" that a form makes of one for a plus."""
    whole = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, **statement}]}
    return json.dumps(whole, separators=(",", ":"))


def _prepare(folder: Path, monitor: int) -> None:
    """The cluster's first maps, made beforehand: then no command and no manager is needed to add the OSD."""
    for name in ("mon", "osd"):
        (folder / name).mkdir(parents=True)
    fsid, lib = str(uuid.uuid4()), next(CEPH.glob("usr/lib/*-linux-gnu*/rados-classes")).parent
    config = CONFIG.format(folder=folder, monitor=monitor, fsid=fsid, lib=lib)
    (folder / "ceph.conf").write_text(config)
    monmap, osdmap = str(folder / "monmap"), str(folder / "osdmap")
    _run(folder, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor}]", monmap)
    _run(folder, "osdmaptool", "--createsimple", "1", osdmap)
    _run(folder, "ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--osdmap", osdmap)


def _wait(folder: Path, daemons: list[subprocess.Popen], port: int) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(port):
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
            raise RuntimeError(f"Ceph does not answer on port {port} (waited at most {START_S} s).{_logs(folder)}")
        time.sleep(0.02)


def _logs(folder: Path) -> str:
    return "".join(f"\n{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))


def _create_user(folder: Path, user: User, *words: str) -> None:
    keys = ("--access-key", user.access_key, "--secret", user.secret_key)
    _run(folder, "radosgw-admin", "user", "create", "--uid", user.name, "--display-name", user.name, *keys, *words)


def _daemon(folder: Path, program: str, *words: str) -> subprocess.Popen:
    with (folder / f"{program}.log").open("wb") as log:
        return subprocess.Popen(_command(folder, program, *words, "-f"), stdout=log, stderr=log)


def _run(folder: Path, program: str, *words: str) -> None:
    command = _command(folder, program, *words)
    try:
        with (folder / f"{program}-once.log").open("wb") as log:
            subprocess.run(command, stdout=log, stderr=log, timeout=START_S, check=True)
    except subprocess.SubprocessError as error:
        raise RuntimeError(f"{error}{_logs(folder)}") from error


def _command(folder: Path, program: str, *words: str) -> list[str]:
    places = ("usr/lib/*-linux-gnu*", "usr/lib/*-linux-gnu*/ceph", "lib/*-linux-gnu*")
    libraries = "LD_LIBRARY_PATH=" + ":".join(str(path) for place in places for path in CEPH.glob(place))
    program = str(CEPH / "usr/bin" / program)
    return [*DIES_WITH_PARENT, "env", libraries, program, "-c", str(folder / "ceph.conf"), *words]


CONFIG = """[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
ms mon client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
keyring = /dev/null
mon data = {folder}/mon
osd data = {folder}/osd
admin socket =
log to file = false
mon cluster log to file = false
plugin dir = {lib}/ceph
erasure code dir = {lib}/ceph/erasure-code
osd class dir = {lib}/rados-classes
osd objectstore = memstore
memstore device bytes = 17179869184
osd pool default size = 1
osd pool default pg num = 8
mon allow pool size one = true
mon data avail crit = 1
paxos propose interval = 0.05
paxos min wait = 0.01
rgw thread pool size = 32
rgw s3 auth use sts = true
rgw s3 auth order = local, sts
rgw sts key = abcdefghijklmnop
rgw sts min session duration = 1
"""

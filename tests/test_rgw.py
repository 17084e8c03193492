"""The S3 server and the proxy of the tests do what the tests that use them take for granted."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError, ResponseStreamingError

from tests.lakes import PROJECT

ONCE = {"retries": {"total_max_attempts": 1}}


@pytest.fixture
def name(rgw) -> str:
    rgw.owner.client().put_object(Bucket=(name := rgw.bucket()), Key="there", Body=b"0123456789")
    return name


@pytest.fixture
def faulty(rgw, proxy):
    """A client without retries behind the proxy, which is as new."""
    proxy.clear()
    return replace(rgw.owner, endpoint=proxy.endpoint).client(**ONCE)


def outcome(call, **words) -> int | str:
    """The error's code as the server says it (of a HEAD, which says nothing, the status), or 200."""
    try:
        call(**words)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return 200


def test_of_sixteen_conditional_puts_one_wins(rgw, name):
    """Commits of parts and of owners rest on it."""
    s3 = rgw.owner.client(max_pool_connections=16)

    def put(number: int) -> int | str:
        return outcome(s3.put_object, Bucket=name, Key="key", Body=b"%d" % number, IfNoneMatch="*")

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(put, range(16)))
    assert sorted(map(str, outcomes)) == ["200"] + ["PreconditionFailed"] * 15
    assert s3.get_object(Bucket=name, Key="key")["Body"].read() == b"%d" % outcomes.index(200)


def test_refusals_have_the_codes_of_aws(rgw, name):
    """A server that takes any key, as moto does, would let every test of refusals pass."""
    for stranger, code in (
        (replace(rgw.owner, secret_key="wrong"), "SignatureDoesNotMatch"),
        (replace(rgw.owner, access_key="nobody"), "InvalidAccessKeyId"),
    ):
        s3 = stranger.client()
        assert outcome(s3.get_object, Bucket=name, Key="there") == code
        assert outcome(s3.put_object, Bucket=name, Key="new", Body=b"x") == code
        assert outcome(s3.list_objects_v2, Bucket=name) == code
        assert outcome(s3.head_object, Bucket=name, Key="there") == "403"
    s3 = rgw.owner.client()
    assert outcome(s3.get_object, Bucket="no-such", Key="there") == "NoSuchBucket"
    assert outcome(s3.put_object, Bucket="no-such", Key="new", Body=b"x") == "NoSuchBucket"
    assert outcome(s3.get_object, Bucket=name, Key="missing") == "NoSuchKey"
    assert outcome(s3.put_object, Bucket=name, Key="new", Body=b"x", ContentMD5="A" * 22 + "==") == "BadDigest"


def test_a_user_may_do_what_the_policy_allows(rgw, name):
    """Who may not list gets 403 for an object that is not there, as on AWS: 'missing' and 'forbidden' look alike."""
    guest = rgw.user("guest")
    s3 = guest.client()

    def what_happens() -> list[int | str]:
        answers = [outcome(s3.get_object, Bucket=name, Key=key) for key in ("there", "missing")]
        written = outcome(s3.put_object, Bucket=name, Key="guests", Body=b"whose object it is then")
        return [outcome(s3.list_objects_v2, Bucket=name), *answers, written]

    no = "AccessDenied"
    assert what_happens() == [no, no, no, no]
    for actions, expected in (
        (["ListBucket"], [200, no, "NoSuchKey", no]),
        (["GetObject"], [no, 200, no, no]),
        (["ListBucket", "GetObject"], [200, 200, "NoSuchKey", no]),
        (["PutObject"], [no, no, no, 200]),
    ):
        rgw.allow(name, guest, *actions)
        assert what_happens() == expected, actions
    rgw.allow(name, guest, "GetObject", prefix="lake/")
    assert outcome(s3.get_object, Bucket=name, Key="there") == no


def test_a_session_token_expires(rgw, name):
    brief = rgw.session_token(2).client()
    assert outcome(brief.put_object, Bucket=name, Key="brief", Body=b"x") == 200
    time.sleep(2.1)
    assert outcome(brief.get_object, Bucket=name, Key="brief") == "InvalidAccessKeyId"


def test_without_rules_the_proxy_changes_nothing(rgw, name, faulty, proxy):
    body = os.urandom(3 << 20)
    assert outcome(faulty.put_object, Bucket=name, Key="a b/+é", Body=body, IfNoneMatch="*") == 200
    assert outcome(faulty.put_object, Bucket=name, Key="a b/+é", Body=body, IfNoneMatch="*") == "PreconditionFailed"
    here = {"Bucket": name, "Key": "a b/+é"}
    head = faulty.head_object(**here)
    assert head["ContentLength"] == len(body)
    assert faulty.get_object(**here)["Body"].read() == body
    assert faulty.get_object(**here, Range="bytes=5-104")["Body"].read() == body[5:105]
    assert outcome(faulty.get_object, **here, IfNoneMatch=head["ETag"]) == "304"
    assert [found["Key"] for found in faulty.list_objects_v2(Bucket=name)["Contents"]] == ["a b/+é", "there"]
    assert proxy.stats()["requests"] == {"PUT": 2, "HEAD": 1, "GET": 4} and not proxy.stats()["fired"]


def test_every_fault_is_what_it_is_called(rgw, name, faulty, proxy):
    """A fault that does not happen proves nothing about the code that survives it."""
    get, put = {"Bucket": name, "Key": "there"}, {"Bucket": name, "Key": "new", "Body": b"x" * 100_000}
    for action, code in (("slowdown", "SlowDown"), ("error500", "InternalError"), ("expired_token", "ExpiredToken")):
        with proxy.rules([{"action": action}]):
            assert outcome(faulty.put_object, **put) == code == outcome(faulty.get_object, **get)
    with proxy.rules([{"action": "slowdown"}]):
        assert outcome(faulty.head_object, **get) == "503"
    with proxy.rules([{"action": "truncate"}]), pytest.raises(ResponseStreamingError):
        faulty.get_object(**get)["Body"].read()
    for action in ("reset", "blackhole"):
        with proxy.rules([{"action": action, "seconds": 0.2}]), pytest.raises((ConnectionClosedError, HTTPClientError)):
            faulty.put_object(**put)
    assert outcome(rgw.owner.client().get_object, Bucket=name, Key="new") == "NoSuchKey"  # none of these came through
    with proxy.rules([{"action": "reset_after_upload"}]), pytest.raises(ConnectionClosedError):
        faulty.put_object(**put)
    assert rgw.owner.client().get_object(Bucket=name, Key="new")["Body"].read() == put["Body"]
    with proxy.rules([{"action": "latency", "seconds": 0.3}]):
        started = time.monotonic()
        faulty.get_object(**get)["Body"].read()
        assert time.monotonic() - started >= 0.3
    once = {"truncate": 1, "reset": 1, "blackhole": 1, "reset_after_upload": 1, "latency": 1}
    assert proxy.stats()["fired"] == {"slowdown": 3, "error500": 2, "expired_token": 2, **once}


def test_rules_choose_by_method_path_place_and_chance(name, faulty, proxy):
    def codes(count: int, **words) -> list[bool]:
        return [outcome(faulty.get_object, Bucket=name, Key="there", **words) == "SlowDown" for _ in range(count)]

    with proxy.rules([{"action": "slowdown", "method": "GET", "path": "/there$", "skip": 1, "times": 2}]):
        assert codes(5) == [False, True, True, False, False]
    with proxy.rules([{"action": "slowdown", "method": "PUT"}, {"action": "slowdown", "path": "/elsewhere"}]):
        assert codes(2) == [False, False]
    seen = []
    for seed in (1, 1, 2):
        with proxy.rules([{"action": "slowdown", "p": 0.4}], seed=seed):
            seen.append(codes(40))
    assert seen[0] == seen[1] != seen[2] and 6 < sum(seen[0]) < 26
    with pytest.raises(ValueError, match="slowdwn"):
        proxy.rules([{"action": "slowdwn"}])


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_nothing_is_left_behind(tmp_path, end):
    """Daemons of dead sessions would pile up on every machine that runs the tests."""
    folder = tmp_path / "ceph"
    words = [sys.executable, "-c", SESSION, str(folder)]
    with subprocess.Popen(words, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        ports = [int(endpoint.rpartition(":")[2]) for endpoint in session.stdout.readline().split()]
        assert len(with_words(folder)) == 3 and all(map(listens, ports))
        if end == signal.SIGKILL:
            session.kill()
        else:
            session.stdin.close()
    deadline = time.monotonic() + 5
    while (left := with_words(folder)) or any(map(listens, ports)):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert folder.exists() == (end == signal.SIGKILL)


SESSION = """
import sys
from pathlib import Path
from tests.faultproxy import proxying
from tests.rgw import running

with running(Path(sys.argv[1])) as server, proxying(server.endpoint, {}) as proxy:
    print(server.endpoint, proxy.endpoint, flush=True)
    sys.stdin.read()
"""


def with_words(folder: Path) -> list[str]:
    """Programs of Ceph that were started for this folder and run."""
    lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder / "ceph.conf") in line]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

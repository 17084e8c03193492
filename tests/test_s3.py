"""S3 as it is on a bad day: a server in this process that answers, breaks off and lies as it is told, byte by byte.

What every storage must do is in test_store.py; the real server's word is the last one. `Server`, `chain` and `moto_bucket`
are for the other tests of S3 too.
"""

import base64
import hashlib
import http.server
import json
import pickle
import socket
import ssl
import struct
import sys
import threading
import time
import types
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import moto
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import s3
from raypipe.errors import Stopped, StorageError
from raypipe.s3 import S3, patience
from raypipe.store import Folder

KEY, SECRET, TOKEN = "AKIATESTKEY", "test-secret/never+shown", "test-token-never-shown"
BUCKET = "lake"
A = f"s3://{BUCKET}/a"


# What others use too


def chain(monkeypatch, folder, **variables):
    """An AWS chain that knows only what is given here, and no client made from another."""
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    defaults = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "aws-credentials"),
    }
    for name, value in {**defaults, **variables}.items():
        monkeypatch.setenv(name, value)
    s3.client.cache_clear()


@contextmanager
def moto_bucket(monkeypatch, folder):
    """boto3's client, and an empty bucket of moto's in which S3() looks."""
    chain(monkeypatch, folder)
    with moto.mock_aws():
        s3.client(None).create_bucket(Bucket=BUCKET)
        yield s3.client(None)
    s3.client.cache_clear()


class Server(http.server.ThreadingHTTPServer):
    """As much of S3 as raypipe uses, with the bucket in the path. Each request takes the next of `faults`, a function of its handler, if there is one."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.faults, self.requests, self.lock = {}, [], [], threading.Lock()
        self.endpoint = f"http://localhost:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, address):
        """Clients that go away are part of the tests."""

    def storage(self):
        return S3(self.endpoint)

    def asked(self):
        return [f"{method} {path}" for method, path, _ in self.requests]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # 40 ms a request otherwise

    def log_message(self, *_):
        pass

    def handle_expect_100(self):
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def do(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.key, self.query = unquote(url.path), {name: values[0] for name, values in parse_qs(url.query).items()}
        with self.server.lock:
            self.server.requests.append((self.command, self.path, self.headers))
            fault = self.server.faults.pop(0) if self.server.faults else type(self).obey
        fault(self)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

    def obey(self):
        self.send(*self.answer())

    def answer(self):
        objects = self.server.objects
        if self.command == "PUT":
            with self.server.lock:
                if self.headers.get("If-None-Match") == "*" and self.key in objects:
                    return error(412, "PreconditionFailed")
                objects[self.key] = self.body
            return 200, {"ETag": etag(self.body)}, b""
        if self.command == "DELETE":
            objects.pop(self.key, None)
            return 204, {}, b""
        if "list-type" in self.query:
            return 200, {}, self.listing()
        if self.key not in objects:
            return error(404, "NoSuchKey")
        return self.found(objects[self.key])

    def found(self, data):
        headers, span = {"ETag": etag(data), "Last-Modified": format_datetime(datetime.now(UTC), usegmt=True)}, None
        if span := self.headers.get("Range"):
            first, last = (int(place) for place in span.removeprefix("bytes=").split("-"))
            if first >= len(data):
                return error(416, "InvalidRange")
            headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data = data[first : last + 1]
        return 206 if span else 200, headers, data

    def listing(self):
        bucket, prefix = self.key.strip("/"), self.query.get("prefix", "")
        keys = sorted(key[len(bucket) + 2 :] for key in self.server.objects if key.startswith(f"/{bucket}/{prefix}"))
        rows = (
            f"<Contents><Key>{escape(quote(key))}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{etag(data)}"
            f"</ETag><Size>{len(data)}</Size></Contents>"
            for key in keys
            for data in [self.server.objects[f"/{bucket}/{key}"]]
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(keys)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
        ).encode()

    def send(self, status, headers, body, cut=None, length=True):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None or not length:
            self.close_connection = True


def etag(data):
    return f'"{hashlib.md5(data).hexdigest()}"'


def error(status, code, headers=None, message="as told"):
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return status, headers or {}, body


# Faults


def says(status, code="", body=None, **headers):
    """An error of S3, or with `body` any answer at all."""
    status, _, text = error(status, code)
    return lambda handler: handler.send(status, headers, text if body is None else body)


def cut(at):
    """The true answer, with its length, of which only so many bytes come."""
    return lambda handler: handler.send(*handler.answer(), cut=at)


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def committed_then_reset(handler):
    handler.answer()
    reset(handler)


def garbled(body):
    """As if all were well."""
    return lambda handler: handler.send(200, {"ETag": '"e"'}, body)


def raw(data):
    """No HTTP."""

    def fault(handler):
        handler.wfile.write(data)
        handler.close_connection = True

    return fault


KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def server_of_module(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch, Server() as server:
        chain(monkeypatch, tmp_path_factory.mktemp("aws"), **KEYS)
        yield server
    s3.client.cache_clear()


@pytest.fixture
def server(server_of_module):
    """The one of all tests here that leave the AWS chain as it is: to make a client takes 0.1 s."""
    for record in (server_of_module.objects, server_of_module.faults, server_of_module.requests):
        record.clear()
    return server_of_module


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A server for tests that change the chain."""
    chain(monkeypatch, tmp_path, **KEYS)
    with Server() as server:
        yield server
    s3.client.cache_clear()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that would have been waited between attempts."""
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        time.sleep(0.001)

    monkeypatch.setattr("tenacity.nap.time", types.SimpleNamespace(sleep=sleep))
    return waits


@pytest.fixture(autouse=True)
def shows_no_secret(caplog):
    """Logs are kept for years and read by many."""
    caplog.set_level("INFO")
    yield
    assert not any(hidden in caplog.text for hidden in (SECRET, TOKEN))


def fails(kind, request, *said):
    """The message, in which no secret is."""
    with pytest.raises(kind) as caught:
        request()
    message = str(caught.value)
    assert all(text in message for text in said), message
    assert not any(hidden in message for hidden in (SECRET, TOKEN, quote(SECRET, safe="")))
    return message


# Retries

LIST = f"s3://{BUCKET}"
DATA = bytes(range(256)) * 40
REQUESTS = {
    "get": lambda storage: storage.get(A) == DATA,
    "find": lambda storage: storage.find(A).size == len(DATA),
    "range": lambda storage: storage.read_range(A, 5, 10, etag(DATA).strip('"')) == DATA[5:15],
    "open": lambda storage: storage.open(A).read() == DATA,
    "stream": lambda storage: storage.stream(A, len(DATA), etag(DATA).strip('"')).read() == DATA,
    "list": lambda storage: list(storage.names(LIST)) == ["a"],
    "walk": lambda storage: [found.uri for found in storage.walk(LIST)] == [A],
    "put": lambda storage: storage.put(f"{A}new", DATA),
    "replace": lambda storage: storage.replace(A, DATA) is None,
    "delete": lambda storage: storage.delete(f"{A}gone") is None,
}
PASSING = {
    "SlowDown": says(503, "SlowDown"),
    "InternalError": says(500, "InternalError"),
    "bad gateway": says(502, body=b"<html><body>Bad gateway</body></html>"),
    "429": says(429, "TooManyRequests"),
    "429 of a proxy": says(429, body=b"slow down"),
    "408 of a proxy": says(408, body=b"<html><body><h1>408 Request Time-out</h1></body></html>"),
    "RequestTimeout": says(400, "RequestTimeout"),
    "BadDigest": says(400, "BadDigest"),
    "other bytes than signed": says(400, "XAmzContentSHA256Mismatch"),
    "409": says(409, "ConditionalRequestConflict"),
    "reset": reset,
    "no answer": raw(b""),
    "no HTTP": raw(b"\x00\x01 what?\r\n\r\n"),
}


@pytest.mark.parametrize("request_name", ["get", "list", "put"])
@pytest.mark.parametrize("fault", PASSING, ids=lambda name: name.replace(" ", "-"))
def test_what_passes_is_tried_again(server, fault, request_name, waits):
    """One 503 in a million requests would end a night's run."""
    server.objects["/lake/a"] = DATA
    server.faults += [PASSING[fault]] * 3
    assert REQUESTS[request_name](server.storage())
    assert len(server.requests) == 4 and len(waits) == 3


@pytest.mark.parametrize("request_name", REQUESTS)
def test_every_request_is_tried_again(server, request_name):
    """A method that forgot its retries fails once in a thousand times, in production only."""
    server.objects["/lake/a"] = DATA
    server.faults += [says(503, "SlowDown"), reset, says(500, "InternalError")]
    assert REQUESTS[request_name](server.storage())


@pytest.mark.parametrize("at", [0, 1, 200, -1])
@pytest.mark.parametrize("request_name", ["get", "open", "stream", "list", "walk"])
def test_a_body_that_breaks_off_is_read_again(server, request_name, at):
    """Half a part would be taken for the whole, half a listing for all there is."""
    server.objects["/lake/a"] = DATA
    server.faults += [_Handler.obey] if request_name == "open" else []  # a HEAD comes first
    server.faults += [cut(at), cut(at)]
    assert REQUESTS[request_name](server.storage())
    assert not server.faults


@pytest.mark.parametrize("count", [0, 3, 11], ids=["nothing", "short", "long"])
def test_a_range_of_another_length_is_asked_for_again(server, count):
    """Without a Content-Length a cut is seen by the count alone; a cache in between may send the object whole."""
    server.objects["/lake/a"] = DATA
    server.faults.append(lambda handler: handler.send(206, {"ETag": etag(DATA)}, DATA[:count], length=False))
    assert REQUESTS["range"](server.storage())
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not xml",
        b"<ListBucketResult><Contents>",
        b"<html><body>Please sign in</body></html>",
        b"<ListBucketResult/>",
    ],
)
@pytest.mark.parametrize("request_name", ["list", "walk"])
def test_garbage_is_no_listing(server, request_name, body):
    """A proxy's page, or nothing, under status 200 would be an empty folder: all parts made again, or an empty lake."""
    server.objects["/lake/a"] = DATA
    server.faults += [garbled(body)] * 2
    assert REQUESTS[request_name](server.storage())
    assert len(server.requests) == 3


@pytest.mark.parametrize("request_name", ["get", "find", "range", "put"])
def test_an_answer_that_is_not_of_s3_is_none(server, request_name):
    """A sign-in page under status 200 would be a part that was put, or a manifest that was read."""
    server.objects["/lake/a"] = DATA
    server.faults.append(lambda handler: handler.send(200, {}, b"<html>Please sign in</html>"))
    assert REQUESTS[request_name](server.storage())
    assert len(server.requests) == 2 and (request_name != "put" or server.objects["/lake/anew"] == DATA)


def test_a_put_that_was_committed_unseen_is_a_success(server):
    """It finds its own object in its way, and must not fail over that."""
    server.faults.append(committed_then_reset)
    assert server.storage().put(A, DATA) is False
    assert server.objects == {"/lake/a": DATA} and len(server.requests) == 2


def test_of_many_writers_one_wins(server):
    """Two drivers make the same part at once."""
    won = []
    threads = [
        threading.Thread(target=lambda n=n: won.append(server.storage().put(A, bytes([n]) * 100_000)))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1 and len(won) == 16 and len(set(server.objects["/lake/a"])) == 1


def test_a_put_says_what_its_bytes_must_be(server):
    """The server can refuse bytes that were changed on their way, and must refuse a second object."""
    server.storage().put(A, DATA)
    headers = server.requests[0][2]
    assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(DATA).digest()).decode()
    assert headers["If-None-Match"] == "*"
    server.storage().replace(A, b"")
    assert "If-None-Match" not in server.requests[1][2] and server.objects["/lake/a"] == b""


@pytest.mark.parametrize("fault", [says(503, "SlowDown"), reset, garbled(b"not xml")], ids=["503", "reset", "garbage"])
@pytest.mark.parametrize("request_name", ["list", "walk"])
def test_patience_ends(server, fault, request_name):
    """Storage that stays away ends the run with the code that says: run again."""
    server.faults += [fault] * 10_000

    def ask():
        with patience(0.2):
            REQUESTS[request_name](server.storage())

    fails(Stopped, ask, f"s3://{BUCKET}", server.endpoint, "failed for 0 s", "Run again when it answers")
    assert Stopped.exit_code == 5


def test_an_endpoint_that_nobody_answers(monkeypatch, tmp_path):
    """It may come back within minutes, so it is no refusal; but the message must name it."""
    chain(monkeypatch, tmp_path, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with patience(0.1):
        fails(Stopped, lambda: S3(endpoint).get(A), A, endpoint, "Could not connect")


def test_patience_is_of_its_thread_and_ends_with_its_block(server, monkeypatch):
    """A status page that is in a hurry must not make the run beside it impatient."""
    monkeypatch.setattr(s3, "PATIENCE_S", 30.0)
    server.objects["/lake/a"] = DATA
    server.faults += [says(503, "SlowDown")] * 2
    with patience(0), pytest.raises(Stopped):
        server.storage().get(A)
    assert server.storage().get(A) == DATA and len(server.requests) == 3


def test_a_long_trouble_is_said_in_the_log(server, caplog):
    """A run that hangs without a word is killed by its owner."""
    server.objects["/lake/a"] = DATA
    server.faults += [says(503, "SlowDown")] * 8
    assert server.storage().get(A) == DATA
    assert f"{A}: tried 8 times" in caplog.text and "SlowDown" in caplog.text


REFUSALS = {
    "AccessDenied": (403, "grant them s3:"),
    "AllAccessDisabled": (403, "grant them s3:"),
    "InvalidAccessKeyId": (403, "AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": (403, "AWS_SECRET_ACCESS_KEY"),
    "InvalidToken": (400, "AWS_SESSION_TOKEN"),
    "NoSuchBucket": (404, "storage.endpoint"),
    "RequestTimeTooSkewed": (403, "clock"),
    "AuthorizationHeaderMalformed": (400, "AWS_DEFAULT_REGION"),
    "QuotaExceeded": (403, "free space"),
    "NotImplemented": (501, "If-None-Match"),
}


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("request_name", ["get", "put", "walk"])
def test_what_is_refused_is_refused_at_once(server, code, request_name):
    """Five minutes of retries before a wrong key is told of; and words that say what to do."""
    status, remedy = REFUSALS[code]
    server.faults += [says(status, code)] * 9
    began = time.monotonic()
    fails(
        StorageError, lambda: REQUESTS[request_name](server.storage()), f"s3://{BUCKET}", server.endpoint, code, remedy
    )
    asked_for_region = code == "AuthorizationHeaderMalformed"  # boto3 does, of its own
    assert time.monotonic() - began < 2 and (len(server.requests) == 1 or asked_for_region)
    assert StorageError.exit_code == 4


def test_a_refusal_names_the_right_that_is_wanted(server):
    """The person who grants it asks for its name."""
    for name, action in {
        "get": "GetObject",
        "put": "PutObject",
        "walk": "ListBucket",
        "delete": "DeleteObject",
    }.items():
        server.faults.append(says(403, "AccessDenied"))
        fails(StorageError, lambda name=name: REQUESTS[name](server.storage()), f"s3:{action}")


def test_a_head_that_is_refused_without_a_word(server):
    """RGW and MinIO answer HEAD with a status alone."""
    server.faults += [says(403, body=b"")] * 2  # the second answers the GET that asks for the reason
    fails(StorageError, lambda: server.storage().find(A), A, "403", "s3:GetObject", "s3:ListBucket")
    assert len(server.requests) == 2


def test_missing(server):
    """Not there is an answer, not a failure: nearly every first look of a run is for what is not made yet."""
    storage = server.storage()
    assert storage.get(A) is None and storage.find(A) is None and list(storage.walk(A)) == []
    fails(StorageError, lambda: storage.open(A), A, "not there")
    assert len(server.requests) == 4


# What changes while it is read


@pytest.mark.parametrize("now", [DATA[::-1], DATA[:100], b"", None], ids=["other", "shorter", "empty", "gone"])
def test_an_object_that_changes_while_it_is_read_stops_the_run(server, now, monkeypatch):
    """Half of one file and half of another would be trained on under the name of the first."""
    monkeypatch.setattr(s3, "BLOCK_BYTES", 1000)
    server.objects["/lake/a"] = DATA
    with server.storage().stream(A, len(DATA), etag(DATA).strip('"')) as file:
        assert file.read(1000) == DATA[:1000]
        server.objects.pop("/lake/a")
        if now is not None:
            server.objects["/lake/a"] = now
        fails(Stopped, file.read, A, "changed since the lake was listed", etag(DATA).strip('"'))


def test_a_parquet_file_that_changes_while_it_is_open(server):
    """pyarrow reads through our file: our error must come out of it, not "damaged"."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": list(range(100_000))}), sink, row_group_size=50_000)
    data = server.objects["/lake/a"] = sink.getvalue().to_pybytes()
    with server.storage().open(A) as file:
        parquet = pq.ParquetFile(file)
        server.objects["/lake/a"] = bytes(len(data))
        fails(Stopped, lambda: parquet.read_row_group(0), A, "changed")


# Large objects


def test_create_of_a_large_object_survives_failures(monkeypatch, tmp_path, server):
    """A model of gigabytes is many requests, of which some fail."""
    server.faults += [says(503, "SlowDown"), reset, says(500, "InternalError")]
    monkeypatch.setattr("botocore.endpoint.time", types.SimpleNamespace(sleep=lambda seconds: None))
    with server.storage().create(A) as file:
        file.write(DATA)
    assert server.objects["/lake/a"] == DATA


def test_create_that_is_refused(server):
    """boto3's transfers hide what the server said."""

    def create():
        with server.storage().create(A) as file:
            file.write(DATA)

    server.faults += [says(403, "AccessDenied")] * 3
    fails(StorageError, create, A, "AccessDenied", "grant them s3:PutObject")
    assert len(server.requests) == 1


# Credentials


def test_no_credentials_at_all(monkeypatch, tmp_path):
    """The first thing that a new user meets."""
    chain(monkeypatch, tmp_path)
    with Server() as server:
        fails(StorageError, lambda: server.storage().get(A), A, "No credentials were found", "AWS_PROFILE")
        assert server.requests == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "could not be found"),
        ("[profile p]\ncredential_process = /nonexistent/helper\n", "/nonexistent/helper"),
        ("[profile p]\ncredential_process = echo no json\n", "Expecting value"),
    ],
    ids=["no such profile", "no such program", "no JSON"],
)
def test_a_profile_that_cannot_be_used(monkeypatch, tmp_path, config, said):
    """A traceback out of botocore names no remedy, and a retry of five minutes no cause."""
    (tmp_path / "aws-config").write_text(config)
    chain(monkeypatch, tmp_path, AWS_PROFILE="p")
    with Server() as server:
        fails(StorageError, lambda: server.storage().get(A), A, said)


def test_a_role_that_may_not_be_assumed(server):
    """On Kubernetes it is the common fault; to grant s3:GetObject would not mend it."""
    from botocore.exceptions import ClientError

    from raypipe.s3_errors import refusal

    answer = {
        "Error": {"Code": "AccessDenied", "Message": "Not authorized to perform sts:AssumeRoleWithWebIdentity"},
        "ResponseMetadata": {"HTTPStatusCode": 403},
    }
    message = str(refusal(A, "GetObject", ClientError(answer, "AssumeRoleWithWebIdentity"), None, 1.0))
    assert "sts:AssumeRoleWithWebIdentity" in message and "grant them s3" not in message


def keys_used(server):
    return [headers["authorization"].split("Credential=")[1].split("/")[0] for _, _, headers in server.requests]


def credentials_file(folder, key):
    (folder / "aws-credentials").write_text(
        f"[default]\naws_access_key_id={key}\naws_secret_access_key={SECRET}\naws_session_token={TOKEN}\n"
    )


@pytest.mark.parametrize(
    ("request_name", "fault"),
    [
        ("get", says(400, "ExpiredToken")),
        ("put", says(403, "ExpiredToken")),
        ("walk", says(403, "RequestExpired")),
        ("find", says(400, body=b"")),
    ],
)
def test_expired_credentials_are_read_anew(monkeypatch, tmp_path, request_name, fault):
    """A session token lives an hour, a run for days; whoever renews it writes the file. HEAD answers 400 without a word."""
    chain(monkeypatch, tmp_path)
    credentials_file(tmp_path, "OLD")

    def expire(handler):
        credentials_file(tmp_path, "NEW")
        fault(handler)

    with Server() as server:
        server.objects["/lake/a"] = DATA
        server.faults += [_Handler.obey, expire]
        server.storage().get(A)
        assert REQUESTS[request_name](server.storage())
        assert [key for key in keys_used(server) if key == "NEW"] == ["NEW"] == keys_used(server)[-1:]


def test_expired_credentials_that_nobody_renews(server):
    """The message must not send its reader to look for lost rights."""
    server.faults += [says(400, "ExpiredToken")] * 10_000
    with patience(0.1):
        fails(StorageError, lambda: server.storage().get(A), A, "ExpiredToken", "Renew it")
    server.faults[:] = [says(400, body=b"")] * 10_000
    with patience(0.1):
        fails(StorageError, lambda: server.storage().find(A), A, "Renew it")


def test_credentials_of_a_process_are_renewed_before_they_end(monkeypatch, tmp_path):
    """Sign-in helpers of companies: boto3 asks them again by itself, if its client is not asked for frozen credentials."""
    program = tmp_path / "helper.py"
    program.write_text(
        "import json, datetime, pathlib\n"
        f"calls = pathlib.Path({str(tmp_path / 'calls')!r})\n"
        "n = len(calls.read_text()) + 1 if calls.exists() else 1\n"
        "calls.write_text('x' * n)\n"
        "until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=5)\n"
        f"print(json.dumps(dict(Version=1, AccessKeyId=f'KEY{{n}}', SecretAccessKey={SECRET!r}, SessionToken={TOKEN!r},"
        " Expiration=until.isoformat())))\n"
    )
    (tmp_path / "aws-config").write_text(f"[profile p]\ncredential_process = {sys.executable} -S {program}\n")
    chain(monkeypatch, tmp_path, AWS_PROFILE="p")
    with Server() as server:
        server.objects["/lake/a"] = DATA
        for _ in range(3):
            assert server.storage().get(A) == DATA
        assert len(set(keys_used(server))) >= 3 and len((tmp_path / "calls").read_text()) >= 3


# Endpoints


def test_the_endpoint_of_the_environment(own, monkeypatch):
    """Pods get their endpoint by AWS_ENDPOINT_URL; a config that is used in two places names none."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", own.endpoint)
    s3.client.cache_clear()
    own.objects["/lake/a"] = DATA
    assert S3().get(A) == DATA
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3.client.cache_clear()
    assert S3(own.endpoint).get(A) == DATA, "the config's endpoint is nearer"


@pytest.mark.parametrize("given", ["environment", "argument"])
def test_a_password_in_an_endpoint_is_not_shown(own, monkeypatch, given, caplog):
    """Config refuses one; the environment and `raypipe.read` may bring it all the same."""
    address = own.endpoint.replace("//", f"//somebody:{TOKEN}@")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    s3.client.cache_clear()
    storage, own.objects["/lake/a"], own.faults[:] = S3(address if given == "argument" else None), DATA, [reset] * 9
    assert (
        storage.get(A) == DATA
        and f'closed before we received a valid response from endpoint URL: "{own.endpoint}/lake/a' in caplog.text
    )
    own.faults += [reset]
    with patience(0):
        fails(Stopped, lambda: storage.get(A), A, f"{own.endpoint}/lake/a")


def test_custom_endpoints_have_the_bucket_in_the_path(server):
    """bucket.minio.internal is in nobody's DNS."""
    server.objects["/lake/a"] = DATA
    server.storage().get(A)
    list(server.storage().walk(LIST))
    (_, get, headers), (_, listing, _) = server.requests
    assert get == "/lake/a" and listing.startswith("/lake?") and headers["Host"] == f"localhost:{server.server_port}"


def test_virtual_hosts_where_the_aws_config_says_so(own, monkeypatch, tmp_path):
    """Some stores speak no path style; there is no key of ours for it."""
    (tmp_path / "aws-config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    s3.client.cache_clear()
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: resolve("127.0.0.1", *more, **named))
    own.objects["/a"] = DATA
    assert own.storage().get(A) == DATA
    assert own.requests[0][2]["Host"] == f"lake.localhost:{own.server_port}"


@pytest.fixture
def tls(own, tmp_path):
    """A server behind TLS, and the file of the only authority that trusts it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    own.socket = context.wrap_socket(own.socket, server_side=True)
    own.endpoint = f"https://localhost:{own.server_port}"
    own.objects["/lake/a"] = DATA
    return tmp_path / "ca.pem"


def test_an_own_certificate_authority(own, tls, monkeypatch):
    """Stores inside companies have their own; and a stranger's certificate must never pass."""
    began = time.monotonic()
    fails(StorageError, lambda: own.storage().get(A), A, own.endpoint, "not trusted", "AWS_CA_BUNDLE")
    assert time.monotonic() - began < 2 and own.requests == []
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls))
    s3.client.cache_clear()
    assert own.storage().get(A) == DATA


@pytest.mark.parametrize("bundle", ["/nonexistent/ca.pem", __file__], ids=["missing", "no certificates"])
def test_a_ca_bundle_that_is_none(own, tls, monkeypatch, bundle):
    """A typo in a path is no reason to try for five minutes."""
    monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
    s3.client.cache_clear()
    with patience(5):
        fails(StorageError, lambda: own.storage().get(A), A, "AWS_CA_BUNDLE")
    assert own.requests == []


def test_https_where_http_is_spoken(server):
    """The commonest fault in an endpoint."""
    with patience(0.3):
        fails(
            StorageError,
            lambda: S3(server.endpoint.replace("http:", "https:")).get(A),
            A,
            "https://localhost",
            "http://",
        )


@pytest.mark.parametrize("endpoint", ["minio:9000", "localhost", "http://", "http://a b"])
def test_an_endpoint_that_is_no_url(monkeypatch, tmp_path, endpoint):
    """By --endpoint or read(): a sentence, no traceback."""
    chain(monkeypatch, tmp_path, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
    with patience(0.2):
        fails((StorageError, Stopped), lambda: S3(endpoint).get(A), endpoint)


@pytest.mark.parametrize("uri", ["s3:///a", "s3://", "s3://UPPER_case!/a", "s3://a b/c"])
def test_no_bucket_name(server, uri):
    """botocore refuses it by an error of its own, before any request."""
    fails(StorageError, lambda: server.storage().get(uri), "s3://bucket/prefix")
    assert server.requests == []


def test_clients_are_shared_and_survive_a_pickle(server):
    """Connections are made once per process, and folders go to Ray's workers."""
    folder = Folder.at("s3://lake/x", server.endpoint)
    folder.put("a", b"1")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy == folder and copy.read("a") == b"1"
    assert s3.client(server.endpoint) is s3.client(server.endpoint)


def test_pyarrow_goes_to_the_same_place(server):
    """`raypipe.read` of a root on MinIO must not ask AWS, and with the same key."""
    server.objects["/lake/a"] = DATA
    with s3.arrow_filesystem(server.endpoint).open_input_file("lake/a") as file:
        assert file.read() == DATA
    assert set(keys_used(server)) == {KEY} and all(path.startswith("/lake") for _, path, _ in server.requests)


def test_pyarrow_trusts_the_same_authority(own, tls, monkeypatch):
    """pyarrow does not know AWS_CA_BUNDLE: a run goes well, and its rows cannot be read."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls))
    s3.client.cache_clear()
    with s3.arrow_filesystem(own.endpoint).open_input_file("lake/a") as file:
        assert file.read() == DATA


def test_json_of_a_request_is_not_in_its_error(server):
    """What is stored may be somebody's: errors name places."""
    server.faults += [says(403, "AccessDenied")]
    said = fails(StorageError, lambda: server.storage().put(A, json.dumps({"private": "text"}).encode()))
    assert "private" not in said

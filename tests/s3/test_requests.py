"""S3 as it is on a bad day: what passes is tried again, what is refused is said, what changed stops the run.

What every storage must do is in test_store.py; the real server's word is the last one.
"""

import base64
import hashlib
import socket
import threading
import time
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import s3
from raypipe.errors import Stopped, StorageError
from raypipe.s3 import S3, patience
from tests.s3.fake import (
    BUCKET,
    DATA,
    KEY,
    REQUESTS,
    SECRET,
    A,
    _Handler,
    chain,
    committed_then_reset,
    cut,
    etag,
    fails,
    garbled,
    raw,
    reset,
    says,
)

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

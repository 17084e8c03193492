"""A server of S3 in this process that answers, breaks off and lies as it is told, byte by byte; moto's; and an AWS chain of one's own."""

import hashlib
import http.server
import os
import socket
import struct
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import moto
import pytest

from raypipe import s3
from raypipe.s3 import S3

KEY, SECRET, TOKEN = "AKIATESTKEY", "test-secret/never+shown", "test-token-never-shown"
BUCKET = "lake"
A = f"s3://{BUCKET}/a"
KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}


def chain(monkeypatch, folder, **variables):
    """An AWS chain that knows only what is given here, and no client made from another."""
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


def fails(kind, request, *said):
    """The message, in which no secret is."""
    with pytest.raises(kind) as caught:
        request()
    message = str(caught.value)
    assert all(text in message for text in said), message
    assert not any(hidden in message for hidden in (SECRET, TOKEN, quote(SECRET, safe="")))
    return message


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

"""Credentials that are missing, wrong or expire; endpoints and their certificates."""

import json
import pickle
import socket
import ssl
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from raypipe import s3
from raypipe.errors import Stopped, StorageError
from raypipe.s3 import S3, patience
from raypipe.store import Folder
from tests.s3.fake import DATA, KEY, LIST, REQUESTS, SECRET, TOKEN, A, Server, _Handler, chain, fails, reset, says

# Credentials


def test_no_credentials_at_all(monkeypatch, tmp_path):
    """The first thing that a new user meets."""
    chain(monkeypatch, tmp_path)
    with Server() as server:
        fails(StorageError, lambda: server.storage().get(A), A, "No credentials were found", "AWS_PROFILE")
        assert server.requests == []


def test_an_unknown_key(monkeypatch, tmp_path):
    """Without a session token nothing will renew it."""
    chain(monkeypatch, tmp_path, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
    with Server() as server:
        server.faults += [says(403, "InvalidAccessKeyId")] * 2
        fails(StorageError, lambda: server.storage().get(A), A, "AWS_ACCESS_KEY_ID")
        assert len(server.requests) == 1


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

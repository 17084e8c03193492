"""Which failures of S3 pass, and what is said of those that do not: a table, by the codes that AWS, RGW and MinIO give."""

import re
import string

import pytest
import urllib3.exceptions
from boto3.exceptions import S3UploadFailedError
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from raypipe.errors import Stopped, StorageError
from raypipe.s3_errors import REMEDY, kind_of, refusal

URL = "http://store:9000/lake/a"


def answered(code, status, operation="GetObject", message="as told"):
    """As botocore reads an answer; a HEAD that fails has the status for its code."""
    return boto.ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation
    )


def hidden(error):
    """As a transfer of boto3 hides what it was told."""
    try:
        try:
            raise error
        except boto.ClientError as answer:
            raise S3UploadFailedError(f"Failed to upload x to y: {answer}")  # noqa: B904
    except S3UploadFailedError as outer:
        return outer


KINDS = {
    "passing": [
        answered("SlowDown", 503),
        answered("ServiceUnavailable", 503),
        answered("XMinioServerNotInitialized", 503),
        answered("InternalError", 500),
        answered("500", 500),
        answered("502", 502),
        answered("", 504),
        answered("TooManyRequests", 429),
        answered("429", 429),
        answered("408", 408),
        answered("RequestTimeout", 400),
        answered("BadDigest", 400),
        answered("XAmzContentSHA256Mismatch", 400),
        answered("IncompleteBody", 400),
        answered("ConditionalRequestConflict", 409),
        answered("OperationAborted", 409),
        answered("InternalError", 200),
        hidden(answered("SlowDown", 503, "UploadPart")),
        boto.EndpointConnectionError(endpoint_url=URL),
        boto.ConnectTimeoutError(endpoint_url=URL),
        boto.ReadTimeoutError(endpoint_url=URL),
        boto.ConnectionClosedError(endpoint_url=URL),
        boto.ProxyConnectionError(proxy_url=URL),
        boto.HTTPClientError(error="?"),
        boto.SSLError(
            endpoint_url=URL, error="[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol"
        ),
        boto.ResponseStreamingError(error="?"),
        boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        boto.CredentialRetrievalError(provider="custom-process", error_msg="try later"),
        boto.MetadataRetrievalError(error_msg="?"),
        ResponseParserError("no xml"),
        urllib3.exceptions.ProtocolError("reset"),
        ConnectionResetError(104, "reset"),
        TimeoutError(),
    ],
    "expired": [
        answered("ExpiredToken", 400),
        answered("ExpiredTokenException", 400, "AssumeRole"),
        answered("RequestExpired", 400),
        answered("TokenRefreshRequired", 400),
        answered("400", 400, "HeadObject"),
        hidden(answered("ExpiredToken", 400, "PutObject")),
    ],
    "unknown key": [answered("InvalidAccessKeyId", 403)],
    "missing": [
        answered("NoSuchKey", 404),
        answered("404", 404, "HeadObject"),
        answered("InvalidRange", 416),
        answered("416", 416),
    ],
    "taken": [answered("PreconditionFailed", 412), answered("412", 412)],
    "refused": [
        answered("AccessDenied", 403),
        answered("403", 403, "HeadObject"),
        answered("", 403),
        answered("SignatureDoesNotMatch", 403),
        answered("InvalidToken", 400),
        answered("NoSuchBucket", 404),
        answered("InvalidBucketName", 400),
        answered("QuotaExceeded", 403),
        answered("NotImplemented", 501),
        answered("PermanentRedirect", 301),
        answered("RequestTimeTooSkewed", 403),
        hidden(answered("AccessDenied", 403, "PutObject")),
        boto.NoCredentialsError(),
        boto.PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"),
        boto.ProfileNotFound(profile="p"),
        boto.ParamValidationError(report="Invalid bucket name"),
        boto.UnauthorizedSSOTokenError(),
        boto.SSLError(endpoint_url=URL, error="[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
        boto.SSLError(endpoint_url=URL, error="[SSL: WRONG_VERSION_NUMBER] wrong version number"),
        boto.SSLError(endpoint_url=URL, error="[Errno 2] No such file or directory"),
        ValueError("Invalid endpoint: minio:9000"),
        FileNotFoundError(2, "No such file or directory", "helper"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "error"),
    [(kind, error) for kind, errors in KINDS.items() for error in errors],
    ids=lambda value: value if isinstance(value, str) else re.sub(r"\W+", "-", f"{type(value).__name__} {value}"[:70]),
)
def test_kinds(kind, error):
    """One wrong row ends a night's run at the first hiccup, or hides a wrong key behind five minutes of retries."""
    assert kind_of(error) == kind


@pytest.mark.parametrize(
    "error", [error for kind in ("expired", "unknown key", "refused") for error in KINDS[kind]], ids=str
)
def test_every_refusal_is_a_sentence_that_says_what_where_and_what_to_do(error):
    """Exit code 4, and neither a traceback nor a bare code."""
    raised = refusal("s3://lake/a", "GetObject", error, "http://store:9000", 20.0)
    said = str(raised)
    assert isinstance(raised, StorageError) and raised.exit_code == 4
    assert said.startswith("s3://lake/a: storage at http://store:9000 refuses s3:GetObject (")
    assert "()" not in said and "{" not in said and len(said.partition("). ")[2]) > 10


@pytest.mark.parametrize("error", KINDS["passing"], ids=str)
def test_what_only_took_too_long_is_stopped(error):
    """Exit code 5: a scheduler runs it again."""
    raised = refusal("s3://lake/a", "GetObject", error, None, 20.0)
    assert isinstance(raised, Stopped) and raised.exit_code == 5
    assert str(raised).startswith("s3://lake/a: storage failed for 20 s (") and "Run again" in str(raised)


VERBS = r"\b(Set|Check|Write|Give|Make|Renew|Use|free|grant|give)\b"


@pytest.mark.parametrize("code", sorted(REMEDY))
def test_every_remedy_is_something_to_do(code):
    """A diagnosis alone leaves its reader where he was; a stray brace is a KeyError in place of the message."""
    assert re.search(VERBS, REMEDY[code])
    assert {name for _, name, _, _ in string.Formatter().parse(REMEDY[code])} <= {None, "action", "error"}


def test_what_the_server_says_may_have_braces():
    """JSON of a gateway in a message was taken for a format string."""
    error = answered("Weird", 418, message='{"reason": "{teapot}"}')
    assert '{"reason": "{teapot}"}' in str(refusal("s3://lake/a", "GetObject", error, None, 1.0))


def test_the_region_is_told_by_the_variable_that_boto3_reads(monkeypatch, tmp_path):
    """AWS_REGION is that of other SDKs: a user who sets what a message names gets the same message again."""
    import boto3

    from tests.s3.fake import chain

    (name,) = re.findall("AWS_[A-Z_]+", REMEDY["PermanentRedirect"])
    chain(monkeypatch, tmp_path, **{name: "eu-central-1"})
    assert boto3.session.Session().region_name == "eu-central-1"

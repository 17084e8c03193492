"""What S3's failures mean: pass, come back with new credentials, or refuse for good; and in which words.

Codes are those of the S3 API reference, "Error responses".
"""

from __future__ import annotations

import http.client
import re
from typing import Any, Literal

import urllib3.exceptions
from boto3.exceptions import Boto3Error
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from raypipe.errors import RaypipeError, Stopped, StorageError

Kind = Literal["passing", "expired", "unknown key", "missing", "taken", "refused"]
PASSING_CODES = frozenset(
    [
        "SlowDown",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "OperationAborted",
        "ConditionalRequestConflict",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
    ]
)
EXPIRED_CODES = frozenset(
    ["ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "400"]
)  # 400: of HEAD, whose answers say no more; a wrong request of ours would be one always
PASSING = (
    boto.HTTPClientError,  # closed connections, time-outs, resets
    boto.ConnectionError,  # endpoints that cannot be reached
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)
FAILURES = (
    boto.ClientError,
    boto.BotoCoreError,
    Boto3Error,
    ValueError,  # an endpoint that is no URL
    OSError,  # a credential_process that is not there
    RuntimeError,  # one whose credentials have expired already
    *PASSING,
)
ALWAYS_SAID = {
    "ListObjectsV2": "IsTruncated",
    **dict.fromkeys(["GetObject", "HeadObject", "PutObject", "UploadPart", "CompleteMultipartUpload"], "ETag"),
}
RIGHT = (
    "These credentials may not do that here: grant them s3:{action} (and s3:ListBucket, without which AWS calls forbidden what "
    "is only missing), or give others by the AWS chain (environment, profile, role)"
)
REGION = "The bucket is in another region. Set AWS_DEFAULT_REGION to it"  # boto3 does not read AWS_REGION
EXPIRED = "The session token has expired and the AWS chain gave no newer one. Renew it"
REMEDY = {
    **dict.fromkeys(EXPIRED_CODES, EXPIRED),
    "AccessDenied": RIGHT,
    "AllAccessDisabled": RIGHT,
    "403": RIGHT,
    "InvalidAccessKeyId": "This access key is not known there. Check AWS_ACCESS_KEY_ID or AWS_PROFILE, and storage.endpoint",
    "SignatureDoesNotMatch": "The secret key does not belong to the access key. Check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "InvalidToken": "The session token is not valid. Check AWS_SESSION_TOKEN",
    "NoSuchBucket": "There is no such bucket. Make it, or check its name and storage.endpoint",
    "InvalidBucketName": "That is no bucket name. Write s3://bucket/prefix",
    "RequestTimeTooSkewed": "The clock of this machine is wrong. Set it",
    "PermanentRedirect": REGION,
    "AuthorizationHeaderMalformed": REGION,
    "NotImplemented": "This store lacks what raypipe commits with: PUT with If-None-Match. Use another, or a newer version of it",
    "QuotaExceeded": "The quota is used up: free space and run again, committed parts are kept",
    "NoCredentialsError": "No credentials were found. Give them by the AWS chain: AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role",
    "ParamValidationError": "That is no bucket name. Write s3://bucket/prefix",
    "SSLError": "Its certificate is not trusted, or it speaks no TLS ({error}). Set AWS_CA_BUNDLE to the file of your certificate "
    "authority, or write http:// if that is what it speaks",
}


def kind_of(error: BaseException) -> Kind:
    error = _answered(error)
    if isinstance(error, boto.ClientError):
        return _kind_of_answer(error)
    if isinstance(error, RuntimeError) and "still expired" in str(error):  # botocore has no class for it
        return "expired"
    untrusted = isinstance(error, boto.SSLError) and "EOF occurred" not in str(error)
    return "passing" if isinstance(error, PASSING) and not untrusted else "refused"


def check_genuine(*, parsed: Any, model: Any, http_response: Any, **_: Any) -> None:
    """A proxy's page under status 200, or a listing cut before its first byte, is to botocore an answer that is empty."""
    wanted = ALWAYS_SAID.get(model.name)
    if wanted and http_response.status_code < 300 and wanted not in parsed:
        raise ResponseParserError(f"an answer without {wanted}, which S3 always gives. Is there a proxy in between?")


def refusal(uri: str, action: str, error: Exception, endpoint: str | None, limit: float) -> RaypipeError:
    """The error in our words; Stopped where only time ran out."""
    kind, at, told = kind_of(error), f" at {shown(endpoint)}" if endpoint else "", shown(error)
    if kind == "passing":
        return Stopped(
            f"{uri}: storage{at} failed for {limit:.0f} s ({told}). Run again when it answers: committed parts are kept"
        )
    if kind == "missing":
        return StorageError(f"{uri}: it is not there. Was it removed while a run used it?")
    answer = _answered(error)
    code = _code(answer) if isinstance(answer, boto.ClientError) else type(error).__name__
    of_role = isinstance(answer, boto.ClientError) and answer.operation_name.startswith("AssumeRole")
    remedy = "It says: {error}" if of_role else REMEDY.get(code, "It says: {error}")
    remedy = remedy.format(action=action, error=told)
    return StorageError(f"{uri}: storage{at} refuses s3:{action} ({code}). {remedy}")


def shown(text: object) -> str:
    """Without the password that an address may have in it: AWS_ENDPOINT_URL is not checked by us."""
    return re.sub(r"://[^/@\s]*@", "://", str(text))


def _answered(error: BaseException) -> BaseException:
    """What the server said, where a transfer of boto3 hides it."""
    hidden = isinstance(error, Boto3Error) and isinstance(error.__context__, boto.ClientError)
    return error.__context__ or error if hidden else error


def _code(error: boto.ClientError) -> str:
    return str(error.response["Error"].get("Code") or _status(error))


def _status(error: boto.ClientError) -> int:
    return int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))


def _kind_of_answer(error: boto.ClientError) -> Kind:
    code, status = _code(error), _status(error)
    if code in EXPIRED_CODES:
        return "expired"
    if code == "InvalidAccessKeyId":  # Ceph says so of a session token that has expired, too
        return "unknown key"
    if code in PASSING_CODES or status in (408, 429) or (status >= 500 and status != 501):
        return "passing"
    if code in ("NoSuchKey", "404", "NotFound") or status == 416:  # 416: shorter now than what is asked for
        return "missing"
    return "taken" if status == 412 else "refused"

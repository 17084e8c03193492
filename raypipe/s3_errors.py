"""What S3's failures mean: pass, come back with new credentials, or refuse for good; and in which words.

Codes are those of the S3 API reference, "Error responses".
"""

from __future__ import annotations

import http.client
from typing import Literal

import urllib3.exceptions
from boto3.exceptions import Boto3Error
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from raypipe.errors import RaypipeError, Stopped, StorageError

Kind = Literal["passing", "expired", "missing", "taken", "refused"]
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
        "IncompleteBody",
    ]
)
EXPIRED_CODES = frozenset(["ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"])
PASSING = (
    boto.HTTPClientError,  # closed connections, time-outs, resets, endpoints that cannot be reached
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
    ValueError,
    *PASSING,
)  # ValueError: an endpoint that is no URL
RIGHT = "These credentials may not do that here: grant them s3:{action}, or give others by the AWS chain (environment, profile, role)"
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
    "PermanentRedirect": "The bucket is in another region. Set AWS_REGION to it",
    "AuthorizationHeaderMalformed": "The bucket is in another region. Set AWS_REGION to it",
    "QuotaExceeded": "The quota is used up: free space and run again, committed parts are kept",
    "NoCredentialsError": "No credentials were found. Give them by the AWS chain: AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role",
    "ParamValidationError": "That is no bucket name. Write s3://bucket/prefix",
    "SSLError": "Its certificate is not trusted. Set AWS_CA_BUNDLE to the file of your certificate authority",
}


def kind_of(error: BaseException) -> Kind:
    error = _answered(error)
    if isinstance(error, boto.ClientError):
        return _kind_of_answer(error)
    untrusted = isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
    return "passing" if isinstance(error, PASSING) and not untrusted else "refused"


def refusal(uri: str, action: str, error: Exception, endpoint: str | None, limit: float) -> RaypipeError:
    """The error in our words; Stopped where only time ran out."""
    kind, at = kind_of(error), f" at {endpoint}" if endpoint else ""
    if kind == "passing":
        return Stopped(
            f"{uri}: storage{at} failed for {limit:.0f} s ({error}). Run again when it answers: committed parts are kept"
        )
    if kind == "missing":
        return StorageError(f"{uri}: it is not there. Was it removed while a run used it?")
    answer = _answered(error)
    code = answer.response["Error"].get("Code", "?") if isinstance(answer, boto.ClientError) else type(error).__name__
    remedy = REMEDY.get(code, f"It says: {error}").format(action=action)
    return StorageError(f"{uri}: storage{at} refuses s3:{action} ({code}). {remedy}")


def _answered(error: BaseException) -> BaseException:
    """What the server said, where a transfer of boto3 hides it."""
    hidden = isinstance(error, Boto3Error) and isinstance(error.__context__, boto.ClientError)
    return error.__context__ or error if hidden else error


def _kind_of_answer(error: boto.ClientError) -> Kind:
    code, status = error.response["Error"].get("Code", ""), error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    if code in EXPIRED_CODES:
        return "expired"
    if code in PASSING_CODES or status >= 500 or status == 429:
        return "passing"
    if code in ("NoSuchKey", "404", "NotFound"):
        return "missing"
    return "taken" if status == 412 else "refused"

"""Objects on S3 and what speaks like it, by boto3: one chain of credentials, one vocabulary of errors, one layer of retries.

A part is one PUT with `If-None-Match: *`, so of two writers one wins. Every request, its body included, is tried until it
succeeds or until `PATIENCE_S` have passed: at 40 % of failures ten attempts would still lose one request in ten thousand. A
retried PUT that had been committed unseen finds its name taken, which is success. boto3 does not retry by itself, as it
never retries the reading of a body, and its retry quota runs dry at such rates.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import tenacity

from raypipe.errors import Stopped, StorageError
from raypipe.local import changed, refusals

log = logging.getLogger("raypipe")
PATIENCE_S = float(os.environ.get("RAYPIPE_RETRY_S", 300))  # how long a request is tried again
RENEWAL_S = 30  # for whatever renews expired credentials
CONNECT_S, READ_S = 10, 30  # without a byte
BLOCK_BYTES = 8 << 20  # of a file read from front to back, by one request each
THREADS = 32
T = TypeVar("T")
_patience: ContextVar[float | None] = ContextVar("patience", default=None)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Try requests of this thread again for so long only, where a person waits for the answer."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


@dataclass(frozen=True, slots=True)
class Object:
    uri: str
    size: int
    version: str  # etag
    age_s: float


@dataclass(frozen=True)
class S3:
    """`endpoint` is for other stores than AWS; None leaves it to the AWS chain, as region and credentials are."""

    endpoint: str | None = None

    def names(self, uri: str, prefix: str = "") -> Iterator[str]:
        bucket, key = _split(uri)
        folder = f"{key}/" if key else ""
        for page in self._pages(uri, Bucket=bucket, Prefix=folder + prefix, Delimiter="/"):
            yield from (found["Key"][len(folder) :] for found in page.get("Contents", ()) if found["Key"] != folder)
            yield from (found["Prefix"][len(folder) : -1] for found in page.get("CommonPrefixes", ()))

    def walk(self, uri: str) -> Iterator[Object]:
        bucket, key = _split(uri)
        yield from self.starting_with(f"s3://{bucket}/{key}/" if key else f"s3://{bucket}/")

    def starting_with(self, prefix: str) -> Iterator[Object]:
        """Every object whose URI starts so, in the order of UTF-8 bytes; what stands for an empty folder is left out."""
        bucket, key = _split(prefix)
        for page in self._pages(prefix, Bucket=bucket, Prefix=key):
            now = _date(page)
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    age_s = (now - found["LastModified"]).total_seconds()
                    yield Object(f"s3://{bucket}/{found['Key']}", found["Size"], found["ETag"].strip('"'), age_s)

    def find(self, uri: str) -> Object | None:
        bucket, key = _split(uri)
        head = self._ask(uri, "GetObject", partial(_head, Bucket=bucket, Key=key), missing=None)
        if head is None:
            return None
        age_s = (_date(head) - head["LastModified"]).total_seconds()
        return Object(uri, head["ContentLength"], head["ETag"].strip('"'), age_s)

    def get(self, uri: str) -> bytes | None:
        bucket, key = _split(uri)

        def read(s3: Any) -> bytes | None:
            return bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())

        return self._ask(uri, "GetObject", read, missing=None)

    def open(self, uri: str) -> BinaryIO:
        if (found := self.find(uri)) is None:
            raise StorageError(f"{uri}: it is not there. Was it removed while a run used it?")
        return io.BufferedReader(_Ranges(self, uri, found.size, found.version), 1 << 16)

    def stream(self, uri: str, size: int, version: str) -> BinaryIO:
        return io.BufferedReader(_Ranges(self, uri, size, version), BLOCK_BYTES)

    def read_range(self, uri: str, first: int, count: int, version: str) -> bytes:
        bucket, key = _split(uri)

        def read(s3: Any) -> tuple[str, bytes]:
            answer = s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{first + count - 1}")
            now, data = answer["ETag"].strip('"'), answer["Body"].read()
            if len(data) != count and now == version:
                raise ConnectionError(f"{len(data)} bytes came, {count} were asked for")
            return now, data

        now, data = self._ask(uri, "GetObject", read, missing=("nothing there", b""))
        if now != version:
            raise Stopped(changed(uri, version, now))
        return data

    def put(self, uri: str, data: bytes) -> bool:
        return bool(self._put(uri, data, IfNoneMatch="*"))

    def replace(self, uri: str, data: bytes) -> None:
        self._put(uri, data)

    @contextmanager
    def create(self, uri: str) -> Iterator[BinaryIO]:
        """By way of a temporary file, and in several requests where it is large; these are not conditional on any server."""
        bucket, key = _split(uri)
        here = refusals(f"{uri}, by way of {tempfile.gettempdir()}")
        with here, tempfile.TemporaryDirectory() as folder, open(f"{folder}/file", "wb") as file:
            yield file
            file.close()  # whoever was given it may have done so
            self._ask(uri, "PutObject", lambda s3: s3.upload_file(file.name, bucket, key), attempts=10)

    def delete(self, uri: str) -> None:
        bucket, key = _split(uri)
        self._ask(uri, "DeleteObject", lambda s3: s3.delete_object(Bucket=bucket, Key=key), missing=None)

    def _put(self, uri: str, data: bytes, **condition: str) -> Any:
        """None where the condition failed. The MD5 lets the server refuse a body that was changed on its way."""
        bucket, key = _split(uri)
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        content = {"Bucket": bucket, "Key": key, "Body": data, "ContentMD5": md5}
        return self._ask(uri, "PutObject", lambda s3: s3.put_object(**content, **condition), taken=None)

    def _pages(self, uri: str, **query: Any) -> Iterator[Any]:
        token: dict[str, str] = {}
        while True:
            page = self._ask(uri, "ListBucket", partial(_list, **query, **token))
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _ask(self, uri: str, action: str, request: Callable[[Any], T], *, attempts: int = 1, **otherwise: T) -> T:
        """The answer; for what is `missing` or `taken` what `otherwise` gives. `action` is the right that it takes."""
        from raypipe.s3_errors import FAILURES, kind_of, refusal, shown

        asked = _patience.get()
        limit, began = PATIENCE_S if asked is None else asked, time.monotonic()

        def try_again(error: BaseException) -> bool:
            kind = kind_of(error)
            if is_expired := kind == "expired" or (kind == "unknown key" and _has_token()):
                client.cache_clear()  # the next one reads the credentials anew
            return kind == "passing" or (is_expired and time.monotonic() - began < RENEWAL_S)

        def say(state: tenacity.RetryCallState) -> None:
            if state.attempt_number in (8, 16, 32, 64) and state.outcome:
                log.warning("%s: tried %d times: %s", uri, state.attempt_number, shown(state.outcome.exception()))

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(try_again),
            wait=tenacity.wait_random_exponential(0.1, max=min(8, limit / 10)),  # so that it ends when it is said to
            stop=tenacity.stop_after_delay(limit),
            before_sleep=say,
            reraise=True,
        )
        try:
            return retrying(lambda: request(client(self.endpoint, attempts)))
        except FAILURES as error:
            if (kind := kind_of(error)) in otherwise:
                return otherwise[kind]
            raise refusal(uri, action, error, self.endpoint, limit) from error


class _Ranges(io.RawIOBase):
    """An object as a file: each read is one request, and must come from the version that was listed."""

    def __init__(self, storage: S3, uri: str, size: int, version: str) -> None:
        self.storage, self.uri, self.size, self.version, self.place = storage, uri, size, version, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.size - self.place)
        if count > 0:
            buffer[:count] = self.storage.read_range(self.uri, self.place, count, self.version)
            self.place += count
        return max(count, 0)


@cache
def client(endpoint: str | None, attempts: int = 1) -> Any:
    """A boto3 client of this process, safe for threads; `attempts` of its own only where one call makes many requests."""
    import boto3
    from botocore.config import Config

    from raypipe.s3_errors import check_genuine

    config = Config(
        retries={"mode": "legacy", "total_max_attempts": attempts},
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        max_pool_connections=THREADS,
        request_checksum_calculation="when_required",  # older stores refuse boto3's newer checksums; we send Content-MD5
        response_checksum_validation="when_required",
    )
    made = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    made.meta.events.register("after-call.s3", check_genuine)
    return made


def _head(s3: Any, **place: str) -> Any:
    """Refused as GET refuses it: HEAD's answers have no body, so a wrong key would look like a right that is missing."""
    from botocore.exceptions import ClientError

    try:
        return s3.head_object(**place)
    except ClientError as error:
        if error.response["Error"]["Code"] == "403":
            s3.get_object(**place)["Body"].close()
        raise


def _has_token() -> bool:
    import boto3

    held = boto3.session.Session().get_credentials()
    return bool(held and held.token)


def _list(s3: Any, **query: str) -> Any:
    return s3.list_objects_v2(**query)


def _split(uri: str) -> tuple[str, str]:
    """Bucket and key; not by urlsplit, as ? and line ends are letters of a key like others."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _date(answer: Any) -> datetime:
    """By the server's clock, where it tells the time."""
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(told) if told else datetime.now(UTC)


def arrow_filesystem(endpoint: str | None) -> Any:
    """The same place for pyarrow, with the credentials of now."""
    import pyarrow.fs

    s3 = client(endpoint)
    credentials = s3._request_signer._credentials.get_frozen_credentials()
    url = urlsplit(s3.meta.endpoint_url)
    trusted = s3._endpoint.http_session._verify  # True, or the file of AWS_CA_BUNDLE or of the profile
    return pyarrow.fs.S3FileSystem(
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        session_token=credentials.token,
        region=s3.meta.region_name,
        endpoint_override=None if url.netloc.endswith("amazonaws.com") else url.netloc,
        scheme=url.scheme,
        force_virtual_addressing=(s3.meta.config.s3 or {}).get("addressing_style") == "virtual",
        tls_ca_file_path=trusted if isinstance(trusted, str) else None,
        retry_strategy=pyarrow.fs.AwsDefaultS3RetryStrategy(10),
    )

"""What `raypipe doctor` asks of the cluster, of models and of storage: whether a run could read and write there, once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from raypipe import identity
from raypipe.config import Config
from raypipe.errors import ConfigError, StorageError
from raypipe.lake import list_lake, list_slices
from raypipe.local import refusals
from raypipe.machine import Doubt
from raypipe.ops.leaks import grams_of
from raypipe.ops.problems import read_problems
from raypipe.s3 import client
from raypipe.screen import size
from raypipe.store import Folder, storage_of

SKEW_S = 60.0  # S3 refuses requests that are 900 s off
KINDS = {  # by botocore's names; others are shown as they are
    "env": "environment",
    "shared-credentials-file": "profile {profile}",
    "config-file": "profile {profile}",
    "assume-role": "role of profile {profile}",
    "assume-role-with-web-identity": "role by web identity",
    "container-role": "role of this container",
    "iam-role": "role of this machine",
}


def ray_address() -> str:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return "RAY_ADDRESS is not set: Ray starts on this machine, for as long as the work takes"
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname is None or place.port is None:  # auto, local
        return f"RAY_ADDRESS is {place.hostname}"
    where = f"{place.hostname}:{place.port}"
    try:
        socket.create_connection((place.hostname, place.port), 5).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS is {where}, and nothing answers there ({error}). Start the cluster, or unset RAY_ADDRESS"
        ) from error
    return f"RAY_ADDRESS is {where}, which answers"


def credentials() -> str:
    """Of which kind they are; never the key itself."""
    import boto3

    from raypipe.s3_errors import FAILURES

    wanted = "Give them by the AWS chain: AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role"
    try:
        session = boto3.session.Session()
        if (found := session.get_credentials()) is None:
            raise StorageError(f"the AWS chain has no credentials. {wanted}")
        found.get_frozen_credentials()  # a role is asked for them only now
    except FAILURES as error:
        raise StorageError(f"the AWS chain fails ({error}). {wanted}") from error
    kind = KINDS.get(found.method, found.method).format(profile=session.profile_name)
    return f"{kind}; region {session.region_name or 'not set'}"


def server(uri: str, endpoint: str | None) -> str:
    """Whether S3 answers at all, be it to refuse, and how far this machine's clock is from its own."""
    from botocore.exceptions import ClientError

    from raypipe.s3_errors import FAILURES, refusal

    started = time.time()
    try:
        asked = client(endpoint, attempts=2)
        answer = asked.head_bucket(Bucket=urlsplit(uri).netloc)
    except ClientError as error:
        answer = error.response
    except FAILURES as error:
        raise refusal(uri, "ListBucket", error, endpoint, time.time() - started) from error
    ended, headers = time.time(), answer["ResponseMetadata"]["HTTPHeaders"]
    said = f"{urlsplit(asked.meta.endpoint_url).netloc.rpartition('@')[2]} answered in {ended - started:.2f} s"
    if (date := headers.get("date")) is None:
        return Doubt(f"{said}, without a Date")
    skew_s = (started + ended) / 2 - parsedate_to_datetime(date).timestamp()
    if abs(skew_s) > SKEW_S:
        return Doubt(f"{said}; this machine's clock is {skew_s:+,.0f} s off its own. Set it: S3 refuses from 900 s on")
    return f"{said}; clocks differ by {abs(skew_s):.0f} s"


def model(key: str, name: str, endpoint: str | None) -> str:
    """Without hashing it: that takes half a minute for 13 GB, and every model is hashed only once a machine."""
    if not os.path.isdir(name):
        if name.startswith("s3://"):
            Folder.at(name, endpoint).find(identity.MODEL_FILES[0])  # who may list may not always read
        return identity.pinned_model(key, name, endpoint)
    with refusals(name):
        sizes = {path: path.stat().st_size for path in Path(name).rglob("*") if path.is_file()}
    identity.check_is_model(key, name, {str(path.relative_to(name)) for path in sizes})
    if unreadable := [path for path in sizes if not os.access(path, os.R_OK)]:
        raise StorageError(f"{key}: {unreadable[0]}: this user may not read it. Give this user the right to it")
    return f"{name}: {len(sizes):,} files, {size(sum(sizes.values()))}"


def files(key: str, paths: Sequence[str], endpoint: str | None) -> str:
    found = list_slices(key, paths, endpoint=endpoint)
    return f"{len(found):,} files, {size(sum(file.size for file in found))}"


def problems(key: str, path: str, endpoint: str | None) -> str:
    return f"{len(read_problems(path, identity.read_object(key, path, endpoint))):,} problems"


def evaluation_sets(config: Config) -> str:
    rule = config.clean
    sets = identity.read_objects("clean.decontaminate", rule.decontaminate, config.storage.endpoint)
    grams = grams_of(sets, rule.ngram_words)
    return f"{len(grams.names):,} problems, {len(grams.hashes):,} runs of {rule.ngram_words} words"


def lake(config: Config) -> str:
    """Listed as a run lists it; its first object is read."""
    endpoint = config.storage.endpoint
    found = list_lake(config.ingest.paths, partitions=config.ingest.partitions, endpoint=endpoint)
    first = next(file for file in found.files if file.size)
    with storage_of(first.uri, endpoint).open(first.uri) as file:
        file.read(1)
    return f"{len(found.files):,} objects, {size(found.num_bytes)}; {first.uri} can be read"


@dataclass(frozen=True)
class Probe:
    """An object that is put into a root and removed again."""

    root: Folder
    name: str
    content: bytes

    def write(self) -> str:
        self.root.put(self.name, self.content)
        return f"{self.root.uri(self.name)}: {len(self.content)} bytes"

    def read(self) -> str:
        if (found := self.root.read(self.name)) != self.content:
            raise StorageError(
                f"{self.root.uri(self.name)}: got {len(found)} bytes of something else, wanted the {len(self.content)} that were "
                "written. Do not use this store"
            )
        return "what was written"

    def write_once(self) -> str:
        if self.root.put(self.name, b"second") or self.root.read(self.name) == b"second":
            raise StorageError(
                f"{self.root.uri(self.name)}: a second put overwrote the first, wanted it refused: this store ignores "
                "'If-None-Match: *', so two drivers could overwrite each other. Update the store, or take another"
            )
        return "a second put of the same name was refused"

    def delete(self) -> str:
        self.root.delete(self.name)
        if self.root.has(self.name):
            raise StorageError(f"{self.root.uri(self.name)}: it was deleted and is still there. Remove it yourself")
        return "the probe is gone"

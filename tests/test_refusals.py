"""What S3 refuses, as a user meets it: each in one line with the place and the remedy, exit code 4, before Ray starts.

The server is real: its codes, and which right each request takes, are what the lines are made from.
"""

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.lakes import raypipe, write_config

EVERYTHING = ("credentials", "S3 and clock", "lake", "root: list", "root: write")
NOWHERE = "http://127.0.0.1:9"
BEFORE = ("AWS_", "RAYPIPE_")  # variables of whoever runs the tests


@pytest.fixture(scope="module")
def place(rgw, tmp_path_factory):
    """A lake and a root in buckets of their own, a config that uses them, and a user whom each test gives other rights."""
    folder, lake, root = tmp_path_factory.mktemp("refusals"), rgw.bucket(), rgw.bucket()
    rgw.owner.client().put_object(Bucket=lake, Key="lake/a.jsonl", Body=b'{"instruction": "a", "response": "b"}\n')
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    config = write_config(
        folder / "test.yaml",
        model=folder / "model",
        embedder=folder / "model",
        ingest={"paths": [f"s3://{lake}/lake"]},
        storage={"root": f"s3://{root}/root", "endpoint": rgw.endpoint},
    )
    return config, lake, root, rgw.user("refused")


@pytest.fixture(scope="module", autouse=True)
def bare():
    """Without credentials, also on a machine that has some."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith(BEFORE)]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/nonexistent")
        yield


@pytest.fixture(scope="module", autouse=True)
def patient(bare, place):
    """Runs that take the whole patience, by name, each with its seconds: meanwhile the other tests run."""

    def timed(*overrides, **environment):
        started = time.monotonic()
        return raypipe("run", place[0], *overrides, **environment), time.monotonic() - started

    keys = {"AccessKeyId": "AKIAOLD", "SecretAccessKey": "never-shown", "SessionToken": "never-shown"}
    told = json.dumps({"Version": 1, **keys, "Expiration": "2020-01-01T00:00:00Z"})
    (place[0].parent / "keys.json").write_text(told)
    profile = place[0].parent / "aws"
    profile.write_text(f"[profile old]\ncredential_process = cat {profile.parent}/keys.json\nregion = us-east-1\n")
    with ThreadPoolExecutor(2) as pool:
        yield {
            "nobody listens": pool.submit(timed, f"storage.endpoint={NOWHERE}", **keys_of(place[3])),
            "expired": pool.submit(timed, AWS_CONFIG_FILE=str(profile), AWS_PROFILE="old"),
        }


def keys_of(user):
    return {name: value for name, value in user.environment.items() if name != "AWS_ENDPOINT_URL"}


def refused(words, *said, user=None, code=4):
    """The one line that a run ends with."""
    done = raypipe("run", *words, **keys_of(user) if user else {})
    return one_line(done, *said, code=code)


def one_line(done, *said, code=4):
    assert done.returncode == code, done.stdout + done.stderr
    *before, line = done.stderr.strip().splitlines()
    assert all(re.search(" tried |still expired", other) for other in before), before
    assert line.startswith("raypipe: ") and all(text in line for text in said), line
    shows_nothing(done)
    return line


def shows_nothing(done):
    """No Ray, no stage, no traceback, no secret."""
    whole = done.stdout + done.stderr
    assert not re.search("ray on|starts in|Traceback|raypipe-secret|never-shown", whole), whole


def doctor_finds(words, *failing, user=None, code=4):
    """The checks that fail, and no other."""
    done = raypipe("doctor", *words, **keys_of(user) if user else {})
    found = {line[6:22].strip(): line for line in done.stdout.splitlines() if line.startswith("FAIL")}
    assert list(found) == list(failing) and done.returncode == code, done.stdout + done.stderr
    shows_nothing(done)
    return found


def test_a_wrong_secret(place):
    """The commonest mistake of all: a line that speaks of rights would send people to their administrator."""
    config, lake, _, user = place
    stranger = replace(user, secret_key="never-shown")
    refused([config], f"s3://{lake}/lake", "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY", user=stranger)
    found = doctor_finds([config], "lake", "root: list", "root: write", user=stranger)
    assert all("AWS_SECRET_ACCESS_KEY" in line for line in found.values())


def test_an_unknown_access_key(place, rgw):
    """As after a rotation of keys, or of another store."""
    config, lake, _, user = place
    stranger = replace(user, access_key="AKIANOBODY")
    said = ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID", "storage.endpoint")
    line = refused([config], f"s3://{lake}/lake", rgw.endpoint, *said, user=stranger)
    assert "AKIANOBODY" not in line


def test_no_credentials_at_all(place):
    """A container without its secret mounted."""
    refused([place[0]], f"s3://{place[1]}/lake", "No credentials were found", "AWS_PROFILE")
    assert "AWS_PROFILE" in doctor_finds([place[0]], *EVERYTHING)["credentials"]


@pytest.mark.parametrize("which", ["lake", "root"])
def test_a_missing_bucket(place, rgw, which):
    """A typing error, or the right name at the wrong store."""
    key = {"lake": "ingest.paths=[s3://no-such-bucket/lake]", "root": "storage.root=s3://no-such-bucket/root"}[which]
    refused([place[0], key], "s3://no-such-bucket/", "NoSuchBucket", "Make it", "storage.endpoint", user=rgw.owner)


def test_a_bucket_that_no_name_can_have(place, rgw):
    """boto3 refuses it before it asks anybody, in words about a regular expression."""
    refused([place[0], "storage.root=s3://No_Bucket!/x"], "s3://No_Bucket!/x", "no bucket name", user=rgw.owner)


@pytest.mark.parametrize(
    ("on_lake", "on_root", "wanted", "check"),
    [
        ([], ["*"], "ListBucket", "lake"),
        (["ListBucket"], ["*"], "GetObject", "lake"),
        (["ListBucket", "GetObject"], ["ListBucket", "GetObject"], "PutObject", "root: write"),
    ],
    ids=["list", "read", "write"],
)
def test_a_right_that_is_missing(place, rgw, on_lake, on_root, wanted, check):
    """Three rights on S3, each to be granted by its name; after hours of a GPU is too late to learn of it."""
    config, lake, root, user = place
    for bucket, actions in ((lake, on_lake), (root, on_root)):
        rgw.allow(bucket, user, *actions or ["GetBucketLocation"])
    where = f"s3://{root}/root/runs/test.json" if wanted == "PutObject" else f"s3://{lake}/lake"
    said = (where, "AccessDenied", "grant them", f"s3:{wanted}")
    refused([config], *said, user=user)
    assert f"s3:{wanted}" in doctor_finds([config], check, user=user)[check]


@pytest.mark.parametrize("uri", ["gs://lake/a", "abfs://lake@account/a", "http://lake/a", "file:///lake/a"])
def test_storage_that_raypipe_does_not_speak(place, uri):
    """fsspec would take it for a folder of that name, and find nothing or write beside the working directory."""
    key = {"gs": "storage.root={}", "abfs": "ingest.paths=[{}]"}.get(uri.partition(":")[0], "storage.root={}")
    refused([place[0], key.format(uri)], uri, "is not supported", "s3://bucket/prefix", code=2)


@pytest.mark.parametrize(
    ("why", "said", "code"),
    [
        ("nobody listens", (NOWHERE, "Run again when it answers"), 5),
        ("expired", ("refreshed credentials are still expired",), 4),
    ],
)
def test_what_may_pass_is_waited_for(place, patient, why, said, code):
    """A store that restarts, a helper that renews too late. A person waits: 20 s of patience, not the 5 min of a run."""
    done, seconds = patient[why].result()
    one_line(done, f"s3://{place[1]}/lake", *said, code=code)
    assert seconds < 30 * max(1, os.getloadavg()[0] / os.cpu_count())  # others may use this machine

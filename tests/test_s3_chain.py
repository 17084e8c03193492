"""The whole chain with lake, models and root on a real S3 server, by session tokens that live 20 s; and what may happen on the way."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

import raypipe as package
from raypipe.identity import fetched_model, pinned_model
from raypipe.s3 import client
from raypipe.store import Folder
from tests.lakes import (
    PROJECT,
    TASKS,
    evaluation,
    manifest,
    raypipe,
    stage_folder,
    wait_until,
    write_config,
    write_lake,
)

TOKEN_S, RENEWED_S = 20, 5


@pytest.fixture(autouse=True)
def clients():
    """None made with the keys of another test."""
    client.cache_clear()
    yield
    client.cache_clear()


@contextmanager
def brief_tokens(rgw, folder: Path, policy: str):
    """Variables of a profile whose helper prints a file that is renewed all the time; and all keys that were ever in it."""
    seen, ended = [], threading.Event()

    def renew():
        user, until = rgw.session_token(TOKEN_S, policy), time.gmtime(time.time() + TOKEN_S)
        keys = {"AccessKeyId": user.access_key, "SecretAccessKey": user.secret_key, "SessionToken": user.session_token}
        told = {"Version": 1, **keys, "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", until)}
        (folder / "new.json").write_text(json.dumps(told))
        (folder / "new.json").rename(folder / "keys.json")
        seen.append(keys.values())

    def go_on():
        while not ended.wait(RENEWED_S):
            renew()

    renew()
    (folder / "aws").write_text(f"[profile brief]\ncredential_process = cat {folder}/keys.json\nregion = us-east-1\n")
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield {"AWS_CONFIG_FILE": str(folder / "aws"), "AWS_PROFILE": "brief"}, seen
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_a_token_that_does_not_tell_its_end(rgw, bucket, tmp_path, monkeypatch):
    """As in a file of credentials that something renews. Ceph calls the old one an unknown access key, which is else final."""

    def renew(seconds: int) -> None:
        user = rgw.session_token(seconds)
        keys = f"aws_access_key_id={user.access_key}\naws_secret_access_key={user.secret_key}\n"
        (tmp_path / "keys").write_text(f"[default]\n{keys}aws_session_token={user.session_token}\n")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    renew(2)
    folder = Folder.at(f"{bucket}/root", rgw.endpoint)
    assert folder.put("name", b"data")
    time.sleep(2.1)
    later = threading.Timer(1, renew, [60])
    later.start()
    assert folder.has("name") and folder.read("name") == b"data"
    later.join()


def upload(folder: Path, to: Folder) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            to.put(str(path.relative_to(folder)), path.read_bytes())
    return to.path


def remote_manifest(root: Folder, stage: str) -> dict:
    return json.loads(
        remote_folder(root, stage).read(f"manifest-{json.loads(root.read('runs/test.json'))['lake']}.json")
    )


def remote_folder(root: Folder, stage: str) -> Folder:
    return root / json.loads(root.read("runs/test.json"))["folders"][stage]


def columns(found: dict) -> list[str]:
    return [part["columns"] for part in found["parts"]]


def losses(metrics: bytes) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in map(json.loads, metrics.splitlines()) if "loss" in line]


def contents(data: bytes, name: str) -> bytes:
    """An object as it is and, as Parquet compresses, what is in its columns."""
    return data + (repr(pq.read_table(io.BytesIO(data)).to_pydict()).encode() if name.endswith(".parquet") else b"")


@pytest.mark.slow
def test_the_whole_chain_with_tokens_that_expire(
    finished, evaluated, rgw, bucket, tmp_path, random_model, embedder, monkeypatch
):
    """A run of hours outlives every session token, and may do what the policy that we ship allows. What comes out must not depend on
    where it is, nor show any key."""
    folder, place = finished[0], Folder.at(bucket, rgw.endpoint)
    place.put("own.jsonl", TASKS.encode())
    sections = {
        "evaluate": evaluation(place.uri("own.jsonl")),
        "ingest": {"paths": [upload(folder / "lake", place / "lake")]},
        "storage": {"root": f"{bucket}/root", "endpoint": rgw.endpoint},
    }
    models = {"model": upload(random_model, place / "m/model"), "embedder": upload(embedder, place / "m/embedder")}
    config, root = write_config(tmp_path / "test.yaml", **models, **sections), place / "root"
    policy = least_policy(bucket.removeprefix("s3://"))
    with pytest.raises(ClientError, match="AccessDenied"):
        rgw.session_token(TOKEN_S, policy).client().put_object(Bucket=bucket.removeprefix("s3://"), Key="lake/x")
    with brief_tokens(rgw, tmp_path, policy) as (profile, seen), monkeypatch.context() as without:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            without.delenv(name)
        done = raypipe("run", config, **profile)
        again = raypipe("run", config, **profile)
        status = raypipe("status", root.path, "--endpoint", rgw.endpoint, **profile)
        gc = raypipe("gc", root.path, "--endpoint", rgw.endpoint, **profile)
    assert done.returncode == 0, done.stderr
    assert len(seen) > TOKEN_S / RENEWED_S + 1, "the run was over before a token was"
    same_as_local(folder / "root", root)
    is_complete(root, rgw.endpoint)
    ours, theirs = (
        package.read(str(evaluated[0]), "evaluate", "evaluated"),
        package.read(root.path, "evaluate", endpoint=rgw.endpoint),
    )
    assert verdicts(theirs) == verdicts(ours)

    assert again.returncode == 0 and "starts in" not in again.stderr and "ray on" not in again.stderr
    assert status.returncode == 0 and status.stdout.count(" done") == 11 and "model   s3://" in status.stdout
    assert gc.returncode == 0 and "nothing was deleted" not in gc.stdout, gc.stdout + gc.stderr
    keys = {key.encode() for keys in seen for key in keys} | {rgw.owner.secret_key.encode()}
    said = "".join(run.stdout + run.stderr for run in (done, again, status, gc)).encode()
    shown = {
        name: contents(root.read(name), name) for name in (found.uri[len(root.path) + 1 :] for found in root.walk())
    }
    assert not [name for name, data in {"log": said, **shown}.items() if any(key in data for key in keys)]


def least_policy(bucket: str) -> str:
    """k8s/iam-policy.json, of this lake and root. Without spaces: RGW takes the "+" that a form makes of one for a plus."""
    text = (PROJECT / "k8s" / "iam-policy.json").read_text().replace("your-runs/raypipe/", f"{bucket}/root/")
    tree = json.loads(text.replace("your-lake", bucket).replace("your-runs", bucket))
    return json.dumps(tree, separators=(",", ":"))


def verdicts(rows) -> list[dict]:
    """Of the base model: the tuned one is as close as a sum in another order."""
    told = ("task", "problem_id", "completion_index", "completion", "passed", "reason", "sandbox")
    return [{name: row[name] for name in told} for row in rows.to_table().to_pylist() if row["model"] == "base"]


def same_as_local(local: Path, root: Folder) -> None:
    """Part by part, but for names of places; training's losses as close as a sum in another order."""
    for stage in ("embed", "cluster", "score", "select", "pack"):
        assert columns(remote_manifest(root, stage)) == columns(manifest(local, stage)), stage
    for stage in ("ingest", "clean"):
        names = [
            [part["name"] for part in found["parts"]]
            for found in (manifest(local, stage), remote_manifest(root, stage))
        ]
        renamed = dict(zip(*names, strict=True))
        for name, other in renamed.items():
            ours = pq.read_table(stage_folder(local, stage) / name).to_pylist()
            theirs = pq.read_table(io.BytesIO(remote_folder(root, stage).read(other))).to_pylist()
            assert [moved(row, renamed) for row in ours] == [moved(row, {}) for row in theirs], (stage, name)
    wanted = losses((stage_folder(local, "train") / "metrics.jsonl").read_bytes())
    got = losses(remote_folder(root, "train").read("metrics.jsonl"))
    assert_same(got, wanted)


def moved(row: dict, renamed: dict[str, str]) -> dict:
    """A row without the folder of its file, and with the part that it repeats by its other name."""
    if "source_uri" in row:
        return {**row, "source_uri": row["source_uri"].rpartition("/")[2]}
    part, space, number = (row["evidence"] or "").partition(" ")
    return {**row, "evidence": renamed.get(part, part) + space + number}


def is_complete(root: Folder, endpoint: str) -> None:
    """Report, model and tables can be used from another machine."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert b"</html>" in remote_folder(root, "report").read("index.html")
    model = fetched_model(pinned_model("model", remote_folder(root, "train").uri("model"), endpoint), endpoint)
    assert AutoModelForCausalLM.from_pretrained(model).num_parameters() and AutoTokenizer.from_pretrained(model)
    counts = remote_manifest(root, "select")["counts"]
    rows = package.read(root.path, "select", endpoint=endpoint).to_table().to_pylist()
    assert sum(row["selected"] for row in rows) == counts["selected"] and len(rows) == sum(counts.values())


@pytest.mark.slow
def test_only_the_partitions_asked_for(rgw, bucket, tmp_path, random_model, embedder):
    """A lake of all languages, of which one is paid for."""
    write_lake(tmp_path / "day", num_samples=30, files=2)
    for language in ("python", "rust"):
        upload(tmp_path / "day", Folder.at(f"{bucket}/lake/lang={language}", rgw.endpoint))
    words = {
        "ingest": {"paths": [f"{bucket}/lake/**"]},
        "storage": {"root": f"{bucket}/root", "endpoint": rgw.endpoint},
    }
    config = write_config(tmp_path / "test.yaml", model=random_model, embedder=embedder, **words)
    for partitions, count in (("{}", 4), ("{lang: [rust]}", 2)):
        done = raypipe("plan", config, f"ingest.partitions={partitions}")
        assert done.returncode == 0 and f"lake {count} objects" in done.stdout, done.stdout + done.stderr
    assert raypipe("plan", config, "ingest.partitions={lang: [go]}").returncode == 2


@pytest.mark.slow
def test_an_object_that_is_overwritten_after_it_was_listed(rgw, bucket, tmp_path, random_model, embedder):
    """Its parts would bear the name of what it was, for ever."""
    write_lake(tmp_path / "lake", num_samples=60, files=2)
    lake, root = (Folder.at(f"{bucket}/{name}", rgw.endpoint) for name in ("lake", "root"))
    words = {
        "ingest": {"paths": [upload(tmp_path / "lake", lake)]},
        "storage": {"root": root.path, "endpoint": rgw.endpoint},
    }
    config = write_config(tmp_path / "test.yaml", model=random_model, embedder=embedder, **words)
    driver = start(config, "--until", "ingest")
    wait_until(lambda: root.has("runs/test.json"), driver)  # Ray starts only then
    lake.replace("day-001.jsonl.gz", lake.read("day-000.jsonl.gz"))
    said = driver.communicate(timeout=240)[1]
    assert driver.returncode == 5 and f"{lake.path}/day-001.jsonl.gz" in said.splitlines()[-1], said
    assert "changed since the lake was listed" in said and "Traceback" not in said
    assert raypipe("run", config, "--until", "ingest").returncode == 0


def start(*words: object, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "raypipe.cli", "run", *map(str, words)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **environment}, **pipes)


def assert_same(got: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    """Losses by step, of another number of workers."""
    for (step, loss), (expected_step, expected) in zip(got, wanted, strict=True):
        assert step == expected_step
        assert loss == pytest.approx(expected, rel=1e-5 if step <= 1 else 1e-3), step  # Adam magnifies rounding

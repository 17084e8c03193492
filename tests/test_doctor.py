"""`raypipe doctor`: every fault in one call, before a run; and what it must never show or leave behind."""

import os
import subprocess
import sys
import time
import types

import pytest

from raypipe import machine, reach
from raypipe.cli import main
from raypipe.config_file import load_config
from raypipe.doctor import checks
from raypipe.machine import Doubt
from raypipe.s3 import S3, client
from tests.lakes import raypipe, write_config, write_lake
from tests.s3.fake import KEYS, Server, chain, says
from tests.test_imports import HEAVY


@pytest.fixture
def config(tmp_path):
    """Of models that are directories with a config.json, and of a lake of two files."""
    write_lake(tmp_path / "lake", num_samples=20, files=2)
    for name in ("model", "embedder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return write_config(tmp_path / "test.yaml", model=tmp_path / "model", embedder=tmp_path / "embedder")


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A server of S3 in this process, with one object of a lake."""
    chain(monkeypatch, tmp_path, **KEYS)
    with Server() as server:
        server.objects["/b/lake/a.jsonl"] = b"{}\n"
        yield server
    client.cache_clear()


def on(store):
    endpoint = store if isinstance(store, str) else store.endpoint
    return ["ingest.paths=[s3://b/lake]", "storage.root=s3://b/root", f"storage.endpoint={endpoint}"]


def found(config, *overrides):
    return {check.what: check for check in checks(str(config), overrides)}


def test_a_machine_answers_in_seconds_and_loads_nothing_heavy(config):
    """Whoever is in trouble asks first; torch alone takes ten seconds on a cold disk."""
    code = f"import sys; from raypipe.cli import main; main(['doctor', {str(config)!r}]); print([n for n in {HEAVY!r} if n in sys.modules])"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 10
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]" or machine.gpus()
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "warn"}


def test_all_is_well_and_nothing_is_left(config, tmp_path):
    """A probe that stays behind would be listed as an object of the root for ever."""
    before = sorted(tmp_path.rglob("*"))
    done = raypipe("doctor", config)
    assert done.returncode == 0 and done.stderr == "" and "FAIL" not in done.stdout
    for said in ("ray 2.60", "config", "lake              2 objects", "embed.model", "root: write once  a second put"):
        assert said in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_one_call_shows_every_fault(config, tmp_path):
    """A queue for GPUs takes hours: one fault a try would take days. The first one is the exit code."""
    (tmp_path / "file").write_text("")
    (tmp_path / "model" / "config.json").unlink()
    words = [f"storage.root={tmp_path}/file/root", f"ingest.paths=[{tmp_path}/none]", f"embed.model={tmp_path}/gone"]
    done = raypipe("doctor", config, *words)
    failed = {line[6:22].strip(): line for line in done.stdout.splitlines() if line.startswith("FAIL")}
    assert list(failed) == ["model", "embed.model", "lake", "root: write"] and done.returncode == 2
    assert "no config.json" in failed["model"] and "choose another storage.root" in failed["root: write"]
    assert raypipe("doctor", config, f"storage.root={tmp_path}/file/root").returncode == 2  # the model's
    (tmp_path / "model" / "config.json").write_text("{}")
    assert raypipe("doctor", config, f"storage.root={tmp_path}/file/root").returncode == 4


def test_evaluation_sets_are_read(config, tmp_path):
    """A path that is wrong would be found after hours of ingest."""
    (tmp_path / "set.jsonl").write_text('{"task_id": 1, "prompt": "one two three four five six"}')
    asked = found(config, f"clean.decontaminate=[{tmp_path}/set.jsonl]", "clean.ngram_words=5")["evaluation sets"]
    assert asked.state == "ok" and asked.detail == "1 problems, 2 runs of 5 words"
    gone = found(config, f"clean.decontaminate=[{tmp_path}/gone.jsonl]")["evaluation sets"]
    assert gone.exit_code == 2 and "gone.jsonl is not there" in gone.detail


def test_a_config_that_is_not_valid(config):
    """In one line, with all its faults; the machine is looked at all the same."""
    done = raypipe("doctor", config, "select.keep_fracton=0.1", "seed=x")
    assert done.returncode == 2 and done.stdout.splitlines()[-1].startswith("FAIL  config")
    assert "Did you mean select.keep_fraction?" in done.stdout and "seed: " in done.stdout and "memory" in done.stdout


def test_s3_as_it_should_be(store, config):
    """The kind of credentials is shown; and what was written is gone."""
    all_found = found(config, *on(store))
    assert {check.state for check in all_found.values()} <= {"ok", "warn"}, list(map(str, all_found.values()))
    assert all_found["credentials"].detail.startswith("environment")
    assert all_found["S3 and clock"].detail.startswith(f"localhost:{store.server_port} answered in ")
    assert all_found["lake"].detail == "1 objects, 3 B; s3://b/lake/a.jsonl can be read"
    assert list(store.objects) == ["/b/lake/a.jsonl"]


def test_a_store_that_ignores_if_none_match(store, config, monkeypatch):
    """Two drivers on such a store overwrite each other's parts, and each calls them its own: nothing else would show it."""
    monkeypatch.setattr(S3, "put", lambda self, uri, data: self.replace(uri, data) or True)
    check = found(config, *on(store))["root: write once"]
    assert check.state == "FAIL" and check.exit_code == 4 and "ignores 'If-None-Match: *'" in check.detail
    assert list(store.objects) == ["/b/lake/a.jsonl"]


def test_a_lake_that_may_be_listed_but_not_read(store, config):
    """On S3 these are two rights, and a listing shows only one of them."""
    store.faults[:] = [lambda handler: handler.obey()] * 3 + [says(403, "AccessDenied")]  # bucket, prefix, listing
    check = found(config, *on(store))["lake"]
    assert check.exit_code == 4 and "grant them s3:GetObject" in check.detail


def test_a_store_that_loses_what_it_took(config, monkeypatch):
    """Some caches answer before they have written."""
    monkeypatch.setattr(reach.Folder, "read", lambda self, name: b"other")
    check = found(config)["root: read"]
    assert check.state == "FAIL" and "got 5 bytes of something else" in check.detail


def test_no_credential_is_ever_shown(store, config, capsys):
    """People send the output of a doctor to others; refusals come with the request's own words."""
    for refusal in ("AccessDenied", "SignatureDoesNotMatch", "SomethingNew"):
        store.faults[:] = [says(403, refusal)] * 99
        assert main(["doctor", str(config), *on(store)]) == 4
    said = "".join(capsys.readouterr())
    assert "grant them s3:" in said and "SomethingNew" in said
    assert not any(secret in said for secret in KEYS.values())


def test_no_credentials_at_all(store, config, monkeypatch, tmp_path):
    """Exit code 4 and where they come from, not botocore's traceback."""
    chain(monkeypatch, tmp_path)
    all_found = found(config, *on(store))
    assert all_found["credentials"].exit_code == all_found["root: write"].exit_code == 4
    assert "AWS_PROFILE" in all_found["credentials"].detail
    chain(monkeypatch, tmp_path, AWS_PROFILE="mine")
    assert "(mine)" in found(config, *on(store))["credentials"].detail


def test_a_profile_is_named(monkeypatch, tmp_path):
    """Which of several profiles it was is most of the answer."""
    (tmp_path / "aws-credentials").write_text("[mine]\naws_access_key_id = AKIA\naws_secret_access_key = secret\n")
    chain(monkeypatch, tmp_path, AWS_PROFILE="mine", AWS_DEFAULT_REGION="eu-west-1")
    assert reach.credentials() == "profile mine; region eu-west-1"


def test_a_clock_that_is_off(store, monkeypatch):
    """From 15 minutes on S3 refuses every request; before that, tokens end too early."""
    assert not isinstance(reach.server("s3://b/x", store.endpoint), Doubt)
    monkeypatch.setattr(reach, "time", types.SimpleNamespace(time=lambda: time.time() + 300))
    said = reach.server("s3://b/x", store.endpoint)
    assert isinstance(said, Doubt) and any(f"is +{seconds} s off" in said for seconds in (299, 300, 301))


def test_storage_that_does_not_answer(config, monkeypatch, tmp_path):
    """Exit code 5; asked once and not by every check in turn, each with its own wait."""
    chain(monkeypatch, tmp_path, **KEYS)
    started = time.monotonic()
    done = raypipe("doctor", config, *on("http://127.0.0.1:9"))
    assert done.returncode == 5 and time.monotonic() - started < 20
    failed = [line[6:22].strip() for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert failed == ["S3 and clock", "lake", "root"] and "127.0.0.1:9" in done.stdout


def test_gpus_asked_for_and_none_here(config, monkeypatch):
    """Known before a job is submitted; with a cluster's address it is that one's matter."""
    monkeypatch.setattr("raypipe.doctor.gpus", lambda: ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check = found(config, "resources.train.gpus=1")["resources"]
    assert check.state == "warn" and "1 training workers of 0.9 CPUs and 1 GPUs are asked for" in check.detail
    monkeypatch.setattr("raypipe.doctor.gpus", lambda: ("NVIDIA H200",))
    check = found(config, "resources.train.gpus=1", "resources.train.accelerator=H200", "resources.train.workers=[1,4]")
    assert (
        check["resources"].state == "ok" and "train 1 to 1 x (0.9 CPUs and 1 GPUs (H200))" in check["resources"].detail
    )


def test_what_a_cluster_can_never_give(config, ray_address, monkeypatch):
    """It would wait for ever for its nodes, with a GPU of another stage reserved: known before it is submitted."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    fine = found(config, "resources.train.workers=[1,64]")["resources"]
    assert fine.state == "ok" and f"train 1 to {os.cpu_count()} x" in fine.detail
    never = found(config, "resources.score.gpus=0.5", "resources.score.accelerator=L4")["resources"]
    assert (never.state, never.exit_code) == ("FAIL", 2)
    assert "1 actors for score of 0.9 CPUs and 0.5 GPUs (L4) are asked for, and the cluster has at most" in never.detail


def test_a_cluster_that_is_not_there(config, monkeypatch):
    """Ray itself would wait for minutes; and on a cluster a local folder is another one on every node."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    all_found = found(config)
    assert all_found["ray"].state == "FAIL" and "127.0.0.1:9, and nothing answers" in all_found["ray"].detail
    assert (all_found["resources"].state, all_found["resources"].exit_code) == ("FAIL", 2)
    assert all_found["nodes"].state == "warn" and load_config(config).storage.root in all_found["nodes"].detail


def test_frozen_centres(config, tmp_path):
    """A run that is to assign a month of data should not find out after the embedding that the centres are gone."""
    (tmp_path / "centers.npy").write_bytes(b"centres")
    there, gone = (
        found(config, f"cluster.centers={tmp_path}/{name}")["cluster.centers"] for name in ("centers.npy", "no.npy")
    )
    assert there.state == "ok" and (gone.state, gone.exit_code) == ("FAIL", 2) and "is not there" in gone.detail

"""Servers that lie, and what holds in every test of S3: no second is waited, and no secret shown."""

import time
import types

import pytest

from raypipe import s3
from tests.s3.fake import KEYS, SECRET, TOKEN, Server, chain


@pytest.fixture(scope="module")
def server_of_module(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch, Server() as server:
        chain(monkeypatch, tmp_path_factory.mktemp("aws"), **KEYS)
        yield server
    s3.client.cache_clear()


@pytest.fixture
def server(server_of_module):
    """The one of all tests here that leave the AWS chain as it is: to make a client takes 0.1 s."""
    for record in (server_of_module.objects, server_of_module.faults, server_of_module.requests):
        record.clear()
    return server_of_module


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A server for tests that change the chain."""
    chain(monkeypatch, tmp_path, **KEYS)
    with Server() as server:
        yield server
    s3.client.cache_clear()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that would have been waited between attempts."""
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        time.sleep(0.001)

    monkeypatch.setattr("tenacity.nap.time", types.SimpleNamespace(sleep=sleep))
    return waits


@pytest.fixture(autouse=True)
def shows_no_secret(caplog):
    """Logs are kept for years and read by many."""
    caplog.set_level("INFO")
    yield
    assert not any(hidden in caplog.text for hidden in (SECRET, TOKEN))

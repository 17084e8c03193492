"""What is found is that something is there, and of what kind."""

import gzip
import json
from collections import Counter

import pytest

from raypipe.ops.secrets import secret_kinds

PLANTED = {  # made up, of the form that each kind has
    "AWS Access Key": "key = 'AKIA" + "ABCDEFGHIJKLMNOP'",
    "GitHub Token": "export T=ghp_" + "a1B2" * 9,
    "JSON Web Token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
    + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE",
    "Slack Token": "xoxb-" + "123456789012-123456789012-abcdefghijkl",
    "Public IP (ipv4)": "connect('8.8.8.8')",
    "E-mail address": "write to jane.doe@example.org today",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_each_kind_is_found(kind):
    """A model gives back what it was trained on."""
    assert secret_kinds([f"def f():\n    {PLANTED[kind]}\n"]) == [kind]


def test_several_kinds_and_none():
    """What only looks so is left alone: a decorator, a matrix product, a local address, a version."""
    both = PLANTED["E-mail address"] + PLANTED["GitHub Token"]
    assert secret_kinds([both, "x = a @ b", "@app.route\ndef f(): ...", "127.0.0.1", "numpy==1.26.4", ""]) == [
        "E-mail address, GitHub Token", None, None, None, None, None
    ]  # fmt: skip


def test_those_of_code_alpaca(shared):
    """Real data: examples full of addresses of example.com."""
    rows = []
    for path in sorted((shared / "data" / "code_alpaca_20k").glob("*.gz")):
        with gzip.open(path) as lines:
            rows += [json.loads(line) for line in lines][:1500]
    found = Counter(secret_kinds(["\n".join(row.values()) for row in rows]))
    assert found["E-mail address"] > 10 and found.keys() <= {None, "E-mail address", "Public IP (ipv4)"}

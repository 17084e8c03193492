"""Commands that documents show are ones that work: each `raypipe` line parses, and files and rules that are named are there."""

import re
import shlex

import pytest

from raypipe.cli import _parse
from tests.k8s.monitoring import MONITORING
from tests.k8s.rendering import load_all
from tests.lakes import PROJECT

DOCUMENTS = [PROJECT / "README.md", PROJECT / "k8s" / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:\w*)\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`(raypipe [a-z-]+ [^`\n]*)`")  # a verb alone is its name
FILE = re.compile(r"`((?:k8s|docs|jobs|tests|benchmarks)/[\w./-]+)`")


def commands():
    for path in DOCUMENTS:
        text = path.read_text()
        lines = [
            line.split("  #")[0].split("    #")[0].strip()
            for block in BLOCK.findall(text)
            for line in block.splitlines()
        ]
        found = [line for line in lines if line.startswith("raypipe ")] + INLINE.findall(BLOCK.sub("", text))
        yield from ((path.relative_to(PROJECT).as_posix(), command) for command in found)


@pytest.mark.parametrize(("document", "command"), list(dict.fromkeys(commands())))
def test_a_command_parses(document, command):
    """Whoever copies it gets an error of usage in place of a run."""
    plain = re.sub(r"\[[^\]]*\]", "", command.replace("\\|", "|"))
    assert _parse([{"N": "1"}.get(word, word) for word in shlex.split(plain)[1:]]).verb


def test_files_that_are_named_are_there():
    """A reader is sent to it."""
    named = {(path.name, name) for path in DOCUMENTS for name in FILE.findall(path.read_text())}
    missing = [(document, name) for document, name in sorted(named) if not list(PROJECT.glob(name.rstrip("/*") + "*"))]
    assert named and not missing


def test_each_alert_has_its_section():
    """At three in the morning the link of an alert must lead somewhere."""
    (rules,) = load_all((MONITORING / "rules.yaml").read_text())
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    sections = set(re.findall(r"^### (\w+)$", (PROJECT / "docs" / "operations.md").read_text(), re.M))
    assert alerts == sections

"""The suite's own rule: a skip is listed, and fails the run unless it is for want of a GPU or of ../shared."""

import subprocess
import sys

import pytest

from tests.lakes import PROJECT


@pytest.mark.parametrize(("reason", "code"), [("no GPU", 0), ("no ../shared", 0), ("takes too long", 1)])
def test_a_skip_needs_an_allowed_reason(tmp_path, reason, code):
    """A test that skips itself for ever looks green."""
    text = f"import pytest\ndef test_one(): pass\ndef test_two(): pytest.skip({reason!r})\n"
    (tmp_path / "test_x.py").write_text(text)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-c",
        "/dev/null",
        f"--rootdir={tmp_path}",
        str(tmp_path),
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == code, done.stdout
    assert f"test_two: {reason}" in done.stdout and ("NOT ALLOWED" in done.stdout) == bool(code)
    assert "unmarked: 0.0 minutes" in done.stdout

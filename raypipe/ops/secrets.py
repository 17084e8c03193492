"""Secrets and personal data in texts, by kind: detect-secrets' rules for keys and tokens, public IP addresses, and HTML's rule for e-mail addresses.

Its rules by entropy and by names such as `password` are left out: in instruction data they find examples. 6,000 samples a CPU second. What is found is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

# https://html.spec.whatwg.org/multipage/input.html#valid-e-mail-address, with a dot at least
EMAIL = re.compile(
    r"[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+"
)


@cache
def _rules() -> dict[str, Any]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    known: dict[str, Any] = get_mapping_from_secret_type_to_class()
    return {kind: rule() for kind, rule in sorted(known.items()) if issubclass(rule, RegexBasedDetector)}


def secret_kinds(texts: Sequence[str]) -> list[str | None]:
    """Of each text the kinds of what is in it, sorted and joined by a comma; None where there is nothing."""
    return [", ".join(sorted(_kinds(text))) or None for text in texts]


def _kinds(text: str) -> list[str]:
    found = [kind for kind, rule in _rules().items() if any(True for _ in rule.analyze_string(text))]
    return found + ["E-mail address"] * ("@" in text and EMAIL.search(text) is not None)

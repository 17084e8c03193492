"""How a response is written, as far as text alone tells: constructs found by regular expressions, its language, its variety.

Regular expressions run in Arrow (RE2, linear in the text: 120 MB a CPU second for all of STYLES) and see any language, so each
looks for what the common ones write; a share of them compares selections, it is no parse. Languages are the tag of a code fence
where there is one, else what magika says: 10 CPU milliseconds a text on a 2-core machine, so of few.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

STYLES = {
    "classes": r"(?m)^\s*(?:(?:export|public|private|protected|internal|abstract|final|static|sealed|data|default)\s+)*class\s+\w",
    "raises": r"(?m)\b(?:raise\s+\w|raise$|throw\s+\w|throw;|panic!?\()",
    "docstrings": r'(?m)^\s*[rRuU]?(?:"""|' + "''')" + r"|/\*\*|^\s*///\s",
    "comments": r"(?m)(?:^|\s)(?:#\s+\S|//\s*\w|--\s+\w)|/\*|<!--",
    "tests": r"(?m)^\s*(?:assert\b|def test_|class Test\w|@Test\b|#\[test\]|(?:it|test|describe)\(['\"`])|\bunittest\b|\bpytest\b|\bself\.assert",
}
FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
TAGS = {  # of code fences, and magika's name for the same
    "py": "python", "python3": "python", "js": "javascript", "jsx": "javascript", "ts": "typescript", "tsx": "typescript",
    "c++": "cpp", "c#": "cs", "csharp": "cs", "golang": "go", "rs": "rust", "rb": "ruby", "kt": "kotlin", "bash": "shell",
    "sh": "shell", "zsh": "shell", "console": "shell", "yml": "yaml", "text": "txt", "plaintext": "txt", "md": "markdown",
}  # fmt: skip
WORD = re.compile(r"\w+|[^\w\s]")


def styles(text_N: pa.ChunkedArray) -> pa.Table:
    """[N] booleans for each of STYLES."""
    return pa.table({name: pc.match_substring_regex(text_N, pattern) for name, pattern in STYLES.items()})


def languages(texts: Sequence[str]) -> list[str]:
    """Of each the language of its first code fence, else of all of it, by magika's names: python, cpp, txt (prose), unknown."""
    return [_language(text) for text in texts]


def _language(text: str) -> str:
    fence = FENCE.search(text)
    if fence and fence[1]:
        tag = fence[1].lower()
        return TAGS.get(tag, tag)
    return str(_magika().identify_bytes((fence[2] if fence else text).encode()).output.label)


@cache
def _magika() -> Any:
    from magika import Magika  # loads onnxruntime

    return Magika()


def shares(values: Sequence[str]) -> dict[str, float]:
    """Most frequent first."""
    return {value: count / len(values) for value, count in sorted(Counter(values).items(), key=lambda v: (-v[1], v[0]))}


def distinct_ngrams(groups: Mapping[str, Sequence[str]], n: int, most: int = 100_000) -> dict[str, float | None]:
    """Distinct n-grams over all (distinct-n: Li et al. 2016, arXiv 1510.03055) of each group's words and signs.

    The share falls as a text goes on, so of every group equally many count, its first: as many as
    the shortest has that has any. None without any.
    """
    heads = {
        name: list(islice(chain.from_iterable(_ngrams(t, n) for t in texts), most)) for name, texts in groups.items()
    }
    even = min(filter(None, map(len, heads.values())), default=0)
    return {name: len(set(head[:even])) / even if head else None for name, head in heads.items()}


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = WORD.findall(text)
    return zip(*(words[place:] for place in range(n)), strict=False)

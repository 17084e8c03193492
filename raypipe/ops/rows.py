"""From a row of a lake, as Python has it, to a sample: which of its fields, joined, normalised, identified. A reject carries its reason.

This is what a row means. It takes 10 us a row; columnar does the same for whole tables, and leaves to this module whatever it is not sure of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raypipe.ops.text import normalise, sample_id

LONGEST_INTEGER = 4_000  # digits; Python refuses to read more than 4,300
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
FORMS = (("role", "content"), ("from", "value"))  # of a message: OpenAI's, ShareGPT's


@dataclass(frozen=True)
class Fields:
    """Paths into a row, `a.b` for b of the object a: those joined for instruction and response, or that of a conversation; and those carried."""

    instruction: tuple[str, ...] = ("instruction",)
    response: tuple[str, ...] = ("response",)
    messages: str | None = None
    multi_turn: str = "reject"
    carry: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        texts = (self.messages,) if self.messages else (*self.instruction, *self.response)
        return tuple(dict.fromkeys((*texts, *self.carry)))


@dataclass(frozen=True)
class Sample:
    sample_id: str
    instruction: str
    response: str
    carried: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Reject:
    reason: str


class NoSample(Exception):
    """Its argument is the reason."""


def parse_line(line: bytes, fields: Fields) -> Sample | Reject:
    """Of one JSON object. The reasons are those of `_rejected/`."""
    try:
        row = json.loads(line.decode(), object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError:
        return Reject("invalid_utf8")
    except RecursionError:
        return Reject("too_deep")
    except ValueError:
        return Reject("not_json")
    return sample_of(row, fields)


def sample_of(row: Any, fields: Fields) -> Sample | Reject:
    try:
        if not isinstance(row, dict):
            raise NoSample("not_an_object")
        texts = _turn(row, fields) if fields.messages else _joined(row, fields)
        instruction, response = (
            _checked(name, text) for name, text in zip(("instruction", "response"), texts, strict=True)
        )
        carried = tuple(as_text(_value(row, path)) for path in fields.carry)
        for text in filter(None, carried):
            text.encode()
        return Sample(sample_id(instruction, response), instruction, response, carried)
    except UnicodeEncodeError:
        return Reject("lone_surrogate")
    except RecursionError:
        return Reject("too_deep")
    except NoSample as no:
        return Reject(str(no))


def as_text(value: Any) -> str | None:
    """Text as it is, dates and the like as they are written, anything else as its JSON: a column has one type, whatever the rows hold."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)


class _Doubled(dict[str, Any]):
    """An object that has a key twice. Which of the two is meant, nobody knows."""

    keys_twice: frozenset[str] = frozenset()


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    doubled, names = _Doubled(row), [name for name, _ in pairs]
    doubled.keys_twice = frozenset(name for name in row if names.count(name) > 1)
    return doubled


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < LONGEST_INTEGER else float(digits)


def _get(row: dict[str, Any], name: str) -> Any:
    if isinstance(row, _Doubled) and name in row.keys_twice:
        raise NoSample("key_twice")
    return row.get(name)


def _parent(row: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The object that a path ends in, empty where there is none, and the name in it."""
    *parents, leaf = path.split(".")
    for name in parents:
        inner = _get(row, name)
        row = inner if isinstance(inner, dict) else {}
    return row, leaf


def _value(row: dict[str, Any], path: str) -> Any:
    """None where there is nothing of this path."""
    return _get(*_parent(row, path))


def _has(row: dict[str, Any], path: str) -> bool:
    parent, leaf = _parent(row, path)
    return leaf in parent


def _joined(row: dict[str, Any], fields: Fields) -> tuple[str, str]:
    return _join(row, "instruction", fields.instruction), _join(row, "response", fields.response)


def _join(row: dict[str, Any], name: str, paths: Sequence[str]) -> str:
    if not any(_has(row, path) for path in paths):
        raise NoSample(f"no_{name}_column")
    values = [value for path in paths if (value := _value(row, path)) is not None]
    if not all(isinstance(value, str) for value in values):
        raise NoSample(f"{name}_not_text")
    return "\n".join(filter(None, values))


def _checked(name: str, text: str) -> str:
    if not (text := normalise(text)):
        raise NoSample(f"empty_{name}")
    if "\0" in text:  # nothing else may stand between instruction and response in what a sample_id is made of
        raise NoSample("nul_character")
    return text


def _turn(row: dict[str, Any], fields: Fields) -> tuple[str, str]:
    """The only turn of a conversation, or its last one; what the system says first is part of the instruction."""
    assert fields.messages is not None
    if not _has(row, fields.messages):
        raise NoSample("no_messages_column")
    messages = _value(row, fields.messages)
    if not isinstance(messages, list):
        raise NoSample("messages_not_a_list" if messages is not None else "empty_messages")
    said = [_said(message) for message in messages]
    system = [text for role, text in said if role == "system"]
    turns = said[len(system) :]
    if any(role == "system" for role, _ in turns) or any(
        role != ("user", "assistant")[place % 2] for place, (role, _) in enumerate(turns)
    ):
        raise NoSample("not_in_turns")
    if not turns:
        raise NoSample("empty_messages")
    if len(turns) % 2:
        raise NoSample("no_last_response")
    if len(turns) > 2 and fields.multi_turn == "reject":
        raise NoSample("multi_turn")
    return "\n".join(filter(None, [*system, turns[-2][1]])), turns[-1][1]


def _said(message: Any) -> tuple[str, str]:
    """Who, what."""
    if not isinstance(message, dict):
        raise NoSample("message_not_an_object")
    for who, what in FORMS:
        if who in message:
            role, text = _get(message, who), _get(message, what)
            if not isinstance(role, str) or role.lower() not in ROLES:
                raise NoSample("unknown_role")
            if not isinstance(text, str | None):
                raise NoSample("content_not_text")
            return ROLES[role.lower()], text or ""
    raise NoSample("unknown_role")

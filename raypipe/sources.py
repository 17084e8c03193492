"""`ingest` and `clean` as the config has them: what is read of a lake, and which of it are samples."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, field_validator, model_validator

from raypipe.section import Fraction01, Section


def _as_list(value: Any) -> Any:
    """`lang: python` and `year: 2026` for `lang: [python]`, `year: ["2026"]`: in a name all values are text."""
    values = value if isinstance(value, list) else [value]
    return tuple(str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in values)


Values = Annotated[tuple[str, ...], Field(min_length=1), pydantic.BeforeValidator(_as_list)]


class Columns(Section):
    """Which fields of a row make the sample: of each, several are joined by a newline, empty ones left out. A dot leads into an object: data.problem."""

    instruction: str | tuple[str, ...] = "instruction"
    response: str | tuple[str, ...] = "response"
    messages: str | None = None  # in place of both: a list of {role, content} or, as ShareGPT has it, {from, value}

    @model_validator(mode="after")
    def _one_source(self) -> Columns:
        if self.messages is not None and (beside := sorted(self.model_fields_set - {"messages"})):
            raise ValueError(
                f"got messages and {beside[0]}, wanted one: a conversation, or the fields of instruction and response"
            )
        return self


class Ingest(Section):
    NOT_CONTENT = frozenset({"paths", "partitions", "max_rejected_fraction"})
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    partitions: dict[str, Values] = Field(
        default_factory=dict
    )  # of hive-style names (language=python/) these values only
    columns: Columns = Columns()
    carry: tuple[
        str, ...
    ] = ()  # further fields kept beside each sample, as text: language, licence, a score of your own
    multi_turn: Literal["reject", "last"] = "reject"  # of a conversation of several turns: no sample, or its last one
    part_bytes: Annotated[int, Field(ge=1024, le=128 << 20)] = 4 << 20  # of uncompressed text
    max_rejected_fraction: Fraction01 = 0.01  # of rows read

    @field_validator("carry")
    @classmethod
    def _free_names(cls, carry: tuple[str, ...]) -> tuple[str, ...]:
        taken = {
            "sample_id",
            "source_uri",
            "source_line",
            "source_offset",
            "instruction",
            "response",
            "status",
            "evidence",
        }
        if odd := sorted(name for name in set(carry) if name in taken or carry.count(name) > 1):
            raise ValueError(
                f"{odd[0]} is a name of a column of raypipe's, or given twice. Rename the field, or leave it out"
            )
        return carry


class Clean(Section):
    NOT_CONTENT = frozenset({"decontaminate"})  # their files' digests are in the recipe instead
    # of word 5-grams of instruction and response (Jaccard): the later one of two samples at least so near goes; null: exact duplicates only
    near_duplicate_similarity: Annotated[float, Field(ge=0.3, le=1)] | None = None
    decontaminate: tuple[
        str, ...
    ] = ()  # evaluation sets (JSONL): a sample that shares ngram_words words in a row with one goes
    ngram_words: Annotated[int, Field(ge=5)] = 13
    secrets: Literal["count", "drop"] | None = None  # samples with keys, tokens, e-mail or public IP addresses, by kind

"""What every section of the config is: a frozen model, strict in keys and types."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field

Positive = Annotated[int, Field(ge=1)]
Fraction01 = Annotated[float, Field(ge=0, lt=1)]


class Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)
    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset()

    def content(self) -> dict[str, Any]:
        """The keys that decide what is in a row."""
        return self.model_dump(mode="json", exclude=set(self.NOT_CONTENT))

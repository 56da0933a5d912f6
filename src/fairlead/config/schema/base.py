# SPDX-License-Identifier: Apache-2.0
"""What all parts of the schema share."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fairlead.config.findings import Refused, shown
from fairlead.config.forms import one_or_many

T = TypeVar("T")


class Part(BaseModel):
    """One mapping of the file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


def limited(limit: int, what: str) -> BeforeValidator:
    """Refuse a list of more than ``limit`` items before its items are looked at."""

    def check(value: object) -> object:
        if isinstance(value, list) and len(value) > limit:
            raise Refused(f"{len(value)} {what}; at most {limit} are allowed")
        return value

    return BeforeValidator(check)


def unless_word(word: str) -> BeforeValidator:
    """``word`` stands for None; anything else but a mapping or a list is refused with what is allowed."""

    def check(value: object) -> object:
        if value == word:
            return None
        if isinstance(value, (dict, list)):
            return value
        raise Refused(f"{shown(value)} is not allowed here; write `{word}`, or its keys")

    return BeforeValidator(check)


OneOrMany = Annotated[list[T], BeforeValidator(one_or_many)]


def key(default: Any, description: str, *, shown: str | None = None) -> Any:
    """A key with its default and its description; ``shown`` is the default in words where the value says too little."""
    return Field(default, description=description, json_schema_extra={} if shown is None else {"shown": shown})


def required(description: str) -> Any:
    """A key without default."""
    return Field(description=description)

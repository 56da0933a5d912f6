# SPDX-License-Identifier: Apache-2.0
"""What all parts of the schema share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from fairlead.config.findings import Refused, shown
from fairlead.config.forms import one_or_many

T = TypeVar("T")


class Part(BaseModel):
    """One mapping of the file; unknown keys are errors.

    Frozen, hence hashable, so that pydantic need not copy the default parts for each service; default lists are tuples
    for the same reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def limited(limit: int, what: str, *, least: int = 0) -> BeforeValidator:
    """Refuse a list of more than ``limit`` items, or fewer than ``least``, before its items are looked at."""

    def check(value: object) -> object:
        if isinstance(value, list) and len(value) > limit:
            raise Refused(f"{len(value)} {what}; at most {limit} are allowed")
        if isinstance(value, list) and len(value) < least:
            raise Refused(f"an empty list; write at least {least} of the {what}")
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


@dataclass(frozen=True, slots=True)
class Builds:
    """Validate by ``part``, then keep only what ``build`` makes of it: a noun takes a third of the memory of a Part.

    Attributes:
        part: The model.
        short: Makes a noun of the text that is short for a part.
        build: Turns a valid part into a noun.
    """

    part: type[Part]
    short: Callable[[str], object]
    build: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of ``part`` for what is no text; most are, and need no part."""

        def validate(value: object, inner: core_schema.ValidatorFunctionWrapHandler) -> object:
            return self.short(value) if isinstance(value, str) else self.build(inner(value))

        return core_schema.no_info_wrap_validator_function(validate, handler.generate_schema(self.part))


OneOrMany = Annotated[list[T], BeforeValidator(one_or_many)]


def key(default: Any, description: str, *, shown: str | None = None) -> Any:
    """A key with its default and its description; ``shown`` is the default in words where the value says too little."""
    return Field(default, description=description, json_schema_extra={} if shown is None else {"shown": shown})


def required(description: str) -> Any:
    """A key without default."""
    return Field(description=description)

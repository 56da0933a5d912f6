# SPDX-License-Identifier: Apache-2.0
"""Values to JSON and back, from the dataclasses alone; the same types give the OpenAPI schemas.

Invariant: what arrives is refused as a whole with a sentence that names the allowed keys or values,
or it is a typed value.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json
from starlette.datastructures import QueryParams

from fairlead.api.problems import Reason, Refusal
from fairlead.model.pool import AdminState
from fairlead.model.views import ServerView, ServiceView, StatusView

MAX_WEIGHT = 65535

# A tag covers what an operator sets, not the counters: under traffic those change between any read and write.
SETTINGS: dict[type, tuple[str, ...]] = {
    ServerView: ("key", "address", "weight", "admin", "backup", "max_connections"),
    ServiceView: ("name", "listen", "protocol", "pool", "forwarding", "engine", "scheduler"),
    StatusView: ("config_file", "config_digest"),
}


@dataclass(frozen=True, slots=True)
class ServerChange:
    """What to change at a server; a key that is left out stays as it is."""

    admin: AdminState | None = None
    weight: Annotated[int, Strict(), Field(ge=0, le=MAX_WEIGHT)] | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One key of a query string. ``kind`` is ``str``, ``int`` (within ``low`` and ``high``) or ``bool``."""

    name: str
    kind: type[str | int | bool]
    description: str
    default: str | int | bool | None = None
    low: int = 0
    high: int = 2**53 - 1  # the largest integer every JSON reader keeps exactly

    def parse(self, text: str) -> str | int | bool:
        """The value ``text`` stands for.

        Raises:
            Refusal: 400, naming what is allowed.
        """
        if self.kind is bool:
            if text in {"true", "false"}:
                return text == "true"
            raise self._refusal(text, "true or false", ("true", "false"))
        if self.kind is int:
            if re.fullmatch(r"[0-9]{1,16}", text) and self.low <= int(text) <= self.high:
                return int(text)
            raise self._refusal(text, f"a whole number from {self.low} to {self.high}", None)
        return text

    def _refusal(self, text: str, wanted: str, allowed: tuple[str, ...] | None) -> Refusal:
        detail = f"{self.name}={text[:80]!r} must be {wanted}"
        return Refusal(HTTPStatus.BAD_REQUEST, Reason.BAD_VALUE, detail, allowed=allowed)


_made = functools.cache(TypeAdapter)


def adapter(kind: Any) -> TypeAdapter[Any]:
    """The one encoder, decoder and schema of a type."""
    return _made(kind)


def encode(kind: Any, value: Any) -> bytes:
    """``value`` of type ``kind`` as JSON; numbers that JSON lacks become null."""
    try:
        return adapter(kind).dump_json(value)
    except PydanticSerializationError:
        # Text that is no UTF-8 (a file name, a server's answer) arrives as lone surrogates; JSON can escape those.
        return json.dumps(adapter(kind).dump_python(value)).encode("ascii")


def settings_tag(value: Any) -> str:
    """Entity tag of the settings of a view (RFC 9110 section 8.8.3)."""
    names = SETTINGS.get(type(value)) or tuple(field.name for field in fields(value))
    settings = json.dumps([getattr(value, name) for name in names])
    return f'"{hashlib.blake2b(settings.encode(), digest_size=12).hexdigest()}"'


def parse_query(given: QueryParams, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The query string as typed values, defaults filled in.

    Raises:
        Refusal: 400 on an unknown or repeated key, or on a bad value.
    """
    known = {parameter.name: parameter for parameter in parameters}
    values: dict[str, Any] = {parameter.name: parameter.default for parameter in parameters}
    seen: set[str] = set()
    for name, text in given.multi_items():
        if name not in known:
            raise _unknown("query parameter", name, tuple(known))
        if name in seen:
            raise Refusal(HTTPStatus.BAD_REQUEST, Reason.BAD_VALUE, f"{name} is given twice; give it once")
        seen.add(name)
        values[name] = known[name].parse(text)
    return values


def parse_body(kind: type[Any], body: bytes) -> Any:
    """A JSON object as a ``kind``.

    Raises:
        Refusal: 400 on bad JSON, an unknown key or a bad value.
    """
    names = tuple(member.name for member in fields(kind))
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        detail = f"the body is not JSON: {error}; send an object like {{{_example(names)}}}"
        raise Refusal(HTTPStatus.BAD_REQUEST, Reason.MALFORMED, detail, allowed=names) from None
    if not isinstance(document, dict):
        detail = f"the body must be a JSON object like {{{_example(names)}}}"
        raise Refusal(HTTPStatus.BAD_REQUEST, Reason.BAD_VALUE, detail, allowed=names)
    for name in document:
        if name not in names:
            raise _unknown("key", name, names)
    try:
        return adapter(kind).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        detail = f"{first['loc'][0]}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise Refusal(HTTPStatus.BAD_REQUEST, Reason.BAD_VALUE, detail) from None


def _unknown(what: str, name: str, allowed: tuple[str, ...]) -> Refusal:
    listed = ", ".join(allowed) or "none"
    detail = f"unknown {what} {name[:80]!r}; allowed: {listed}"
    return Refusal(HTTPStatus.BAD_REQUEST, Reason.UNKNOWN_KEY, detail, allowed=allowed)


def _example(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}": ...' for name in names)

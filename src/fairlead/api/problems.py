# SPDX-License-Identifier: Apache-2.0
"""Every refusal of the API as one ``application/problem+json`` body (RFC 9457).

Invariant: ``reason`` is a stable word that scripts may compare; ``detail`` is one sentence for people
that says what to do, and never holds a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from fairlead.errors import ConfigError, Conflict, DataPlaneError, FairleadError, NotFound, Problem, UnsupportedFeature

MEDIA_TYPE = "application/problem+json"


class Reason(StrEnum):
    """Why a request was refused."""

    MALFORMED = "malformed"  # not HTTP, or not JSON
    BAD_VALUE = "bad_value"
    UNKNOWN_KEY = "unknown_key"
    NOT_PERMITTED = "not_permitted"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TIMEOUT = "timeout"
    CONFLICT = "conflict"
    STALE = "stale"  # If-Match names a state that has passed
    TOO_LARGE = "too_large"
    MEDIA_TYPE = "media_type"
    INVALID_CONFIGURATION = "invalid_configuration"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    INTERNAL = "internal"
    DATA_PLANE = "data_plane"
    NOT_READY = "not_ready"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class ProblemBody:
    """One refusal, as RFC 9457 section 3 describes it, with ``reason`` and lists as extension members.

    Attributes:
        type: Always ``about:blank``: ``reason`` tells the kinds apart.
        problems: Findings in a configuration file.
        allowed: What would have been accepted.
    """

    title: str
    status: int
    detail: str
    reason: Reason
    type: str = "about:blank"
    problems: tuple[Problem, ...] | None = None
    allowed: tuple[str, ...] | None = None


@dataclass(slots=True, eq=False)
class Refusal(Exception):
    """Raised anywhere under a route to answer with a problem."""

    status: HTTPStatus
    reason: Reason
    detail: str
    problems: tuple[Problem, ...] | None = None
    allowed: tuple[str, ...] | None = None
    headers: dict[str, str] = field(default_factory=dict)


def refusal_for(error: FairleadError) -> Refusal:
    """The answer to an error that the engine raised on purpose."""
    text = str(error)
    match error:
        case ConfigError():
            detail = f"the configuration is invalid ({len(error.problems)} findings); nothing was changed"
            return Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY, Reason.INVALID_CONFIGURATION, detail, problems=error.problems
            )
        case NotFound():
            return Refusal(HTTPStatus.NOT_FOUND, Reason.NOT_FOUND, text)
        case Conflict():
            return Refusal(HTTPStatus.CONFLICT, Reason.CONFLICT, text)
        case UnsupportedFeature():
            return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, Reason.UNSUPPORTED, text)
        case DataPlaneError():
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, Reason.DATA_PLANE, text)
        case _:
            return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, Reason.FAILED, text)


def encode_problem(refusal: Refusal) -> bytes:
    """The body of ``refusal``; members that say nothing are left out."""
    body = ProblemBody(
        HTTPStatus(refusal.status).phrase,
        refusal.status,
        refusal.detail,
        refusal.reason,
        problems=refusal.problems,
        allowed=refusal.allowed,
    )
    said: dict[str, Any] = {key: value for key, value in asdict(body).items() if value is not None}
    return json.dumps(said).encode("ascii")


def problem_response(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    """The whole answer."""
    return Response(
        encode_problem(refusal),
        refusal.status,
        {"cache-control": "no-store", **refusal.headers, **(headers or {})},
        MEDIA_TYPE,
    )

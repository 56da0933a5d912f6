# SPDX-License-Identifier: Apache-2.0
"""From an HTTP request to an operation and back: roles, query, body, preconditions, problems.

Invariant: whatever an operation does, the client gets a well-formed answer and never a traceback;
writes happen one at a time, so that a precondition still holds when its write is made.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from http import HTTPStatus

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fairlead.api.codec import encode, parse_body, parse_query, settings_tag
from fairlead.api.events import EVENT_STREAM, Streams
from fairlead.api.facade import Facade
from fairlead.api.metrics import Metrics
from fairlead.api.peer import NOBODY, Peer
from fairlead.api.problems import Reason, Refusal, problem_response, refusal_for
from fairlead.api.routes import OPENAPI_PATH, OPERATIONS, Call, Operation, near_names
from fairlead.errors import FairleadError

MAX_BODY = 65536  # octets; the largest sensible request has a hundred
JSON = "application/json"
_BODY_TYPES = frozenset({"", JSON, "application/merge-patch+json"})


class Api:
    """The ASGI application over a Facade; ``close`` ends its event streams."""

    def __init__(self, facade: Facade) -> None:
        self._facade = facade
        self._metrics = Metrics(facade)
        self._streams = Streams(facade)
        self._writing = asyncio.Lock()
        self._log = structlog.get_logger("fairlead")
        self._openapi: bytes | None = None
        by_path: dict[str, list[Operation]] = {}
        for operation in OPERATIONS:
            by_path.setdefault(operation.path, []).append(operation)
        routes = [self._route(path, operations) for path, operations in by_path.items()]
        routes.append(Route(OPENAPI_PATH, self._document, methods=["GET"]))
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._no_route})
        self.app.router.redirect_slashes = False

    def close(self) -> None:
        """End the event streams, so that a stop does not wait for them."""
        self._streams.close()

    def _route(self, path: str, operations: Sequence[Operation]) -> Route:
        by_method = {operation.method: operation for operation in operations}

        async def serve(request: Request) -> Response:
            return await self._serve(request, by_method.get(request.method) or by_method["GET"])

        return Route(path, serve, methods=list(by_method))

    async def _serve(self, request: Request, operation: Operation) -> Response:
        try:
            return await self._operate(request, operation)
        except Refusal as refusal:
            return problem_response(refusal)
        except FairleadError as error:
            return problem_response(refusal_for(error))
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody is left to read it
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer and the log the rest
            self._log.exception("api_error", operation=operation.name)
            detail = f"{operation.name} failed because of an error in fairlead; the daemon's log has the details"
            return problem_response(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, Reason.INTERNAL, detail))

    async def _operate(self, request: Request, operation: Operation) -> Response:
        if operation.writes:
            _require_operator(request)
        query = parse_query(request.query_params, operation.parameters)
        raw = await _read_body(request)
        if operation.body is None and raw:
            raise Refusal(HTTPStatus.BAD_REQUEST, Reason.BAD_VALUE, f"{operation.name} takes no body; send none")
        body = parse_body(operation.body, raw) if operation.body is not None else None
        if request.method == "HEAD" and operation.answer == EVENT_STREAM:
            return Response(media_type=EVENT_STREAM)
        shared = self._facade, self._metrics, self._streams
        call = Call(*shared, request.path_params, query, body, dict(request.headers), request.state.ended)
        if operation.writes:
            async with self._writing:
                await _check_precondition(call, operation)
                value = await operation.handler(call)
        else:
            value = await operation.handler(call)
        if isinstance(value, Response):
            return value
        headers = {"cache-control": "no-store"}
        if operation.subject is not None and not operation.writes:
            headers["etag"] = settings_tag(value)
        return Response(encode(operation.answer, value), headers=headers, media_type=JSON)

    async def _document(self, _: Request) -> Response:
        if self._openapi is None:
            from fairlead.api.openapi import document  # noqa: PLC0415 - 50 ms that only its readers pay

            self._openapi = json.dumps(document()).encode()
        return Response(self._openapi, media_type=JSON)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = tuple(sorted((error.headers or {}).get("Allow", "").split(", ")))
            detail = f"{request.method[:20]} does not work on {request.url.path[:200]}; allowed: {', '.join(allowed)}"
            refusal = Refusal(HTTPStatus.METHOD_NOT_ALLOWED, Reason.METHOD_NOT_ALLOWED, detail, allowed=allowed)
            return problem_response(refusal, {"allow": ", ".join(allowed)})
        near = near_names(request.url.path, [operation.path for operation in OPERATIONS])
        detail = f"no resource {request.url.path[:200]!r}{near}; GET {OPENAPI_PATH} lists all"
        return problem_response(Refusal(HTTPStatus(error.status_code), Reason.NOT_FOUND, detail))


def _require_operator(request: Request) -> None:
    peer: Peer = getattr(request.state, "peer", NOBODY)
    if not peer.operates:
        detail = (
            f"uid {peer.uid} may read but not operate; run the command as root (sudo) or as the daemon's user, "
            f"uid {peer.daemon_uid}"
        )
        raise Refusal(HTTPStatus.FORBIDDEN, Reason.NOT_PERMITTED, detail)


async def _read_body(request: Request) -> bytes:
    """The body, if it is JSON and not too large; a refused one is not read any further."""
    chunks = bytearray()
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:12]) > MAX_BODY:
        raise _too_large()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > MAX_BODY:
            raise _too_large()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if chunks and media_type not in _BODY_TYPES:
        detail = f"the body is {media_type[:80]!r}; send {JSON}"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, Reason.MEDIA_TYPE, detail, allowed=(JSON,))
    return bytes(chunks)


def _too_large() -> Refusal:
    detail = f"the body is larger than {MAX_BODY} octets; send only the keys to change"
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Reason.TOO_LARGE, detail)


async def _check_precondition(call: Call, operation: Operation) -> None:
    """If-Match (RFC 9110 section 13.1.1): the strong comparison, so that a weak tag never matches."""
    wanted = call.headers.get("if-match")
    if wanted is None:
        return
    assert operation.subject is not None
    present = settings_tag(await operation.subject(call))
    if wanted.strip() != "*" and present not in {tag.strip() for tag in wanted.split(",")}:
        detail = "the settings have changed since they were read; read them again and decide anew"
        raise Refusal(HTTPStatus.PRECONDITION_FAILED, Reason.STALE, detail, headers={"etag": present})

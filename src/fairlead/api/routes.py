# SPDX-License-Identifier: Apache-2.0
"""The table of all operations: the dispatcher serves it and the OpenAPI document describes it.

Invariant: an operation that is not in ``OPERATIONS`` does not exist.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.responses import PlainTextResponse, Response

from fairlead.api.codec import Parameter, ServerChange
from fairlead.api.events import EVENT_STREAM, Streams, events_page
from fairlead.api.facade import Facade
from fairlead.api.metrics import Metrics
from fairlead.api.problems import Reason, Refusal
from fairlead.errors import NotFound
from fairlead.model.net import FlowQuestion, Protocol, read_endpoint
from fairlead.model.views import (
    ChangeResult,
    EventView,
    ExplainView,
    FlowPage,
    HealthView,
    ServerView,
    ServiceView,
    StatusView,
    VipView,
    VrrpView,
)

DEFAULT_PAGE, MAX_PAGE = 100, 1000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request, parsed: what an operation works with; ``ended`` is set once its client sends no more."""

    facade: Facade
    metrics: Metrics
    streams: Streams
    path: dict[str, str]
    query: dict[str, Any]
    body: Any
    headers: dict[str, str]
    ended: asyncio.Event


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        answer: Type of the JSON body, or a media type when the handler returns a whole Response.
        body: Type of the JSON the request carries, or None: it carries nothing.
        writes: Only peers that operate may call it, one at a time.
        subject: The view whose settings tag ``If-Match`` is compared with, and that GET answers with.
    """

    method: str
    path: str
    name: str
    summary: str
    handler: Callable[[Call], Awaitable[Any]]
    answer: Any
    parameters: tuple[Parameter, ...] = ()
    body: type[Any] | None = None
    writes: bool = False
    subject: Callable[[Call], Awaitable[Any]] | None = None


async def _status(call: Call) -> StatusView:
    return call.facade.status()


async def _services(call: Call) -> tuple[ServiceView, ...]:
    return await call.facade.services()


async def _service(call: Call) -> ServiceView:
    found = {service.name: service for service in await call.facade.services()}
    return _pick(found, call.path["name"], "service")


async def _servers(call: Call) -> tuple[ServerView, ...]:
    return await call.facade.servers()


async def _server(call: Call) -> ServerView:
    found = {server.key: server for server in await call.facade.servers()}
    return _pick(found, call.path["key"], "server")


async def _health(call: Call) -> tuple[HealthView, ...]:
    return call.facade.health()


async def _vips(call: Call) -> tuple[VipView, ...]:
    return call.facade.vips()


async def _vrrp(call: Call) -> tuple[VrrpView, ...]:
    return call.facade.vrrp()


async def _release_vip(call: Call) -> ChangeResult:
    return await call.facade.move_vip(call.path["address"], "release", dry_run=call.query["dry_run"])


async def _claim_vip(call: Call) -> ChangeResult:
    return await call.facade.move_vip(call.path["address"], "claim", dry_run=call.query["dry_run"])


async def _connections(call: Call) -> FlowPage:
    query = call.query
    return await call.facade.connections(query["service"], query["server"], query["cursor"], query["limit"])


async def _explain(call: Call) -> ExplainView:
    ends = []
    for name in ("client", "vip"):
        try:
            ends.append(read_endpoint(call.path[name]))
        except ValueError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, Reason.BAD_VALUE, f"{name}: {error}") from None
    protocol = call.path["protocol"]
    if protocol not in set(Protocol):
        raise Refusal(HTTPStatus.BAD_REQUEST, Reason.BAD_VALUE, f"{protocol!r} is no protocol; give tcp or udp")
    return await call.facade.explain(FlowQuestion(Protocol(protocol), *ends), call.query["without"])


async def _events(call: Call) -> tuple[EventView, ...]:
    return events_page(call.facade, call.query["after"], call.query["limit"])


async def _stream(call: Call) -> Response:
    return call.streams.open(call.headers.get("last-event-id"), call.query["after"], call.ended)


async def _change_server(call: Call) -> ChangeResult:
    change: ServerChange = call.body
    if change.admin is None and change.weight is None:
        raise Refusal(HTTPStatus.BAD_REQUEST, Reason.BAD_VALUE, "nothing to change; give admin, weight or both")
    return await call.facade.set_server(
        call.path["key"], admin=change.admin, weight=change.weight, dry_run=call.query["dry_run"]
    )


async def _reload(call: Call) -> ChangeResult:
    return await call.facade.reload(call.query["dry_run"])


async def _healthz(_: Call) -> Response:
    return PlainTextResponse("ok\n")


async def _readyz(call: Call) -> Response:
    if call.facade.ready():
        return PlainTextResponse("ready\n")
    detail = "the data plane is not programmed yet; GET /v1/status says why"
    raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, Reason.NOT_READY, detail)


async def _metrics(call: Call) -> Response:
    text, media_type = await call.metrics.render(call.headers.get("accept", ""))
    return Response(text, media_type=media_type)


def _pick(found: dict[str, T], name: str, what: str) -> T:
    if name in found:
        return found[name]
    raise NotFound(f"no {what} {name[:200]!r}{near_names(name, found)}")


def near_names(name: str, known: Iterable[str]) -> str:
    """What to add to a message about an unknown ``name``."""
    near = difflib.get_close_matches(name[:200], list(known), 3, 0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


_DRY_RUN = Parameter("dry_run", bool, "Say what would change, and change nothing.", default=False)
_LIMIT = Parameter("limit", int, "At most this many.", default=DEFAULT_PAGE, low=1, high=MAX_PAGE)
_AFTER = "Only events with a greater id; an id of an earlier run of the daemon counts as 0."

OPERATIONS = (
    Operation("GET", "/v1/status", "status", "The daemon at a glance", _status, StatusView, subject=_status),
    Operation("GET", "/v1/services", "services", "All services with their servers", _services, tuple[ServiceView, ...]),
    Operation("GET", "/v1/services/{name}", "service", "One service", _service, ServiceView, subject=_service),
    Operation("GET", "/v1/servers", "servers", "All servers of all pools", _servers, tuple[ServerView, ...]),
    Operation("GET", "/v1/servers/{key:path}", "server", "One server, as POOL/SERVER", _server, ServerView, (), None,
              subject=_server),
    Operation("PATCH", "/v1/servers/{key:path}", "change_server", "Set administrative state or weight at run time",
              _change_server, ChangeResult, (_DRY_RUN,), ServerChange, writes=True, subject=_server),
    Operation("GET", "/v1/health", "health", "All probed targets", _health, tuple[HealthView, ...]),
    Operation("GET", "/v1/vips", "vips", "All VIPs, as this node sees them", _vips, tuple[VipView, ...]),
    Operation("GET", "/v1/vrrp", "vrrp", "All VRRP instances of this node", _vrrp, tuple[VrrpView, ...]),
    Operation("POST", "/v1/vips/{address}/release", "release_vip", "Hand the instance of a VIP to another node",
              _release_vip, ChangeResult, (_DRY_RUN,), writes=True, subject=_status),
    Operation("POST", "/v1/vips/{address}/claim", "claim_vip", "Take the instance of a VIP over", _claim_vip,
              ChangeResult, (_DRY_RUN,), writes=True, subject=_status),
    Operation(
        "GET", "/v1/connections", "connections", "Connections, page by page", _connections, FlowPage,
        (Parameter("service", str, "Only of this service."), Parameter("server", str, "Only of this POOL/SERVER."),
         Parameter("cursor", str, "Where the page before ended."), _LIMIT),
    ),
    Operation(
        "GET", "/v1/explain/{protocol}/{client}/{vip}", "explain",
        "Where a flow goes and why, from the live tables; client and VIP as ADDRESS:PORT", _explain, ExplainView,
        (Parameter("without", str, "Think this POOL/SERVER away."),),
    ),
    Operation("GET", "/v1/events", "events", "What happened, oldest first", _events, tuple[EventView, ...],
              (Parameter("after", int, _AFTER, default=0), _LIMIT)),
    Operation("GET", "/events", "event_stream", "What happens, as server-sent events; Last-Event-ID resumes", _stream,
              EVENT_STREAM, (Parameter("after", int, _AFTER + " Without it: from now on."),)),
    Operation("POST", "/v1/reload", "reload", "Read the configuration file again", _reload, ChangeResult, (_DRY_RUN,),
              writes=True, subject=_status),
    Operation("GET", "/healthz", "healthz", "200 as long as the agent's loop turns", _healthz, "text/plain"),
    Operation("GET", "/readyz", "readyz", "200 once the data plane is programmed, else 503", _readyz, "text/plain"),
    Operation("GET", "/metrics", "metrics", "Prometheus metrics", _metrics, "text/plain"),
)  # fmt: skip
OPENAPI_PATH = "/v1/openapi.json"

# SPDX-License-Identifier: Apache-2.0
"""Schema of ``pools``."""

from __future__ import annotations

from typing import Annotated, Any

from fairlead.config.forms import (
    ADDRESS,
    BOOLEAN,
    BYTES,
    ENDPOINT,
    NAME_FORM,
    PERCENT,
    choice,
    duration,
    integer,
    nullable,
    parse_endpoint,
    plain_endpoint,
)
from fairlead.config.schema.base import Builds, Part, key, limited, required, unless_word
from fairlead.config.schema.health import Health, Tcp
from fairlead.model.net import Endpoint, IPAddress
from fairlead.model.pool import AdminState, RealServer

MAX_WEIGHT = 256
MAX_SERVERS_PER_POOL = 16384  # what one LookupTable of a worker can name


class Server(Part):
    """A machine behind the services. ADDRESS:PORT alone is short for a mapping with only `address`."""

    address: Annotated[Endpoint, ENDPOINT] = required("Where it is reached.")
    name: Annotated[str | None, nullable(NAME_FORM)] = key(
        None, "How it is called; unique in its pool.", shown="ADDRESS:PORT"
    )
    weight: Annotated[int, integer(0, MAX_WEIGHT)] = key(1, "Its share of new flows; 0 equals `state: drain`.")
    max_connections: Annotated[int, integer(0, 2_000_000_000)] = key(0, "Established connections at most; 0: no limit.")
    state: Annotated[AdminState, choice(AdminState)] = key(
        AdminState.READY,
        "`drain`: no new flows, established ones may end within `drain_timeout`. `maint`: no probes, flows are closed.",
    )
    backup: Annotated[bool, BOOLEAN] = key(False, "Used only when no other server is up.")


class Passive(Part):
    """Real traffic that fails takes a server out for a time."""

    failures: Annotated[int, integer(1, 1_000_000)] = key(5, "Failures in a row that eject a server.")
    interval: Annotated[float, duration(0.1, 3600)] = key(10.0, "Time in which they count.")
    eject: Annotated[float, duration(0.1, 86400)] = key(
        30.0,
        "How long it is out the first time; the second time twice as long, and so on up to ten times. Only the first "
        "time ends early, when a probe passes.",
    )
    max_ejected: Annotated[int, PERCENT] = key(
        50,
        "Share of the pool that may be out at a time, rounded down but at least one server; `0%`: none. Never so many "
        "that less than the quorum is left.",
    )


class Agent(Part):
    """A program on each server says how much the server wants, in the words of HAProxy's `agent-check`.

    Its answer is a line: `75%` of the weight, `maxconn:30`, `ready`, `drain`, `maint`, `up`, `down #reason`, or several
    of them. It can only take away from what the operator allows, and never ends a connection.
    """

    port: Annotated[int, integer(1, 65535)] = required("Port of the agent.")
    address: Annotated[IPAddress | None, nullable(ADDRESS)] = key(None, "Ask this address instead of the server's.")
    send: Annotated[bytes | None, nullable(BYTES)] = key(
        None, "What to send before the answer is read.", shown="nothing"
    )
    interval: Annotated[float, duration(0.01, 3600)] = key(2.0, "From one question to the next.")
    timeout: Annotated[float, duration(0.001, 600)] = key(1.0, "For one answer.")


def _short_server(text: str) -> RealServer:
    endpoint = plain_endpoint(text)
    if endpoint is not None:
        return RealServer(text, endpoint)
    endpoint = parse_endpoint(text)
    return RealServer(endpoint_name(endpoint), endpoint)


def _real_server(server: Server) -> RealServer:
    return RealServer(
        name=server.name or endpoint_name(server.address),
        endpoint=server.address,
        weight=server.weight,
        max_connections=server.max_connections,
        state=server.state,
        backup=server.backup,
    )


def endpoint_name(endpoint: Endpoint) -> str:
    """ADDRESS:PORT, or the address alone when the port is the one that the client used."""
    text = str(endpoint)
    return text if endpoint.port else text.removesuffix(":0")


def default_health() -> tuple[Any, ...]:
    """What a pool without ``health`` gets: one TCP monitor."""
    return (Tcp.model_validate({"type": "tcp"}),)


Servers = Annotated[
    list[Annotated[RealServer, Builds(Server, _short_server, _real_server)]],
    limited(MAX_SERVERS_PER_POOL, "servers"),
]


class Pool(Part):
    """The real servers behind services, and how they are probed."""

    servers: Servers = required("The servers.")
    health: Health = key(
        default_health(),
        "How servers are probed. A type alone (`tcp`) takes that type's defaults; of a list of monitors all must pass; "
        "with `none` servers count as up.",
        shown="tcp",
    )
    passive: Annotated[Passive | None, unless_word("off")] = key(
        None, "Real traffic that fails takes a server out for a time.", shown="off"
    )
    agent: Annotated[Agent | None, unless_word("off")] = key(
        None, "A program on each server that says how much the server wants.", shown="off"
    )
    slow_start: Annotated[float, duration(0, 86400)] = key(
        0.0, "A server that comes up reaches its full weight over this time."
    )
    drain_timeout: Annotated[float, duration(0, 30 * 86400.0)] = key(
        300.0, "How long the flows of a server that drains or was removed may last; then they are closed with an RST."
    )
    quorum: Annotated[int, integer(1, 2_000_000_000)] = key(
        1, "Sum of live weights under which services with this pool count as down."
    )

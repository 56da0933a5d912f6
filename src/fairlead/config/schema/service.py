# SPDX-License-Identifier: Apache-2.0
"""Schema of ``services``."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface
from typing import Annotated

from pydantic import BeforeValidator

from fairlead.config.findings import Refused, shown
from fairlead.config.forms import (
    BOOLEAN,
    LISTEN,
    NAME_FORM,
    NETWORK,
    choice,
    duration,
    integer,
)
from fairlead.config.schema.base import OneOrMany, Part, key, limited, required
from fairlead.model.net import Listen, Protocol
from fairlead.model.service import Engine, Forwarding, ProxyHeader, Scheduler, WhenAllDown

_COUNT = integer(0, 2_000_000_000)
_DAYS_30 = 30 * 86400.0


class ProxyProtocol(Part):
    """PROXY protocol headers, towards clients and towards servers."""

    accept: Annotated[bool, BOOLEAN] = key(
        False,
        "Clients send a header of either version within 3 s; what comes without one is refused. Its addresses are "
        "believed: let nobody but proxies reach the port. With UDP every datagram has one (version 2).",
    )
    send: Annotated[ProxyHeader, choice(ProxyHeader)] = key(
        ProxyHeader.NONE, "Version of the header sent to servers; with UDP `v2`, in every datagram."
    )


class Limits(Part):
    """Upper bounds; 0 is no limit."""

    connections: Annotated[int, _COUNT] = key(0, "Established connections of the service.")
    connections_per_source: Annotated[int, _COUNT] = key(0, "Established connections of one source address.")
    new_per_source: Annotated[int, _COUNT] = key(0, "New connections of one source address per second.")
    prefix_v4: Annotated[int, integer(1, 32)] = key(32, "Length of the prefix that makes IPv4 addresses one source.")
    prefix_v6: Annotated[int, integer(1, 128)] = key(64, "Length of the prefix that makes IPv6 addresses one source.")
    queue: Annotated[int, _COUNT] = key(
        0, "TCP connections that may wait while every server is at its `max_connections`; they count as established."
    )
    queue_timeout: Annotated[float, duration(0.001, _DAYS_30, off=True)] = key(
        10.0, "How long they wait before they are refused."
    )


class Persistence(Part):
    """A client, or its network, stays with its server."""

    timeout: Annotated[float, duration(1, _DAYS_30)] = required("How long after its last connection.")
    prefix_v4: Annotated[int, integer(1, 32)] = key(32, "Length of the prefix that makes IPv4 clients one.")
    prefix_v6: Annotated[int, integer(1, 128)] = key(128, "Length of the prefix that makes IPv6 clients one.")


def _persistence(value: object) -> object:
    if isinstance(value, str):
        return None if value == "off" else {"timeout": value}
    if isinstance(value, dict):
        return value
    raise Refused(f"{shown(value)} is not allowed here; write `off`, a duration, or a mapping with `timeout`")


Networks = Annotated[list[Annotated[IPv4Interface | IPv6Interface, NETWORK]], limited(2000, "networks")]
_IDLE = duration(1, _DAYS_30, off=True)


class Service(Part):
    """What clients connect to: a VIP, a port and a protocol."""

    listen: Annotated[OneOrMany[Annotated[Listen, LISTEN]], limited(256, "addresses", least=1)] = required(
        "Where clients connect. An IPv6 address stands in brackets."
    )
    protocol: Annotated[Protocol, choice(Protocol)] = key(Protocol.TCP, "Transport protocol.")
    pool: Annotated[str, NAME_FORM] = required("Pool that serves it; many services may share one.")
    forwarding: Annotated[Forwarding, choice(Forwarding)] = key(
        Forwarding.PROXY, "How packets reach the server: through a userspace proxy, or rewritten in the kernel."
    )
    engine: Annotated[Engine, choice(Engine)] = key(
        Engine.AUTO, "Which data plane carries it; `auto` takes `userspace` for `proxy`, `xdp` for the others."
    )
    scheduler: Annotated[Scheduler, choice(Scheduler)] = key(
        Scheduler.MAGLEV,
        "Chooses the server of a new flow: consistent hashing, (weighted) round robin, (weighted) least connections, "
        "source hash, random.",
    )
    persistence: Annotated[Persistence | None, BeforeValidator(_persistence)] = key(
        None,
        "A client stays with its server for this time after its last connection; the mapping widens it to networks.",
        shown="off",
    )
    idle_timeout: Annotated[float | None, _IDLE] = key(
        None,
        "A flow that was silent for this long is closed, with an RST to both sides. `off`: never.",
        shown="350s, for udp 60s",
    )
    connect_timeout: Annotated[float, duration(0.001, 600)] = key(5.0, "For one attempt to connect to a server.")
    retries: Annotated[int, integer(0, 100)] = key(3, "Further servers that are tried when a connect fails.")
    half_close_timeout: Annotated[float, duration(0.001, _DAYS_30)] = key(
        30.0, "For the other direction, after one side has ended its own."
    )
    transparent: Annotated[bool, BOOLEAN] = key(
        False,
        "Connect to the server from the client's own address. The way from the servers to clients must lead through "
        "this host; fairlead sets up the routing rules, which take all that comes from the servers' ports. "
        "Needs CAP_NET_ADMIN.",
    )
    proxy_protocol: ProxyProtocol = key(ProxyProtocol(), "PROXY protocol headers.")
    allow: Networks = key((), "Networks that may connect; empty: everybody.")
    deny: Networks = key((), "Networks that may not connect; wins over `allow`.")
    limits: Limits = key(Limits(), "Upper bounds; 0 is no limit.")
    when_all_down: Annotated[WhenAllDown, choice(WhenAllDown)] = key(
        WhenAllDown.REJECT,
        "Without a live server new flows are refused (RST or ICMP unreachable), spread over all servers, or dropped.",
    )


# Keys that mean something only to `forwarding: proxy`.
UDP_NOT = ("connect_timeout", "half_close_timeout")  # no UDP flow is ever connecting or half closed
PROXY_ONLY = ("connect_timeout", "retries", "half_close_timeout", "transparent", "proxy_protocol")

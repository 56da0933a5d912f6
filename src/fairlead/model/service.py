# SPDX-License-Identifier: Apache-2.0
"""VirtualService and its settings, as the user wrote them (defaults filled in)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fairlead.model.net import Endpoint, Listen, Prefix, Protocol


class Forwarding(StrEnum):
    """How packets reach the real server."""

    PROXY = "proxy"
    NAT = "nat"
    FULLNAT = "fullnat"
    DSR = "dsr"
    TUNNEL = "tunnel"


class Engine(StrEnum):
    """Which data plane carries a service."""

    AUTO = "auto"
    USERSPACE = "userspace"
    XDP = "xdp"
    LVS = "lvs"


class Scheduler(StrEnum):
    """Chooses a real server for a new flow."""

    MAGLEV = "maglev"
    RR = "rr"
    WRR = "wrr"
    LC = "lc"
    WLC = "wlc"
    SH = "sh"
    RANDOM = "random"


class WhenAllDown(StrEnum):
    """What happens to a new flow when no server may take it."""

    REJECT = "reject"
    USE_ALL = "use_all"
    DROP = "drop"


class ProxyHeader(StrEnum):
    """PROXY protocol version sent to servers."""

    NONE = "none"
    V1 = "v1"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class Persistence:
    """A client (by prefix) sticks to its server for ``timeout_s`` after its last connection."""

    timeout_s: float
    prefix_v4: int = 32
    prefix_v6: int = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of a service; 0 means none. ``new_per_source`` is per second.

    Attributes:
        prefix_v4: How much of an IPv4 address makes one source.
        prefix_v6: The same for IPv6.
        queue: Connections that may wait while every server is full; 0: none.
        queue_timeout_s: How long; 0: for ever.
    """

    connections: int = 0
    connections_per_source: int = 0
    new_per_source: int = 0
    prefix_v4: int = 32
    prefix_v6: int = 64
    queue: int = 0
    queue_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Passage:
    """How packets of a service get to its servers unchanged: addressed to ``vip``, by ``forwarding`` dsr or tunnel."""

    vip: Endpoint
    protocol: Protocol
    forwarding: Forwarding


@dataclass(frozen=True, slots=True)
class VirtualService:
    """A VIP, a port and a protocol offered to clients."""

    name: str
    listen: tuple[Listen, ...]
    pool: str
    protocol: Protocol = Protocol.TCP
    forwarding: Forwarding = Forwarding.PROXY
    engine: Engine = Engine.AUTO
    scheduler: Scheduler = Scheduler.MAGLEV
    persistence: Persistence | None = None
    idle_timeout_s: float = 350.0
    connect_timeout_s: float = 5.0
    retries: int = 3
    half_close_timeout_s: float = 30.0
    transparent: bool = False
    accept_proxy: bool = False
    send_proxy: ProxyHeader = ProxyHeader.NONE
    allow: tuple[Prefix, ...] = ()
    deny: tuple[Prefix, ...] = ()
    limits: Limits = Limits()
    when_all_down: WhenAllDown = WhenAllDown.REJECT

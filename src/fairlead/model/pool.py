# SPDX-License-Identifier: Apache-2.0
"""Pool, RealServer and HealthMonitor, as the user wrote them (defaults filled in)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fairlead.model.net import Endpoint, IPAddress
from fairlead.model.service import Passage, ProxyHeader


class AdminState(StrEnum):
    """The operator's wish for a server; an axis of its own beside health."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


class MonitorType(StrEnum):
    """Kinds of health probe."""

    TCP = "tcp"
    TLS = "tls"
    HTTP = "http"
    HTTPS = "https"
    GRPC = "grpc"
    UDP = "udp"
    DNS = "dns"
    ICMP = "icmp"
    EXEC = "exec"
    AGENT = "agent"  # asks how much the server wants; says nothing about its health


@dataclass(frozen=True, slots=True)
class HttpExpectation:
    """What an ``http`` or ``https`` probe sends and accepts.

    ``statuses`` are inclusive ranges; ``body`` must occur in the first 64 kB when set.
    """

    method: str = "GET"
    path: str = "/"
    host: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)
    body: str | None = None


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How a probe over TLS treats the server's certificate, and which one it shows itself.

    Attributes:
        verify: False accepts any certificate (the probe asks whether the server lives, not who it is).
        ca_file: PEM file of trusted authorities; None: the system's.
        server_name: Asked for (SNI) and verified.
        certificate: PEM file of the probe's own certificate and its chain.
        key: PEM file of the key of ``certificate``; None: it is in the same file.
        expiry_warning_s: A certificate that ends within this time is a warning, also unverified; 0: none.
    """

    verify: bool = False
    ca_file: str | None = None
    server_name: str | None = None
    certificate: str | None = None
    key: str | None = None
    expiry_warning_s: float = 0.0


@dataclass(frozen=True, slots=True)
class UdpExpectation:
    """What a ``udp`` probe sends, and what must occur in the first answer.

    ``expect`` None: silence passes too, and only an ICMP error fails.
    """

    send: bytes = b""
    expect: bytes | None = None


@dataclass(frozen=True, slots=True)
class DnsExpectation:
    """What a ``dns`` probe asks for and which response codes (RFC 6895 section 2.3) it accepts."""

    query: str
    record: str = "A"
    rcodes: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class GrpcExpectation:
    """Which service a ``grpc`` probe asks ``grpc.health.v1.Health`` about; empty: the server as a whole.

    The call goes over TLS when the monitor has ``tls``.
    """

    service: str = ""
    authority: str | None = None


@dataclass(frozen=True, slots=True)
class ExecCommand:
    """Program and arguments of an ``exec`` probe; no shell. Exit status 0 passes."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AgentQuestion:
    """What is sent to the agent on a server before its answer is read; empty: nothing."""

    send: bytes = b""


@dataclass(frozen=True, slots=True)
class HealthMonitor:
    """Specification of the probes of a pool. Durations are in seconds.

    ``port``, ``address`` and ``source`` override where a probe goes and comes from.
    ``jitter`` is the share of the interval, 0 to 1, by which probes are spread.
    ``send_proxy`` is the PROXY protocol header that probes over TCP begin with.
    ``through`` is the way of a service's packets that probes take; None: they go to the server itself.
    """

    type: MonitorType
    interval_s: float = 2.0
    down_interval_s: float = 2.0
    timeout_s: float = 1.0
    rise: int = 2
    fall: int = 3
    jitter: float = 0.1
    port: int | None = None
    address: IPAddress | None = None
    source: IPAddress | None = None
    send_proxy: ProxyHeader = ProxyHeader.NONE
    http: HttpExpectation | None = None
    tls: TlsSettings | None = None
    udp: UdpExpectation | None = None
    dns: DnsExpectation | None = None
    grpc: GrpcExpectation | None = None
    exec: ExecCommand | None = None
    agent: AgentQuestion | None = None
    through: Passage | None = None


@dataclass(frozen=True, slots=True)
class PassiveCheck:
    """When real traffic that fails takes a server out. Durations are in seconds.

    Attributes:
        failures: So many in a row eject a server.
        interval_s: Time in which they count.
        eject_s: How long it is out the first time.
        max_ejected: Per cent of a pool's servers that may be out at a time, rounded down, but at least one.
    """

    failures: int = 5
    interval_s: float = 10.0
    eject_s: float = 30.0
    max_ejected: int = 50


@dataclass(frozen=True, slots=True)
class RealServer:
    """A machine behind a service. ``name`` defaults to ADDRESS:PORT."""

    name: str
    endpoint: Endpoint
    weight: int = 1
    max_connections: int = 0
    state: AdminState = AdminState.READY
    backup: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """The real servers behind services, and how they are checked.

    ``monitors`` empty means ``health: none``: servers count as up. With several, all must pass. ``passive`` None: off.
    ``agent`` asks a program on each server how much it wants; its type is AGENT.
    """

    name: str
    servers: tuple[RealServer, ...]
    monitors: tuple[HealthMonitor, ...] = ()
    slow_start_s: float = 0.0
    drain_timeout_s: float = 300.0
    quorum: int = 1
    passive: PassiveCheck | None = None
    agent: HealthMonitor | None = None

    @property
    def probes(self) -> tuple[HealthMonitor, ...]:
        """All that is asked of its servers."""
        return self.monitors if self.agent is None else (*self.monitors, self.agent)

    @property
    def has_shares(self) -> bool:
        """Whether its servers may have less than their whole weight."""
        return self.slow_start_s > 0 or self.agent is not None


def server_key(pool: str, server: str) -> str:
    """The one name of a server everywhere: ``POOL/SERVER``."""
    return f"{pool}/{server}"

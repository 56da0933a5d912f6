# SPDX-License-Identifier: Apache-2.0
"""Schema of ``pools.NAME.health``: one model per type of monitor."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Discriminator, Tag

from fairlead.config.findings import Refused
from fairlead.config.forms import (
    ADDRESS,
    BOOLEAN,
    BYTES,
    FILE,
    HEADER_VALUE,
    HOST,
    HTTP_PATH,
    PERCENT,
    PRINTABLE,
    SERVER_NAME,
    STATUSES,
    TOKEN,
    choice,
    duration,
    integer,
    nullable,
)
from fairlead.config.schema.base import OneOrMany, Part, key, limited, required
from fairlead.model.net import IPAddress
from fairlead.model.pool import MonitorType
from fairlead.model.service import ProxyHeader


class Record(StrEnum):
    """Types of record that a ``dns`` probe can ask for."""

    A = "A"
    NS = "NS"
    CNAME = "CNAME"
    SOA = "SOA"
    PTR = "PTR"
    MX = "MX"
    TXT = "TXT"
    AAAA = "AAAA"
    SRV = "SRV"
    HTTPS = "HTTPS"
    ANY = "ANY"


class Rcode(StrEnum):
    """Response codes of DNS by their names, in the order of their numbers (RFC 6895 section 2.3)."""

    NOERROR = "NOERROR"
    FORMERR = "FORMERR"
    SERVFAIL = "SERVFAIL"
    NXDOMAIN = "NXDOMAIN"
    NOTIMP = "NOTIMP"
    REFUSED = "REFUSED"
    YXDOMAIN = "YXDOMAIN"
    YXRRSET = "YXRRSET"
    NXRRSET = "NXRRSET"
    NOTAUTH = "NOTAUTH"
    NOTZONE = "NOTZONE"


class Through(StrEnum):
    """Which way a probe takes."""

    DIRECT = "direct"
    SERVICE = "service"


_INTERVAL = duration(0.01, 3600)
_TIMES = integer(1, 100)


class _Monitor(Part):
    """Keys of every type."""

    type: Annotated[MonitorType, choice(MonitorType, without=(MonitorType.AGENT,))] = required("What a probe does.")
    interval: Annotated[float, _INTERVAL] = key(2.0, "From the start of one probe to the start of the next.")
    down_interval: Annotated[float | None, _INTERVAL] = key(
        None, "The same while the server is down.", shown="as `interval`"
    )
    timeout: Annotated[float, duration(0.001, 600)] = key(1.0, "A probe that takes longer has failed.")
    rise: Annotated[int, _TIMES] = key(2, "Passed probes in a row that bring a down server up.")
    fall: Annotated[int, _TIMES] = key(3, "Failed probes in a row that take an up server down.")
    jitter: Annotated[int, PERCENT] = key(10, "Share of the interval by which probes are spread.")
    address: Annotated[IPAddress | None, nullable(ADDRESS)] = key(None, "Probe this address instead of the server's.")
    source: Annotated[IPAddress | None, nullable(ADDRESS)] = key(None, "Address that probes come from.")
    through: Annotated[Through, choice(Through)] = key(
        Through.DIRECT,
        "`service`: the probe takes the way of the service's packets, to the VIP. One for each service with this pool "
        "that has `forwarding: dsr` or `tunnel` and the protocol of the type; all must pass. Needs CAP_NET_ADMIN, "
        "CAP_BPF and CAP_PERFMON.",
    )


class _WithPort(_Monitor):
    """Keys of every type that has ports."""

    port: Annotated[int | None, nullable(integer(1, 65535))] = key(None, "Probe this port instead of the server's.")


class Tcp(_WithPort):
    """Passes when the TCP handshake completes."""

    send_proxy: Annotated[ProxyHeader, choice(ProxyHeader)] = key(
        ProxyHeader.NONE, "PROXY protocol header that probes send."
    )


class Tls(Part):
    """How the server's certificate is treated."""

    verify: Annotated[bool, BOOLEAN] = key(
        False, "Fail on a certificate that is not trusted; without, a probe asks only whether the server lives."
    )
    ca_file: Annotated[str | None, nullable(FILE)] = key(
        None, "PEM file of trusted authorities instead of the system's; read when probing begins."
    )
    server_name: Annotated[str | None, nullable(SERVER_NAME)] = key(
        None, "Name asked for (SNI) and verified.", shown="`host`, where the type has it"
    )
    certificate: Annotated[str | None, nullable(FILE)] = key(
        None, "PEM file of the certificate, with its chain, that probes show to the server."
    )
    certificate_key: Annotated[str | None, nullable(FILE)] = key(
        None, "PEM file of the key of `certificate`.", shown="in the same file"
    )
    expiry_warning: Annotated[float, duration(1, 10 * 365 * 86400.0, off=True)] = key(
        0.0, "Warn when the server's certificate ends within this time, verified or not."
    )


class TlsMonitor(Tcp):
    """Passes when the TLS handshake completes."""

    tls: Tls = key(Tls(), "How the server's certificate is treated.")


class Http(Tcp):
    """Passes when an HTTP/1.1 request is answered as expected."""

    method: Annotated[str, TOKEN] = key("GET", "Request method.")
    path: Annotated[str, HTTP_PATH] = key("/", "Request target.")
    host: Annotated[str | None, nullable(HOST)] = key(
        None, "The Host header.", shown="the server's address, or the VIP's with `through: service`"
    )
    headers: Annotated[dict[Annotated[str, TOKEN], Annotated[str, HEADER_VALUE]], limited(64, "headers")] = key(
        {}, "Further request headers, by name.", shown="{}"
    )
    expect: Annotated[OneOrMany[Annotated[tuple[int, int], STATUSES]], limited(64, "ranges", least=1)] = key(
        ((200, 399),), "Statuses that pass."
    )
    body: Annotated[str | None, nullable(PRINTABLE)] = key(
        None, "Text that must occur in the first 64 kB of the answer's body."
    )


class Https(Http):
    """As `http`, with the same keys, over TLS."""

    tls: Tls = key(Tls(), "How the server's certificate is treated.")


class Grpc(_WithPort):
    """Passes when the standard gRPC health service answers SERVING."""

    service: Annotated[str | None, nullable(PRINTABLE)] = key(None, "Service to ask about.", shown="the whole server")
    tls: Tls | None = key(None, "Ask over TLS, and how the certificate is treated.", shown="no TLS")


class Udp(_WithPort):
    """Passes when a datagram is answered as expected."""

    send: Annotated[bytes, BYTES] = required("What the datagram holds.")
    expect: Annotated[bytes | None, nullable(BYTES)] = key(
        None, "What must occur in the first answer.", shown="any answer, and silence: only an ICMP error fails"
    )


class Dns(_WithPort):
    """Passes when a query over UDP is answered with an expected response code."""

    query: Annotated[str, SERVER_NAME] = required("Name that is asked for.")
    record: Annotated[Record, choice(Record)] = key(Record.A, "Type of record that is asked for.")
    expect: Annotated[OneOrMany[Annotated[Rcode, choice(Rcode)]], limited(len(Rcode), "response codes", least=1)] = key(
        (Rcode.NOERROR,), "Response codes that pass."
    )


class Icmp(_Monitor):
    """Passes when an echo request is answered."""


class Exec(_Monitor):
    """Passes when a program ends with exit status 0. Off unless the key `health.allow_exec` at the top level allows it.

    The program finds the server in FAIRLEAD_ADDRESS and FAIRLEAD_PORT. When the timeout passes, it and all that it
    started are killed.
    """

    command: Annotated[list[Annotated[str, PRINTABLE]], limited(64, "arguments", least=1)] = required(
        "The program's absolute path and its arguments; no shell is involved."
    )


class Unknown(_Monitor):
    """A monitor whose type is missing or unknown: says so, and nothing else."""

    model_config = ConfigDict(extra="ignore")


MONITORS: dict[str, type[Part]] = {
    "tcp": Tcp,
    "tls": TlsMonitor,
    "http": Http,
    "https": Https,
    "grpc": Grpc,
    "udp": Udp,
    "dns": Dns,
    "icmp": Icmp,
    "exec": Exec,
}
# Tags stand in the paths of pydantic's errors; the NUL keeps them apart from keys of the file.
TAG = "\0"


def _tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return TAG + kind if isinstance(kind, str) and kind in MONITORS else TAG


Monitor = Annotated[
    Annotated[Tcp, Tag(TAG + "tcp")]
    | Annotated[TlsMonitor, Tag(TAG + "tls")]
    | Annotated[Http, Tag(TAG + "http")]
    | Annotated[Https, Tag(TAG + "https")]
    | Annotated[Grpc, Tag(TAG + "grpc")]
    | Annotated[Udp, Tag(TAG + "udp")]
    | Annotated[Dns, Tag(TAG + "dns")]
    | Annotated[Icmp, Tag(TAG + "icmp")]
    | Annotated[Exec, Tag(TAG + "exec")]
    | Annotated[Unknown, Tag(TAG)],
    Discriminator(_tag),
]


def _monitors(value: object) -> object:
    """``none``, a type alone, one monitor or a list of monitors, always as a list."""
    if value == "none":
        return []
    if isinstance(value, list):
        if not value:
            raise Refused("an empty list; write `none` when servers are not to be probed")
        return [{"type": item} if isinstance(item, str) else item for item in value]
    return [{"type": value} if isinstance(value, str) else value]


Health = Annotated[list[Monitor], limited(8, "monitors"), BeforeValidator(_monitors)]

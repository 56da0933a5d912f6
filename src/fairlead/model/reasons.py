# SPDX-License-Identifier: Apache-2.0
"""Every reason for a refusal, a drop or a down state: one word, the same in log, API, CLI, metric and explain.

Invariant: members of ``RejectReason`` keep their number (the worker counts by it; ``worker/abi.h``).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class RejectReason(IntEnum):
    """Why a new connection was refused, or an established one was ended by us."""

    NO_SERVER = 0  # no live server, when_all_down: reject
    CONNECT_FAILED = 1  # every try to reach a server failed
    SERVICE_FULL = 2  # limits.connections
    SERVERS_FULL = 3  # every candidate is at max_connections
    DENIED = 4  # allow/deny
    SOURCE_CONNECTIONS = 5  # limits.connections_per_source
    SOURCE_RATE = 6  # limits.new_per_source
    NO_DESCRIPTORS = 7  # file descriptors exhausted
    NO_MEMORY = 8
    IDLE_TIMEOUT = 9  # idle_timeout passed; both sides got an RST
    HALF_CLOSE_TIMEOUT = 10
    SERVER_RESET = 11  # drain deadline, maint or removal closed the flow
    SOURCE_TABLE_FULL = 12  # no room to track another source: the per-source limits fail open
    FLOW_EVICTED = 13  # the oldest UDP flow gave way to a new one, because the table was full
    PROXY_MALFORMED = 14  # the client's PROXY header is none, or breaks the protocol
    PROXY_TIMEOUT = 15  # no whole PROXY header within 3 s
    QUEUE_TIMEOUT = 16  # every server stayed at max_connections for limits.queue_timeout


class DownReason(StrEnum):
    """Why a probe failed, or why a server counts as down."""

    UNCHECKED = "unchecked"  # no probe has finished yet
    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    OFF_LINK = "off_link"  # dsr: the server is behind a gateway
    RESET = "reset"
    CLOSED = "closed"  # the server closed before answering
    TLS_FAILED = "tls_failed"
    CERTIFICATE = "certificate"
    BAD_STATUS = "bad_status"
    BAD_BODY = "bad_body"
    MALFORMED = "malformed"  # the answer breaks its protocol
    TOO_LARGE = "too_large"
    LOCAL_ERROR = "local_error"  # this node could not send the probe


class IdleReason(StrEnum):
    """Why a server gets no new flows although it is configured."""

    DOWN = "down"
    DRAIN = "drain"
    MAINT = "maint"
    WEIGHT_ZERO = "weight_zero"
    AGENT = "agent"  # the agent on it wants none: drain, maint, down or 0%
    EJECTED = "ejected"  # its real traffic failed (passive checking)
    BACKUP = "backup"  # a backup server while a primary is up
    REMOVED = "removed"  # no longer configured; its flows may still end


class ShareReason(StrEnum):
    """Why a server that takes new flows takes fewer than its weight says."""

    SLOW_START = "slow_start"
    AGENT = "agent"  # the agent on it says so


class HostCheck(StrEnum):
    """What ``fairlead doctor`` looks at; the daemon tells about some of it as events of the same name."""

    CAPABILITIES = "capabilities"
    KERNEL = "kernel"
    LIBBPF = "libbpf"
    XDP_PROGRAM = "xdp_program"  # the compiled object that belongs to this version
    BPFFS = "bpffs"
    INTERFACES = "interfaces"  # those that the file names, or that the routes lead to
    FORWARDING = "forwarding"
    RP_FILTER = "rp_filter"
    ARP_IGNORE = "arp_ignore"
    ARP_ANNOUNCE = "arp_announce"
    ARP_ACCEPT = "arp_accept"
    LRO = "lro"
    GRO = "gro"
    FOREIGN_XDP = "foreign_xdp"
    XDP_MODE = "xdp_mode"
    VETH_PEER = "veth_peer"
    SERVER_ROUTE = "server_route"
    TUNNEL_MTU = "tunnel_mtu"
    VIP_OWNERS = "vip_owners"
    REAL_SERVER = "real_server"  # this machine is one of the file
    VIP_PLACE = "vip_place"
    DECAPSULATION = "decapsulation"


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"  # traffic is lost
    WARNING = "warning"  # traffic may be lost, or it cannot be seen from here
    OK = "ok"

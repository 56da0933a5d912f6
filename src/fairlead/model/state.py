# SPDX-License-Identifier: Apache-2.0
"""The nouns of reconciling: what a data plane should hold, what it holds, and the Ops between them.

Both sides are a ``ForwardingState``, so that "nothing to do" is plain equality. Time is not in here:
deadlines are decided by ``policy`` and arrive as changed values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from fairlead.model.net import AddressRange, Endpoint, Listen, Protocol
from fairlead.model.service import Engine, Forwarding, Persistence, ProxyHeader, Scheduler


class FlowTreatment(IntEnum):
    """What a data plane does with a server's established flows."""

    KEEP = 0
    RESET = 1
    UNPIN = 2  # UDP flows leave, unless their service uses the server all the same; connections stay


class ServiceMode(IntEnum):
    """What a data plane does with a service's new flows."""

    FORWARD = 0
    REJECT = 1
    DROP = 2


class ServerSpec(NamedTuple):
    """A real server as a data plane holds it. ``key`` is POOL/SERVER; ``weight`` serves wlc.

    A tuple, for a hundred thousand are made and compared at a time.
    """

    key: str
    endpoint: Endpoint
    weight: int
    max_connections: int
    flows: FlowTreatment = FlowTreatment.KEEP


class TableMember(NamedTuple):
    """One server of a LookupTable; a tuple, for a hundred thousand are made at a time.

    Attributes:
        key: Names it.
        identity: Is hashed: ADDRESS:PORT, so that nodes agree.
        weight: Its slots of the table relative to the others'.
        share: Per cent of these slots that it has for now; the rest is spread over all, as a dead member's slots are.
    """

    key: str
    identity: str
    weight: int
    share: int = 100


@dataclass(frozen=True, slots=True)
class TableSpec:
    """The recipe of a LookupTable; its slots are a pure function of it (``policy.tables.build``).

    Attributes:
        scheduler: Which filling; maglev, sh and random share one.
        size: Number of slots (prime for maglev).
        seed: 16 bytes.
        members: All configured servers that weigh more than 0, in configured order.
        live: Keys of the members that may take new flows; never empty.
    """

    scheduler: Scheduler
    size: int
    seed: bytes
    members: tuple[TableMember, ...]
    live: frozenset[str]


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A VirtualService as a data plane holds it, without its listeners.

    Attributes:
        table: Digest of its TableSpec, or None when ``mode`` is not FORWARD.
        pool: Name of the pool, with which the keys of its servers begin; "" where nobody needs it.
        allowed: Sorted disjoint ranges of addresses that may connect, or None: everybody.
        seed: 16-byte key of the flow hash.
    """

    name: str
    protocol: Protocol
    forwarding: Forwarding
    engine: Engine
    scheduler: Scheduler
    mode: ServiceMode
    table: str | None
    seed: bytes
    idle_timeout_ms: int
    connect_timeout_ms: int
    half_close_timeout_ms: int
    retries: int
    persistence: Persistence | None = None
    max_connections: int = 0
    connections_per_source: int = 0
    new_per_source: int = 0
    source_prefix_v4: int = 32
    source_prefix_v6: int = 64
    queue: int = 0
    queue_timeout_ms: int = 10_000
    allowed: tuple[AddressRange, ...] | None = None
    transparent: bool = False
    accept_proxy: bool = False
    send_proxy: ProxyHeader = ProxyHeader.NONE
    pool: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A VIP, port and protocol at which a data plane takes flows for ``service``."""

    service: str
    protocol: Protocol
    listen: Listen


@dataclass(frozen=True, slots=True)
class ForwardingState:
    """All a data plane should hold (DesiredState) or does hold (ObservedState).

    ``tables`` maps a digest to its recipe; a data plane that can only read digests back gives None as recipe,
    therefore compare tables by digest.
    """

    servers: Mapping[str, ServerSpec] = field(default_factory=dict)
    tables: Mapping[str, TableSpec | None] = field(default_factory=dict)
    services: Mapping[str, ServiceSpec] = field(default_factory=dict)
    listeners: frozenset[Listener] = frozenset()


DesiredState = ForwardingState
ObservedState = ForwardingState


@dataclass(frozen=True, slots=True)
class PutServer:
    """Add a server, or change the one with the same key."""

    spec: ServerSpec


@dataclass(frozen=True, slots=True)
class DeleteServer:
    """Forget a server that no table names; its flows are reset first if any are left."""

    key: str


@dataclass(frozen=True, slots=True)
class PutTable:
    """Add a table; tables never change, a new recipe is a new digest."""

    digest: str
    spec: TableSpec


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """Forget a table that no service names."""

    digest: str


@dataclass(frozen=True, slots=True)
class PutService:
    """Add a service, or change the one with the same name; established flows stay."""

    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Forget a service that has no listener; its flows live on until they end or their server is reset."""

    name: str


@dataclass(frozen=True, slots=True)
class OpenListener:
    """Start to take flows."""

    listener: Listener


@dataclass(frozen=True, slots=True)
class CloseListener:
    """Stop to take new flows; those already accepted go on."""

    listener: Listener


Op = PutServer | DeleteServer | PutTable | DeleteTable | PutService | DeleteService | OpenListener | CloseListener


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered, idempotent Ops that lead from an ObservedState to a DesiredState, even when cut and planned again."""

    ops: tuple[Op, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ops)

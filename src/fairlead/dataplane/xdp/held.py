# SPDX-License-Identifier: Apache-2.0
"""What is held, one by one: a server, a table, a service; and the maps that entries of them stand in."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.dataplane.xdp.mirror import Mirror
from fairlead.dataplane.xdp.replies import Claim, ReplyKey
from fairlead.model.net import IPAddress
from fairlead.model.state import Listener, ServerSpec, ServiceSpec

# In this order entries are written; they are deleted in the opposite one.
MIRRORS = (
    Mirror("names_server"),
    Mirror("servers", array=True),
    Mirror("names_table"),
    Mirror("replies4", significant=28),
    Mirror("replies6", significant=28),
    Mirror("access"),
    Mirror("names_service"),
    Mirror("services", array=True),
    Mirror("vips"),
    Mirror("settings", array=True),
    Mirror("names_listener"),
    Mirror("listeners4"),
    Mirror("listeners6"),
    Mirror("ranges"),
)


@dataclass(slots=True, eq=False)
class ServerHeld:
    """One endpoint. ``gone``: deleted; it stays while flows hold its id."""

    number: int
    spec: ServerSpec
    generation: int
    address: bytes  # packed
    gone: bool = False
    source: IPAddress | None = None  # outer address of tunnels
    ambiguous: bool = False  # as last written


@dataclass(slots=True, eq=False)
class TableHeld:
    """One slot table in the slot memory."""

    digest: str
    base: int
    units: int
    size: int
    members: tuple[int, ...]
    keys: frozenset[str]
    check: bytes
    users: set[str] = field(default_factory=set)
    mark: int | None = None  # hash of the block when it was found to be right; it never changes


@dataclass(slots=True, eq=False)
class ServiceHeld:
    """One service. ``gone``: deleted, or replaced by one of the same name; it stays while flows hold its id."""

    number: int
    spec: ServiceSpec
    access: int = 0
    gone: bool = False
    listeners: set[Listener] = field(default_factory=set)
    claims: frozenset[tuple[ReplyKey, Claim]] = frozenset()
    written_at: float = 0.0  # what its flows depend on: monotonic seconds

# SPDX-License-Identifier: Apache-2.0
"""The contract of every data plane; all drivers pass the same tests (``tests/unit/dataplane/contract.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.model.health import Way
from fairlead.model.net import FlowQuestion
from fairlead.model.reasons import RejectReason
from fairlead.model.state import ObservedState, Plan
from fairlead.model.views import ExplainStep, FlowPage, WorkerView
from fairlead.model.vip import Vip


@dataclass(frozen=True, slots=True)
class ServerCounters:
    """Totals of one server since the data plane first knew it; bytes in are client to server.

    ``streaks`` are failures since the last success, by whoever counts them apart (a worker's slot); those without any
    are left out.
    """

    active: int = 0
    connections: int = 0
    connect_failures: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    streaks: Mapping[int, int] = field(default_factory=dict)

    def __add__(self, other: ServerCounters) -> ServerCounters:
        """Both together; streaks belong to one of them."""
        return ServerCounters(
            self.active + other.active,
            self.connections + other.connections,
            self.connect_failures + other.connect_failures,
            self.bytes_in + other.bytes_in,
            self.bytes_out + other.bytes_out,
            {**self.streaks, **other.streaks},
        )


@dataclass(frozen=True, slots=True)
class ServiceCounters:
    """Totals of one service, and its refusals by reason; ``queued`` are those of the active ones that wait."""

    active: int = 0
    connections: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rejected: Mapping[RejectReason, int] = field(default_factory=dict)
    queued: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """All counters at one moment, by server key and by service name."""

    servers: Mapping[str, ServerCounters] = field(default_factory=dict)
    services: Mapping[str, ServiceCounters] = field(default_factory=dict)
    workers: tuple[WorkerView, ...] = ()
    packets: Mapping[str, int] = field(default_factory=dict)  # of the XDP program, by fate


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which flows to list; None matches all."""

    service: str | None = None
    server: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the live tables say about a packet. ``server`` is None when they do not decide."""

    steps: tuple[ExplainStep, ...] = ()
    service: str | None = None
    server: str | None = None


class DataPlane(Protocol):
    """Forwards flows as told; never knows health or configuration files.

    ``apply`` performs the Ops in order and stops at the first that fails with DataPlaneError, which names the Op;
    what was done stays done, and the caller observes and plans again.
    """

    async def start(self) -> None:
        """Adopt what runs already, start what is missing."""

    def set_vips(self, vips: frozenset[Vip]) -> None:
        """Addresses that come and go: services are offered there whether or not this host holds them now."""

    async def set_ways(self, ways: frozenset[Way]) -> None:
        """Let marked packets take exactly these ways of services to servers; ``mark_of`` says what prevents it."""

    def mark_of(self, way: Way) -> int:
        """What packets bear (SO_MARK) that take this way.

        Raises:
            OffLink: They do not get to the server by it.
            FairleadError: They cannot take it; with what to do.
        """

    def packets_of(self, way: Way) -> int:
        """How many packets have taken this way so far."""

    async def look(self) -> None:
        """Find out what differs from what was told, where that takes long: changes may be applied meanwhile.

        ``observe`` says what was found.
        """

    async def observe(self, *, thorough: bool = True) -> ObservedState:
        """Read back what the data plane holds now.

        Unless ``thorough``, what nothing was applied to since the last time may be taken to be as it was then.
        """

    async def apply(self, plan: Plan) -> None:
        """Carry out a plan."""

    def trouble(self) -> str | None:
        """What keeps packets from being forwarded although everything is held that was told; None: nothing does.

        Cheap, and asked more than once a second.
        """

    async def counters(self, *, brief: bool = False) -> Counters:
        """Read all counters; ``brief``: servers and services may be left out that no failures are counted of."""

    async def flows(self, which: FlowFilter, cursor: str | None, limit: int) -> FlowPage:
        """List established flows, at most ``limit`` at a time."""

    async def explain(self, question: FlowQuestion) -> Explanation | None:
        """Where a packet would go now, from what the data plane holds; None when it cannot tell."""

    async def stop(self, *, drain_s: float) -> None:
        """Take no new flows, wait up to ``drain_s`` seconds for the others, reset the rest, and end."""

    async def detach(self) -> None:
        """Leave everything running and let go (the agent ends, forwarding goes on)."""

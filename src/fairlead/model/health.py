# SPDX-License-Identifier: Apache-2.0
"""Nouns of health checking: the result of one probe, and the verdict that results add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fairlead.model.net import Endpoint, IPAddress
from fairlead.model.pool import AdminState, HealthMonitor
from fairlead.model.reasons import DownReason
from fairlead.model.service import Passage


@dataclass(frozen=True, slots=True)
class Way:
    """The way of a service's packets to one server."""

    server: IPAddress
    passage: Passage


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """One thing to probe: shared by every pool that checks this endpoint in this way.

    Attributes:
        mark: What one attempt marks its packets with, so that they take the way; 0: nothing. Not part of what the
            target is known by.
    """

    endpoint: Endpoint
    monitor: HealthMonitor
    mark: int = field(default=0, compare=False)

    @property
    def way(self) -> Way | None:
        """The way of a service's packets that its probes take; None: they go to the server itself."""
        passage = self.monitor.through
        return None if passage is None else Way(self.endpoint.address, passage)

    @property
    def place(self) -> str:
        """Where it is, for people."""
        passage = self.monitor.through
        return str(self.endpoint) if passage is None else f"{self.endpoint} through {passage.vip}"


@dataclass(frozen=True, slots=True)
class AgentReport:
    """One answer of the agent on a server; None: it did not mention this.

    Attributes:
        share: Per cent of its weight, 0 to 100.
        admin: In which state it wants to be.
        up: False: it says that it is down.
        max_connections: How many it takes at most.
        reason: Its own words about that, for people.
    """

    share: int | None = None
    admin: AdminState | None = None
    up: bool | None = None
    max_connections: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AgentAdvice:
    """What all answers of an agent add up to; what it never mentioned is as if there were none.

    ``max_connections`` 0 is no limit.
    """

    share: int = 100
    admin: AdminState = AdminState.READY
    up: bool = True
    max_connections: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How one probe ended.

    Attributes:
        passed: Whether the server did as expected.
        reason: None exactly when it passed.
        detail: One line for people.
        duration_s: Seconds it took.
        certificate_until: End of the server's certificate, in seconds since the Unix epoch; None: not seen.
        report: What the agent on the server said; None: none was asked, or it did not answer.
    """

    passed: bool
    reason: DownReason | None
    detail: str
    duration_s: float
    certificate_until: float | None = None
    report: AgentReport | None = None


class Verdict(StrEnum):
    """What the probes of a target add up to."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class HealthState:
    """State of the rise/fall filter of one target.

    Attributes:
        verdict: Starts DOWN; the first result decides, then ``rise`` and ``fall`` count.
        streak: Consecutive results that contradict ``verdict``.
        checked: False until a first result came.
        reason: Why it is down, or None.
        detail: One line about the last result that mattered.
    """

    verdict: Verdict = Verdict.DOWN
    streak: int = 0
    checked: bool = False
    reason: DownReason | None = DownReason.UNCHECKED
    detail: str = "no probe has finished yet"

# SPDX-License-Identifier: Apache-2.0
"""What people are told of a decision: how each server and service stands, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fairlead.model.health import AgentAdvice, Verdict
from fairlead.model.net import Endpoint
from fairlead.model.pool import AdminState
from fairlead.model.reasons import DownReason, IdleReason, ShareReason
from fairlead.model.service import VirtualService
from fairlead.model.state import ServiceMode
from fairlead.policy.members import Choice, Member
from fairlead.policy.rising import FULL


class ServerStatus(NamedTuple):
    """One server, and why it takes no new flows if it does not; a tuple, for a hundred thousand are made at a time.

    Attributes:
        weight: Configured, or set at run time.
        effective_weight: What schedulers use now, rounded up; 0 exactly when ``idle_reason`` says why.
        share: Per cent of its weight that it has for now; below 100 exactly when ``share_reason`` says why.
        health: None when it is not checked (no monitor, maintenance, or removed).
        drain_deadline: Monotonic moment at which the flows that are left are reset, or None.
        max_connections: What it takes at most, by the operator or its agent; 0: no limit.
        ejected_until: Monotonic moment at which passive checking lets it return, or None.
        advice: What the agent on it says; None: nobody asks it.
    """

    key: str
    pool: str
    name: str
    endpoint: Endpoint
    weight: int
    effective_weight: int
    backup: bool
    admin: AdminState
    health: Verdict | None
    idle_reason: IdleReason | None
    down_reason: DownReason | None
    detail: str
    drain_deadline: float | None
    max_connections: int
    share: int = FULL
    share_reason: ShareReason | None = None
    ejected_until: float | None = None
    advice: AgentAdvice | None = None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service. ``live_weight`` is what the quorum was compared with, also while the service fails open."""

    name: str
    state: str  # "up" | "degraded" | "down"
    mode: ServiceMode
    live_weight: int


def server_status(member: Member, *, busy: bool) -> ServerStatus:
    """What is said of a server; ``busy``: it takes new flows, or would if its pool had its quorum."""
    health = member.health
    unchecked = "no longer configured" if member.departed else ""
    return ServerStatus(
        member.key,
        member.pool,
        member.server.name,
        member.server.endpoint,
        member.weight,
        -(-member.weight * member.share // FULL) if busy else 0,
        member.server.backup,
        member.admin,
        health.verdict if health else None,
        None if busy else member.idle_reason,
        health.reason if health else None,
        health.detail if health else unchecked,
        member.drain_deadline,
        member.max_connections,
        member.share,
        member.share_reason,
        member.ejected_until,
        member.advice,
    )


def service_status(choice: Choice, service: VirtualService, *, complete: bool) -> ServiceStatus:
    """What is said of a service; ``complete``: nobody is missing in its pool."""
    if choice.mode is not ServiceMode.FORWARD:
        state = "down"
    elif choice.fail_open or choice.live[0].server.backup or not complete:
        state = "degraded"
    else:
        state = "up"
    return ServiceStatus(service.name, state, choice.mode, choice.live_weight)

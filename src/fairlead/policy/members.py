# SPDX-License-Identifier: Apache-2.0
"""Which real servers may take new flows, and what becomes of the flows that servers have.

Invariant: administrative state (``eligible``) and health (``up``) are two axes; only fail-open looks past health,
nothing looks past administrative state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fairlead.model.configuration import Configuration
from fairlead.model.health import AgentAdvice, HealthState, Verdict
from fairlead.model.pool import AdminState, Pool, RealServer
from fairlead.model.reasons import IdleReason, ShareReason
from fairlead.model.service import WhenAllDown
from fairlead.model.state import FlowTreatment, ServerSpec, ServiceMode
from fairlead.policy import rising
from fairlead.policy.health import combine, target_key
from fairlead.policy.rising import FULL
from fairlead.policy.runtime import (
    FORGET_AFTER_S,
    Departure,
    Runtime,
    admin_state,
    advised,
    drains,
    ejected_until,
    present_weight,
    successor,
    willing,
)


class Member(NamedTuple):
    """A server of a pool as it stands now; a tuple, for a hundred thousand are made at a time.

    Attributes:
        health: None when it is not checked (no monitor, maintenance, or departed).
        drain_deadline: Monotonic moment at which the flows that are left are reset, or None.
        forgotten_at: Monotonic moment at which a departed server goes, or None.
        share: Per cent of its weight that it has for now.
        share_reason: Why that is less than 100, or None.
        ejected_until: Monotonic moment at which it returns that passive checking took out, or None.
        advice: What the agent on it says; None: nobody asks it.
        unit: What a data plane's weights count in: 1, or 100 where shares may come up.
    """

    key: str
    pool: str
    server: RealServer
    admin: AdminState
    weight: int
    health: HealthState | None
    flows: FlowTreatment
    drain_deadline: float | None = None
    forgotten_at: float | None = None
    departed: bool = False
    share: int = FULL
    share_reason: ShareReason | None = None
    unit: int = 1
    ejected_until: float | None = None
    advice: AgentAdvice | None = None

    @property
    def scaled_weight(self) -> int:
        """Its weight for now, in units."""
        return self.weight * self.unit * self.share // FULL

    @property
    def rises(self) -> bool:
        """Whether its share grows with time."""
        return self.share_reason is ShareReason.SLOW_START

    @property
    def eligible(self) -> bool:
        """Whether the operator lets it take new flows, and so does its agent."""
        wanted = self.admin is AdminState.READY and self.weight > 0 and not self.departed
        return wanted and (self.advice is None or willing(self.advice))

    @property
    def up(self) -> bool:
        """Whether its probes let it take new flows, and its agent does not say that it is down."""
        if self.health is not None and self.health.verdict is not Verdict.UP:
            return False
        return self.advice is None or self.advice.up

    @property
    def probed_up(self) -> bool:
        """Whether its probes let it take new flows."""
        return self.health is None or self.health.verdict is Verdict.UP

    @property
    def max_connections(self) -> int:
        """The lower one of the operator's limit and its agent's; 0: none."""
        if self.advice is None:
            return self.server.max_connections
        limits = (self.server.max_connections, self.advice.max_connections)
        return min((limit for limit in limits if limit), default=0)

    @property
    def is_missing(self) -> bool:
        """Whether it would serve if it worked."""
        return self.eligible and (not self.up or self.ejected_until is not None)

    @property
    def spec(self) -> ServerSpec:
        """What the data plane is told."""
        return ServerSpec(self.key, self.server.endpoint, self.scaled_weight, self.max_connections, self.flows)

    @property
    def idle_reason(self) -> IdleReason:
        """Why it takes no new flows, if it takes none."""
        if self.departed:
            return IdleReason.REMOVED
        if self.admin is not AdminState.READY:
            return IdleReason.MAINT if self.admin is AdminState.MAINT else IdleReason.DRAIN
        if self.weight == 0:
            return IdleReason.WEIGHT_ZERO
        if not self.probed_up:
            return IdleReason.DOWN
        if not (self.up and self.eligible):
            return IdleReason.AGENT
        return IdleReason.BACKUP if self.ejected_until is None else IdleReason.EJECTED


@dataclass(frozen=True, slots=True)
class Choice:
    """Who takes the new flows of a service.

    Attributes:
        mode: FORWARD exactly when ``live`` is not empty.
        live: The members that take new flows.
        tier: ``live`` and their equals: primaries, or backups when those are in use.
        live_weight: Weight of the healthy members in use; what the quorum is compared with.
        fail_open: ``live`` was chosen regardless of health.
    """

    mode: ServiceMode
    live: tuple[Member, ...]
    tier: tuple[Member, ...]
    live_weight: int
    fail_open: bool = False


def standing(runtime: Runtime, now: float, key: str, pool: Pool, server: RealServer) -> Member:
    """How a configured server stands."""
    admin, weight = server.state, server.weight
    if key in runtime.overrides:
        admin, weight = admin_state(runtime, key, server), present_weight(runtime, key, server)
    health, flows, deadline = None, FlowTreatment.KEEP, None
    if admin is AdminState.MAINT:
        flows = FlowTreatment.RESET
    elif pool.monitors:
        health = combine([runtime.health.get(target_key(server, it), HealthState()) for it in pool.monitors])
    if drains(admin, weight):
        deadline = runtime.drain_since.get(key, now) + pool.drain_timeout_s
        flows = _until(deadline, now)
    advice = advised(runtime, pool, server)
    share, why = _share(runtime, now, key, pool, advice)
    unit = FULL if pool.has_shares else 1
    out = ejected_until(runtime, key, now)
    return Member(
        key, pool.name, server, admin, weight, health, flows, deadline, None, False, share, why, unit, out, advice
    )


def _share(
    runtime: Runtime, now: float, key: str, pool: Pool, advice: AgentAdvice | None
) -> tuple[int, ShareReason | None]:
    """Per cent of its weight, at least 1, and why it is not all."""
    since = runtime.rising.get(key)
    if since is None and advice is None:
        return FULL, None
    grown = FULL if since is None else rising.share(since, pool.slow_start_s, now)
    wanted = FULL if advice is None else advice.share
    if grown < FULL:
        return max(1, grown * wanted // FULL), ShareReason.SLOW_START
    return max(1, wanted), ShareReason.AGENT if wanted < FULL else None


def departed(configuration: Configuration, runtime: Runtime, now: float, key: str, departure: Departure) -> Member:
    """How a server stands that is no longer configured: it drains, or shares the fate of what it was renamed to."""
    heir = successor(configuration, departure)
    if heir is not None:
        pool = configuration.pools[departure.pool]
        now_known_as = standing(runtime, now, heir[0], pool, heir[1])
        flows, deadline, forgotten_at = now_known_as.flows, now_known_as.drain_deadline, None
    else:
        deadline = departure.deadline
        flows, forgotten_at = _until(deadline, now), deadline + FORGET_AFTER_S
    server = departure.server
    return Member(
        key, departure.pool, server, AdminState.DRAIN, server.weight, None, flows, deadline, forgotten_at, departed=True
    )


def unpinned(member: Member) -> Member:
    """A server of a UDP service: its flows leave it while it is down, for they would not die by themselves."""
    leaves = not member.up and member.flows is FlowTreatment.KEEP
    return member._replace(flows=FlowTreatment.UNPIN) if leaves else member


def usable(members: Sequence[Member]) -> tuple[Member, ...]:
    """The primaries that may take new flows, or else the backups that may."""
    return _first_tier([it for it in members if it.ejected_until is None and it.eligible and it.up])


def is_short(live: Sequence[Member], quorum: int) -> bool:
    """Whether these are too few to serve."""
    return not live or sum([member.weight for member in live]) < quorum


def choose(members: Sequence[Member], ready: tuple[Member, ...], quorum: int, when_all_down: WhenAllDown) -> Choice:
    """Who takes the new flows of a service with these ``members``, of which ``ready`` are ``usable``.

    Backups serve only while no primary may. Under ``quorum``, ejections are overruled if that helps; else
    ``when_all_down`` decides. Failing open takes the eligible primaries regardless of health, or the eligible backups
    if no primary is eligible.
    """
    live = ready
    if is_short(live, quorum):
        with_ejected = _first_tier([member for member in members if member.eligible and member.up])
        live = live if is_short(with_ejected, quorum) else with_ejected
    live_weight = sum([member.weight for member in live])
    fail_open = is_short(live, quorum)
    if fail_open:
        live = (
            _first_tier([member for member in members if member.eligible])
            if when_all_down is WhenAllDown.USE_ALL
            else ()
        )
    if not live:
        mode = ServiceMode.DROP if when_all_down is WhenAllDown.DROP else ServiceMode.REJECT
        return Choice(mode, (), (), live_weight)
    tier = tuple([member for member in members if member.server.backup is live[0].server.backup])
    return Choice(ServiceMode.FORWARD, live, tier, live_weight, fail_open)


def _first_tier(members: Sequence[Member]) -> tuple[Member, ...]:
    return tuple([member for member in members if not member.server.backup]) or tuple(members)


def _until(deadline: float, now: float) -> FlowTreatment:
    return FlowTreatment.KEEP if now < deadline else FlowTreatment.RESET

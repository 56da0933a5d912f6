# SPDX-License-Identifier: Apache-2.0
"""What a data plane should hold now: configuration, health and the operator's wishes in, ForwardingState out.

Invariants:

- A server takes new flows only when both health and administrative state allow it, unless its service fails open:
  then administrative state still decides.
- Established flows end by the operator's wish alone (maint, or the end of a drain or departure); a TCP server that
  goes down keeps its flows, which die by themselves if it is dead. UDP flows leave it at once, unless their service
  fails open and uses it all the same.
- A named server that changes its address keeps its key: established flows stay where they are and end by
  themselves, new flows go to the new address. One that changes only its name keeps its flows, too.
- A service that is removed leaves its flows to end by themselves while its pool stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairlead.model.configuration import Configuration
from fairlead.model.health import AgentAdvice, Verdict
from fairlead.model.net import Endpoint, Protocol
from fairlead.model.pool import AdminState
from fairlead.model.reasons import DownReason, IdleReason, ShareReason
from fairlead.model.service import Forwarding, VirtualService
from fairlead.model.state import DesiredState, ForwardingState, Listener, ServiceMode, ServiceSpec
from fairlead.policy import tables
from fairlead.policy.access import allowed_ranges
from fairlead.policy.flowhash import service_seed
from fairlead.policy.members import Choice, Member, choose, departed, standing, unpinned, usable
from fairlead.policy.rising import FULL, next_step_at
from fairlead.policy.runtime import (
    Departure,
    Ejection,
    Override,
    Runtime,
    adopt,
    heard,
    keyed_servers,
    noted,
    set_admin,
    set_weight,
    settle,
    targets,
    transition,
)

__all__ = [
    "Departure",
    "Derived",
    "Ejection",
    "Override",
    "Runtime",
    "ServerStatus",
    "ServiceStatus",
    "adopt",
    "desired",
    "heard",
    "noted",
    "set_admin",
    "set_weight",
    "settle",
    "targets",
    "transition",
]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server, and why it takes no new flows if it does not.

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


@dataclass(frozen=True, slots=True)
class Derived:
    """A decision; ``next_at`` is the monotonic moment at which it changes by itself, or None."""

    state: ForwardingState
    next_at: float | None
    servers: Mapping[str, ServerStatus]
    services: Mapping[str, ServiceStatus]


def desired(configuration: Configuration, runtime: Runtime, now: float) -> Derived:
    """Decide what a data plane should hold at ``now`` (monotonic seconds)."""
    pools: dict[str, list[Member]] = {name: [] for name in configuration.pools}
    datagrams = {it.pool for it in configuration.services.values() if it.protocol is Protocol.UDP}
    for key, pool, server in keyed_servers(configuration):
        member = standing(runtime, now, key, pool, server)
        pools[pool.name].append(unpinned(member) if pool.name in datagrams else member)
    leaving = [departed(configuration, runtime, now, key, it) for key, it in runtime.departures.items()]
    members = [member for pool in pools.values() for member in pool] + leaving
    services = configuration.services.values()
    choices = {
        service.name: choose(pools[service.pool], configuration.pools[service.pool].quorum, service.when_all_down)
        for service in services
    }
    busy = _busy(pools.values(), choices.values())
    moments = [moment for member in members for moment in _moments(member)]
    moments += [next_step_at(configuration.pools[it.pool].slow_start_s, now) for it in members if it.rises]
    return Derived(
        _state(configuration, members, choices),
        min((moment for moment in moments if moment > now), default=None),
        {member.key: _server_status(member, busy=member.key in busy) for member in members},
        {service.name: _service_status(choices[service.name], pools[service.pool], service) for service in services},
    )


def _state(configuration: Configuration, members: Iterable[Member], choices: Mapping[str, Choice]) -> DesiredState:
    recipes = {}
    specs = {}
    listeners: set[Listener] = set()
    shared = tables.packet_seed(configuration.hash_seed)
    for service in configuration.services.values():
        choice = choices[service.name]
        seed = service_seed(service.listen[0], configuration.hash_seed)
        digest = None
        if choice.mode is ServiceMode.FORWARD:
            if service.forwarding is Forwarding.PROXY:
                recipe = tables.recipe(service.scheduler, seed, choice)
            else:
                recipe = tables.packet_recipe(service.scheduler, shared, choice)
            digest = tables.digest(recipe)
            recipes[digest] = recipe
        specs[service.name] = _service_spec(service, choice.mode, digest, seed)
        listeners.update(Listener(service.name, service.protocol, listen) for listen in service.listen)
    return DesiredState({member.key: member.spec for member in members}, recipes, specs, frozenset(listeners))


def _service_spec(service: VirtualService, mode: ServiceMode, digest: str | None, seed: bytes) -> ServiceSpec:
    return ServiceSpec(
        name=service.name,
        protocol=service.protocol,
        forwarding=service.forwarding,
        engine=service.engine,
        scheduler=service.scheduler,
        mode=mode,
        table=digest,
        seed=seed,
        idle_timeout_ms=_milliseconds(service.idle_timeout_s),
        connect_timeout_ms=_milliseconds(service.connect_timeout_s),
        half_close_timeout_ms=_milliseconds(service.half_close_timeout_s),
        retries=service.retries,
        persistence=service.persistence,
        max_connections=service.limits.connections,
        connections_per_source=service.limits.connections_per_source,
        new_per_source=service.limits.new_per_source,
        source_prefix_v4=service.limits.prefix_v4,
        source_prefix_v6=service.limits.prefix_v6,
        queue=service.limits.queue,
        queue_timeout_ms=_milliseconds(service.limits.queue_timeout_s),
        allowed=allowed_ranges(service.allow, service.deny),
        transparent=service.transparent,
        accept_proxy=service.accept_proxy,
        send_proxy=service.send_proxy,
        pool=service.pool,
    )


def _milliseconds(seconds: float) -> int:
    """Rounded, but never to 0, which means "never"."""
    return max(1, round(seconds * 1000)) if seconds else 0


def _busy(pools: Iterable[Sequence[Member]], choices: Iterable[Choice]) -> frozenset[str]:
    """Keys of servers that weigh something: in use by a service, or ready to be once the pool has its quorum."""
    ready = {member.key for pool in pools for member in usable(pool)}
    return frozenset(ready | {member.key for choice in choices for member in choice.live})


def _moments(member: Member) -> tuple[float, ...]:
    """When it changes by itself."""
    known = (member.drain_deadline, member.forgotten_at, member.ejected_until)
    return tuple(moment for moment in known if moment is not None)


def _server_status(member: Member, *, busy: bool) -> ServerStatus:
    health = member.health
    unchecked = "no longer configured" if member.departed else ""
    return ServerStatus(
        key=member.key,
        pool=member.pool,
        name=member.server.name,
        endpoint=member.server.endpoint,
        weight=member.weight,
        effective_weight=-(-member.weight * member.share // FULL) if busy else 0,
        backup=member.server.backup,
        admin=member.admin,
        health=health.verdict if health else None,
        idle_reason=member.idle_reason(busy=busy),
        down_reason=health.reason if health else None,
        detail=health.detail if health else unchecked,
        drain_deadline=member.drain_deadline,
        max_connections=member.max_connections,
        share=member.share,
        share_reason=member.share_reason,
        ejected_until=member.ejected_until,
        advice=member.advice,
    )


def _service_status(choice: Choice, pool: Sequence[Member], service: VirtualService) -> ServiceStatus:
    if choice.mode is not ServiceMode.FORWARD:
        state = "down"
    elif choice.fail_open or choice.live[0].server.backup or any(it.is_missing for it in pool):
        state = "degraded"
    else:
        state = "up"
    return ServiceStatus(service.name, state, choice.mode, choice.live_weight)

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
- A pool and the services that use it are decided about together and apart from all others; so what did not change is
  taken from the decision before, as the same objects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead.model.configuration import Configuration
from fairlead.model.health import ProbeTarget
from fairlead.model.net import Protocol
from fairlead.model.pool import Pool, server_key
from fairlead.model.service import Forwarding, VirtualService
from fairlead.model.shared import Shared, differing, shared
from fairlead.model.state import ForwardingState, Listener, ServiceMode, ServiceSpec, TableSpec
from fairlead.policy import tables
from fairlead.policy.access import allowed_ranges
from fairlead.policy.flowhash import service_seed
from fairlead.policy.health import target_key
from fairlead.policy.members import Choice, Member, choose, departed, standing, unpinned, usable
from fairlead.policy.rising import next_step_at
from fairlead.policy.runtime import (
    Departure,
    Ejection,
    Override,
    Runtime,
    adopt,
    heard,
    keyed_servers,
    noted,
    pool_of,
    set_admin,
    set_weight,
    settle,
    targets,
    transition,
)
from fairlead.policy.status import ServerStatus, ServiceStatus, server_status, service_status

__all__ = [
    "Departure",
    "Derived",
    "Ejection",
    "Override",
    "Runtime",
    "adopt",
    "desired",
    "heard",
    "noted",
    "set_admin",
    "set_weight",
    "settle",
    "targets",
    "touched",
    "transition",
]


class Basis:
    """What a decision rests on.

    Attributes:
        configuration: The one in force.
        runtime: What happened.
        services: By pool.
        datagrams: Names of the pools with a UDP service.
    """

    def __init__(self, configuration: Configuration, runtime: Runtime, former: Basis | None = None) -> None:
        self.configuration = configuration
        self.runtime = runtime
        self.services: dict[str, list[VirtualService]]
        self.datagrams: set[str]
        self._users: dict[ProbeTarget, set[str]]
        if former is not None and former.configuration is configuration:
            self.services, self.datagrams, self._users = former.services, former.datagrams, former._users  # noqa: SLF001
            return
        self.services = {name: [] for name in configuration.pools}
        for service in configuration.services.values():
            self.services[service.pool].append(service)
        self.datagrams = {it.pool for it in configuration.services.values() if it.protocol is Protocol.UDP}
        self._users = {}

    def users(self, target: ProbeTarget) -> Collection[str]:
        """Names of the pools that a target is probed for."""
        if not self._users:
            for _, pool, server in keyed_servers(self.configuration):
                for monitor in pool.probes:
                    self._users.setdefault(target_key(server, monitor), set()).add(pool.name)
        return self._users.get(target, ())


@dataclass(frozen=True, slots=True)
class Derived:
    """A decision; ``next_at`` is the monotonic moment at which it changes by itself, or None.

    ``moments`` has it for each pool that changes by itself; ``basis`` is what the decision rests on.
    """

    state: ForwardingState
    next_at: float | None
    servers: Mapping[str, ServerStatus]
    services: Mapping[str, ServiceStatus]
    moments: Mapping[str, float]
    basis: Basis = field(compare=False)

    @property
    def ordered(self) -> Iterator[ServerStatus]:
        """Every server in the order of the configuration, departed ones last."""
        for key, _, _ in keyed_servers(self.basis.configuration):
            yield self.servers[key]
        for key in self.basis.runtime.departures:
            yield self.servers[key]


def desired(configuration: Configuration, runtime: Runtime, now: float, before: Derived | None = None) -> Derived:
    """Decide what a data plane should hold at ``now`` (monotonic seconds).

    A decision ``before`` saves work, for what did not change since is taken from it; the outcome is the same.
    """
    basis = Basis(configuration, runtime, before.basis if before else None)
    names = touched(before, configuration, runtime, now)
    if before is None or names is None:
        before, names = _UNDECIDED, basis.services.keys() | {it.pool for it in runtime.departures.values()}
    elif not names:
        return replace(before, basis=basis)
    leaving: dict[str, list[Member]] = {}
    for key, it in runtime.departures.items():
        if it.pool in names:
            leaving.setdefault(it.pool, []).append(departed(configuration, runtime, now, key, it))
    parts = [_part(basis, now, name, leaving.get(name, [])) for name in names]
    moments = dict(before.moments)
    for name in names:
        moments.pop(name, None)
    moments.update((it.pool, it.next_at) for it in parts if it.next_at is not None)
    return _joined(before, basis, parts, _formerly(before.basis, names), moments)


def touched(
    before: Derived | None, configuration: Configuration, runtime: Runtime, now: float
) -> Collection[str] | None:
    """Names of the pools about which is to be decided anew since ``before``; None: all."""
    if before is None or before.basis.configuration.hash_seed != configuration.hash_seed:
        return None
    basis, was = before.basis, before.basis.runtime
    found: set[str] = set()
    if basis.configuration is not configuration:
        found.update(configuration.pools_unlike(basis.configuration))
    if before.next_at is not None and before.next_at <= now:
        found.update(name for name, moment in before.moments.items() if moment <= now)
    keys = differing(was.overrides, runtime.overrides) | differing(was.drain_since, runtime.drain_since)
    keys |= differing(was.rising, runtime.rising) | differing(was.ejections, runtime.ejections)
    if was.resting is not runtime.resting:
        keys |= was.resting ^ runtime.resting
    found.update(map(pool_of, keys))
    for key in differing(was.departures, runtime.departures):
        found.update(it.pool for it in (was.departures.get(key), runtime.departures.get(key)) if it is not None)
    for target in differing(was.health, runtime.health) | differing(was.advice, runtime.advice):
        found.update(basis.users(target))  # of pools that are others by now all is decided anew
    return found


@dataclass(frozen=True, slots=True)
class _Former:
    """What was there of some pools before: keys of servers, and services."""

    servers: Collection[str]
    services: Sequence[VirtualService]


def _formerly(was: Basis, names: Collection[str]) -> _Former:
    pools = [pool for name in names if (pool := was.configuration.pools.get(name)) is not None]
    keys = [server_key(pool.name, server.name) for pool in pools for server in pool.servers]
    departed_keys = [key for key, it in was.runtime.departures.items() if it.pool in names]
    return _Former([*keys, *departed_keys], [it for name in names for it in was.services.get(name, ())])


def _listeners(services: Iterable[VirtualService]) -> frozenset[Listener]:
    """Those that services have whatever happens."""
    return frozenset(Listener(it.name, it.protocol, listen) for it in services for listen in it.listen)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is decided about one pool, and the services that use it."""

    pool: str
    members: Sequence[Member]
    tables: Mapping[str, TableSpec]
    specs: Sequence[ServiceSpec]
    servers: Sequence[ServerStatus]
    services: Sequence[ServiceStatus]
    next_at: float | None


_REMOVED = Pool("", ())
_UNDECIDED = Derived(
    ForwardingState(Shared(), Shared(), Shared(), frozenset()),
    None,
    Shared(),
    Shared(),
    {},
    Basis(Configuration(), Runtime()),
)
_NEVER = (None, None, None)


def _part(basis: Basis, now: float, name: str, leaving: Sequence[Member]) -> _Part:
    pool, services = basis.configuration.pools.get(name, _REMOVED), basis.services.get(name, [])
    present = [standing(basis.runtime, now, server_key(name, it.name), pool, it) for it in pool.servers]
    if name in basis.datagrams:
        present = [unpinned(member) for member in present]
    ready = usable(present)
    choices = [choose(present, ready, pool.quorum, service.when_all_down) for service in services]
    busy = _busy(ready, choices)
    complete = len(ready) == len(present) or not any(member.is_missing for member in present)
    members = [*present, *leaving]
    moments = [moment for member in members for moment in _moments(member)]
    if pool.slow_start_s and any(member.rises for member in members):
        moments.append(next_step_at(pool.slow_start_s, now))
    recipes: dict[str, TableSpec] = {}
    return _Part(
        name,
        members,
        recipes,
        [
            _spec(basis.configuration, service, choice, recipes)
            for service, choice in zip(services, choices, strict=True)
        ],
        [server_status(member, busy=member.key in busy) for member in members],
        [service_status(choice, it, complete=complete) for it, choice in zip(services, choices, strict=True)],
        min((moment for moment in moments if moment > now), default=None),
    )


def _joined(
    before: Derived, basis: Basis, parts: Sequence[_Part], former: _Former, moments: Mapping[str, float]
) -> Derived:
    """The decision of before with these parts of it made anew."""
    state = before.state
    members = {member.key: member.spec for part in parts for member in part.members}
    recipes: dict[str, TableSpec | None] = {digest: it for part in parts for digest, it in part.tables.items()}
    specs = {it.name: it for part in parts for it in part.specs}
    names = [it.name for it in former.services]
    # A digest is made of the keys of servers, therefore no two pools have a table in common.
    unused = [held.table for it in names if (held := state.services.get(it)) is not None and held.table is not None]
    servers = {it.key: it for part in parts for it in part.servers}
    services = {it.name: it for part in parts for it in part.services}
    return Derived(
        ForwardingState(
            shared(state.servers).changed(members, former.servers),
            shared(state.tables).changed(recipes, unused),
            shared(state.services).changed(specs, names),
            _relisted(before, basis, former.services, [basis.configuration.services[name] for name in specs]),
        ),
        min(moments.values(), default=None),
        shared(before.servers).changed(servers, former.servers),
        shared(before.services).changed(services, names),
        moments,
        basis,
    )


def _relisted(
    before: Derived, basis: Basis, former: Iterable[VirtualService], present: Iterable[VirtualService]
) -> frozenset[Listener]:
    """The listeners, after some services have come in the place of others; the same object if none has."""
    held = before.state.listeners
    if before.basis.configuration is basis.configuration:
        return held
    closed, opened = _listeners(former), _listeners(present)
    return held if closed == opened else held - closed | opened


def _spec(
    configuration: Configuration, service: VirtualService, choice: Choice, recipes: dict[str, TableSpec]
) -> ServiceSpec:
    """What the data plane is told of a service; its table is added to ``recipes``."""
    seed = service_seed(service.listen[0], configuration.hash_seed)
    digest = None
    if choice.mode is ServiceMode.FORWARD:
        if service.forwarding is Forwarding.PROXY:
            recipe = tables.recipe(service.scheduler, seed, choice)
        else:
            recipe = tables.packet_recipe(service.scheduler, tables.packet_seed(configuration.hash_seed), choice)
        digest = tables.digest(recipe)
        recipes[digest] = recipe
    return _service_spec(service, choice.mode, digest, seed)


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


def _busy(ready: Sequence[Member], choices: Iterable[Choice]) -> Collection[str]:
    """Keys of servers that weigh something: in use by a service, or ready to be once the pool has its quorum."""
    busy = {member.key for member in ready}
    for choice in choices:
        if choice.live is not ready:
            busy.update(member.key for member in choice.live)
    return busy


def _moments(member: Member) -> tuple[float, ...]:
    """When it changes by itself."""
    known = (member.drain_deadline, member.forgotten_at, member.ejected_until)
    return () if known == _NEVER else tuple(moment for moment in known if moment is not None)

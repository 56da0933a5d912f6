# SPDX-License-Identifier: Apache-2.0
"""What happened since the configuration was read: overrides, drains, departures; and how events change it.

Invariants: functions return a new Runtime; a drain clock runs exactly while a server drains; an override falls when
the file's own value changes; the health of what is not probed is forgotten, so that it cannot look alive later.
Times are monotonic seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from fairlead.errors import ContractViolation, NotFound
from fairlead.model.configuration import Configuration, unlike
from fairlead.model.health import AgentAdvice, AgentReport, HealthState, ProbeTarget, Verdict
from fairlead.model.pool import AdminState, Pool, RealServer, server_key
from fairlead.model.shared import shared
from fairlead.model.state import ServerSpec
from fairlead.policy.health import combine, target_key
from fairlead.policy.rising import note

FORGET_AFTER_S = 5.0  # after its deadline a departed server stays this long, so that its flows are reset, not orphaned
UNKNOWN_DRAIN_TIMEOUT_S = 300.0  # of a pool that is gone, with the file that knew its own
NO_ADVICE = AgentAdvice()
IDLE_AFTER_S = 5.0  # "no flows" is believed only this long after a departure: until then a table may still name it


@dataclass(frozen=True, slots=True)
class Override:
    """What an operator set at run time; each half falls when the file's own value for it changes."""

    state: AdminState | None
    weight: int | None
    base_state: AdminState
    base_weight: int

    @property
    def is_set(self) -> bool:
        """Whether it says anything."""
        return self.state is not None or self.weight is not None


@dataclass(frozen=True, slots=True)
class Departure:
    """A server that is no longer configured, whose flows may still end until ``deadline``; it left at ``since``."""

    pool: str
    server: RealServer
    deadline: float
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Ejection:
    """A server that passive checking took out at ``since``; over at ``until``, remembered until ``forget_at``.

    ``times`` counts the ejections that came before the last one was forgotten, this one included.
    """

    since: float
    until: float
    times: int
    forget_at: float


@dataclass(frozen=True, slots=True)
class Runtime:
    """What happened, by target or by server key (POOL/SERVER).

    Attributes:
        drain_since: When it began to drain.
        resting: Servers with slow start that were last seen unable to take new flows.
        rising: When it came up again; only while its slow start lasts.
        advice: What the agents on servers say.
    """

    health: Mapping[ProbeTarget, HealthState] = field(default_factory=dict)
    overrides: Mapping[str, Override] = field(default_factory=dict)
    drain_since: Mapping[str, float] = field(default_factory=dict)
    departures: Mapping[str, Departure] = field(default_factory=dict)
    resting: frozenset[str] = frozenset()
    rising: Mapping[str, float] = field(default_factory=dict)
    ejections: Mapping[str, Ejection] = field(default_factory=dict)
    advice: Mapping[ProbeTarget, AgentAdvice] = field(default_factory=dict)


def ejected_until(runtime: Runtime, key: str, now: float) -> float | None:
    """When a server returns that is ejected now; None: it is not."""
    ejection = runtime.ejections.get(key)
    return ejection.until if ejection is not None and now < ejection.until else None


def advised(runtime: Runtime, pool: Pool, server: RealServer) -> AgentAdvice | None:
    """What the agent on a server says; None: nobody asks it."""
    if pool.agent is None:
        return None
    return runtime.advice.get(target_key(server, pool.agent), NO_ADVICE)


def heard(runtime: Runtime, target: ProbeTarget, report: AgentReport) -> Runtime:
    """An agent answered; what it did not mention stays as it said before."""
    before = runtime.advice.get(target, NO_ADVICE)
    after = AgentAdvice(
        before.share if report.share is None else report.share,
        before.admin if report.admin is None else report.admin,
        before.up if report.up is None else report.up,
        before.max_connections if report.max_connections is None else report.max_connections,
        report.reason,
    )
    return runtime if after == before else replace(runtime, advice=shared(runtime.advice).changed({target: after}))


def willing(advice: AgentAdvice | None) -> bool:
    """Whether the agent on a server lets it take new flows; a server that is down by its own word is not ``up``."""
    return advice is None or (advice.admin is AdminState.READY and advice.share > 0)


def admin_state(runtime: Runtime, key: str, server: RealServer) -> AdminState:
    """The operator's wish: set at run time, else from the file."""
    if key not in runtime.overrides:  # nearly always
        return server.state
    return _override(runtime, key, server).state or server.state


def present_weight(runtime: Runtime, key: str, server: RealServer) -> int:
    """The weight: set at run time, else from the file."""
    if key not in runtime.overrides:
        return server.weight
    overridden = _override(runtime, key, server).weight
    return server.weight if overridden is None else overridden


def drains(admin: AdminState, weight: int) -> bool:
    """Whether a server takes no new flows by the operator's wish and keeps those it has; weight 0 is such a wish."""
    return admin is AdminState.DRAIN or (admin is AdminState.READY and weight == 0)


def pool_of(key: str) -> str:
    """The name of a server's pool."""
    return key.partition("/")[0]


def _elsewhere(keys: Iterable[str], names: Collection[str] | None) -> frozenset[str]:
    """Those of servers in other pools than these; ``names`` None: there are no others."""
    return frozenset(key for key in keys if names is not None and pool_of(key) not in names)


def keyed_servers(configuration: Configuration) -> Iterator[tuple[str, Pool, RealServer]]:
    """All configured servers with their keys, in configured order."""
    for pool in configuration.pools.values():
        for server in pool.servers:
            yield server_key(pool.name, server.name), pool, server


def successor(configuration: Configuration, departure: Departure) -> tuple[str, RealServer] | None:
    """The server that is still configured in the same pool at the departed one's endpoint: it was only renamed."""
    pool = configuration.pools.get(departure.pool)
    for server in pool.servers if pool else ():
        if server.endpoint == departure.server.endpoint:
            return server_key(departure.pool, server.name), server
    return None


def targets(configuration: Configuration, runtime: Runtime) -> Mapping[ProbeTarget, frozenset[str]]:
    """What is to be probed now, with the names of the pools that want it; servers in maintenance are left alone."""
    found: dict[ProbeTarget, set[str]] = {}
    for pool in configuration.pools.values():
        probes = pool.probes
        for server in pool.servers if probes else ():
            if admin_state(runtime, server_key(pool.name, server.name), server) is not AdminState.MAINT:
                for monitor in probes:
                    found.setdefault(target_key(server, monitor), set()).add(pool.name)
    return {target: frozenset(pools) for target, pools in found.items()}


def set_admin(configuration: Configuration, runtime: Runtime, key: str, state: AdminState, now: float) -> Runtime:
    """The operator says ready, drain or maint.

    Raises:
        NotFound: No server has this key.
    """
    pool, server = _find(configuration, key)
    wanted = _override(runtime, key, server)
    wanted = replace(wanted, state=state if state is not server.state else None)
    after = _with_override(runtime, key, wanted)
    if pool.probes and AdminState.MAINT in {state, admin_state(runtime, key, server)}:
        return _settled(configuration, after, now)  # it is probed from now on, or no longer
    return _settled_server(configuration, after, key, server, now)


def set_weight(configuration: Configuration, runtime: Runtime, key: str, weight: int, now: float) -> Runtime:
    """The operator sets a weight; 0 drains.

    Raises:
        NotFound: No server has this key.
    """
    if weight < 0:
        raise ContractViolation(f"weight {weight} of {key} is below 0; who asks for it must refuse it")
    _, server = _find(configuration, key)
    wanted = _override(runtime, key, server)
    wanted = replace(wanted, weight=weight if weight != server.weight else None)
    return _settled_server(configuration, _with_override(runtime, key, wanted), key, server, now)


def transition(old: Configuration, new: Configuration, runtime: Runtime, now: float) -> Runtime:
    """A new configuration takes over.

    Servers that are gone depart: their flows may end until the old pool's drain timeout after they left, or after
    they began to drain. Servers that stay keep their drain clock and their verdict, also under changed monitors.
    Servers that join a pool start slowly. Only pools that are not the same objects in both are gone through; all, if
    both configurations are the same.
    """
    names = None if old is new else unlike(old.pools, new.pools)
    left, come = (old, new) if names is None else (old.only(names), new.only(names))
    after = {key: server for key, _, server in keyed_servers(come)}
    departures = {key: departure for key, departure in runtime.departures.items() if key not in after}
    for key, pool, server in keyed_servers(left):
        if key not in after and admin_state(runtime, key, server) is not AdminState.MAINT:
            deadline = runtime.drain_since.get(key, now) + pool.drain_timeout_s
            departures[key] = Departure(pool.name, server, max(now, deadline), now)
    health = shared(_inherited(left, come, old, runtime)).under(shared(runtime.health))
    overrides = {key: runtime.overrides[key] for key in _elsewhere(runtime.overrides, names)}
    for key in runtime.overrides.keys() & after.keys():
        if (kept := _override(runtime, key, after[key])).is_set:
            overrides[key] = kept
    joined = _joined(left, come)
    ejections = {key: ejection for key, ejection in runtime.ejections.items() if key not in joined}
    runtime = replace(runtime, departures=departures, health=health, overrides=overrides, ejections=ejections)
    return _settled(new, replace(runtime, resting=runtime.resting | joined), now, names)


def settle(configuration: Configuration, runtime: Runtime, now: float, idle: frozenset[str]) -> Runtime:
    """Start and stop drain clocks, and forget departures that are over.

    Args:
        configuration: The one in force.
        runtime: What happened so far.
        now: Monotonic seconds.
        idle: Keys of servers that have no flows.
    """
    departures = {
        key: departure
        for key, departure in runtime.departures.items()
        if not _is_over(configuration, departure, now, idle=key in idle)
    }
    return _settled(configuration, replace(runtime, departures=departures), now)


def noted(configuration: Configuration, runtime: Runtime, now: float, pools: Collection[str] | None = None) -> Runtime:
    """What follows from verdicts that have changed: who rests, and who comes up slowly.

    Only these ``pools`` are looked at; None: all.
    """
    names = configuration.pools.keys() if pools is None else pools
    slow = [pool for name in names if (pool := configuration.pools.get(name)) is not None and pool.slow_start_s]
    if not slow and not (runtime.resting or runtime.rising):
        return runtime
    keyed = ((server_key(pool.name, server.name), pool, server) for pool in slow for server in pool.servers)
    seen = ((key, pool, _able(runtime, now, key, pool, server)) for key, pool, server in keyed)
    resting, rising = note(seen, runtime.resting, runtime.rising, now)
    resting |= _elsewhere(runtime.resting, pools)
    rising = {key: runtime.rising[key] for key in _elsewhere(runtime.rising, pools)} | rising
    if (resting, rising) == (runtime.resting, runtime.rising):
        return runtime
    return replace(runtime, resting=resting, rising=rising)


def adopt(configuration: Configuration, runtime: Runtime, held: Collection[ServerSpec], now: float) -> Runtime:
    """Let depart what a data plane still holds, but nobody knows any more: the file changed while no agent ran.

    Without this, a restarted agent would delete those servers and reset their flows at once.
    """
    if not held:
        return runtime
    known = {key for key, _, _ in keyed_servers(configuration)} | runtime.departures.keys()
    departures = dict(runtime.departures)
    for spec in held:
        if spec.key not in known:
            pool_name, _, name = spec.key.partition("/")
            pool = configuration.pools.get(pool_name)
            server = RealServer(name, spec.endpoint, spec.weight, spec.max_connections)
            deadline = now + (pool.drain_timeout_s if pool else UNKNOWN_DRAIN_TIMEOUT_S)
            departures[spec.key] = Departure(pool_name, server, deadline, now)
    return replace(runtime, departures=departures)


def _is_over(configuration: Configuration, departure: Departure, now: float, *, idle: bool) -> bool:
    if idle and now >= departure.since + IDLE_AFTER_S:
        return True
    return now >= departure.deadline + FORGET_AFTER_S and successor(configuration, departure) is None


def _settled(
    configuration: Configuration, runtime: Runtime, now: float, names: Collection[str] | None = None
) -> Runtime:
    """Drain clocks run for those that drain, health is known of those that are probed.

    Of drains only in pools of these ``names``; None: in all.
    """
    some = configuration if names is None else configuration.only(names)
    drain_since = {key: runtime.drain_since[key] for key in _elsewhere(runtime.drain_since, names)} | {
        key: runtime.drain_since.get(key, now)
        for key, _, server in keyed_servers(some)
        if drains(admin_state(runtime, key, server), present_weight(runtime, key, server))
    }
    probed = targets(configuration, runtime) if runtime.advice or runtime.health else {}
    advice = shared(runtime.advice).changed({}, [target for target in runtime.advice if target not in probed])
    health = shared(runtime.health).changed({}, [target for target in runtime.health if target not in probed])
    ejections = {
        key: ejection
        for key, pool, _ in (keyed_servers(configuration) if runtime.ejections else ())
        if pool.passive and (ejection := runtime.ejections.get(key)) and now < ejection.forget_at
    }
    runtime = replace(runtime, drain_since=drain_since, health=health, ejections=ejections, advice=advice)
    return noted(configuration, runtime, now, names)


def _settled_server(
    configuration: Configuration, runtime: Runtime, key: str, server: RealServer, now: float
) -> Runtime:
    """Likewise, after a wish about one server that leaves what is probed as it is."""
    drain_since = shared(runtime.drain_since)
    if not drains(admin_state(runtime, key, server), present_weight(runtime, key, server)):
        drain_since = drain_since.changed({}, [key])
    elif key not in drain_since:
        drain_since = drain_since.changed({key: now})
    return noted(configuration, replace(runtime, drain_since=drain_since), now, (pool_of(key),))


def _able(runtime: Runtime, now: float, key: str, pool: Pool, server: RealServer) -> bool | None:
    """Whether a server may take new flows; None while its health is not known."""
    if ejected_until(runtime, key, now) is not None:
        return False
    if admin_state(runtime, key, server) is not AdminState.READY or present_weight(runtime, key, server) == 0:
        return False
    advice = advised(runtime, pool, server)
    if advice is not None and not (advice.up and willing(advice)):
        return False
    if not pool.monitors:
        return True
    state = combine([runtime.health.get(target_key(server, monitor), HealthState()) for monitor in pool.monitors])
    return state.verdict is Verdict.UP or (None if not state.checked else False)


def _joined(old: Configuration, new: Configuration) -> frozenset[str]:
    """Servers that are new in a pool that is not."""
    before = {(pool.name, server.endpoint) for _, pool, server in keyed_servers(old)}
    return frozenset(
        key
        for key, pool, server in keyed_servers(new)
        if pool.name in old.pools and (pool.name, server.endpoint) not in before
    )


def _inherited(
    left: Configuration, come: Configuration, old: Configuration, runtime: Runtime
) -> dict[ProbeTarget, HealthState]:
    """Verdicts for monitors that did not exist before (in ``old``), of servers that did.

    Otherwise a changed interval would take every server down until its next probe. Where servers that share a new
    target disagree, down wins; what was probed before, though not to an end, has its own verdict to come.
    """
    before = {(pool.name, server.endpoint): (key, pool, server) for key, pool, server in keyed_servers(left)}
    found: dict[ProbeTarget, HealthState] = {}
    for _, pool, server in keyed_servers(come):
        known = before.get((pool.name, server.endpoint))
        state = _verdict(runtime, *known) if known else None
        if state is None:
            continue
        for monitor in pool.monitors:
            target = target_key(server, monitor)
            if target not in found or found[target].verdict is Verdict.UP:
                found[target] = state
    if found:
        for _, pool, server in keyed_servers(old):
            for monitor in pool.monitors:
                found.pop(target_key(server, monitor), None)
    return found


def _verdict(runtime: Runtime, key: str, pool: Pool, server: RealServer) -> HealthState | None:
    """What is known of a server's health; None: nothing."""
    if admin_state(runtime, key, server) is AdminState.MAINT:
        return None
    if not pool.monitors:
        # It carried flows without being probed; it may go on until the first probe says otherwise.
        return HealthState(Verdict.UP, 0, False, None, "no probe has finished yet")
    state = combine([runtime.health.get(target_key(server, monitor), HealthState()) for monitor in pool.monitors])
    return replace(state, streak=0) if state.checked else None


def _override(runtime: Runtime, key: str, server: RealServer) -> Override:
    """The halves of a server's override that still hold, on the present base."""
    held = runtime.overrides.get(key)
    state = held.state if held and held.base_state is server.state else None
    weight = held.weight if held and held.base_weight == server.weight else None
    return Override(state, weight, server.state, server.weight)


def _with_override(runtime: Runtime, key: str, override: Override) -> Runtime:
    overrides = shared(runtime.overrides)
    return replace(
        runtime, overrides=overrides.changed({key: override}) if override.is_set else overrides.changed({}, [key])
    )


def _find(configuration: Configuration, key: str) -> tuple[Pool, RealServer]:
    pool_name, _, name = key.partition("/")
    pool = configuration.pools.get(pool_name)
    if pool is not None:
        for server in pool.servers:
            if server.name == name:
                return pool, server
    keys = [it for it, _, _ in keyed_servers(configuration)]
    near = difflib.get_close_matches(key, keys, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`fairlead show servers` lists all"
    raise NotFound(f"no server {key}; {hint}")

# SPDX-License-Identifier: Apache-2.0
"""Passive checking: which servers real traffic says are broken, and for how long they are taken out.

Invariants: only failures in a row within the interval count; at most ``max_ejected`` of a pool are out, and never so
many that less than the quorum is left; a server that is ejected again soon is out for longer each time and no probe
shortens that, so that one that comes and goes changes the tables ever less often (F43).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fairlead.model.configuration import Configuration
from fairlead.model.health import ProbeTarget, Verdict
from fairlead.model.pool import PassiveCheck, Pool, RealServer, server_key
from fairlead.policy.health import combine, target_key
from fairlead.policy.members import Member, is_short, standing, usable
from fairlead.policy.runtime import Ejection, Runtime, ejected_until, noted

LONGEST = 10  # times the first ejection; Envoy's default bound is the same (300 s for 30 s)
CALM = 2  # times its last ejection that a server must stay in until that one is forgotten


@dataclass(frozen=True, slots=True)
class Failures:
    """Failures of one server that one worker saw between two looks; ``connections`` is the server's total then."""

    at: float
    worker: int
    count: int
    connections: int


@dataclass(frozen=True, slots=True)
class Track:
    """What was seen of one server: the workers' streaks at the last look, and the failures that still count."""

    streaks: Mapping[int, int] = field(default_factory=dict)
    failures: tuple[Failures, ...] = ()


def follow(track: Track, streaks: Mapping[int, int], connections: int, interval_s: float, now: float) -> Track:
    """Take a look at the counters of one server into account.

    Args:
        track: From the last look.
        streaks: Failures since the last success, by worker.
        connections: Connections that were established, over all workers.
        interval_s: Failures count this long.
        now: Monotonic seconds.
    """
    if not streaks and not track.failures:
        return Track()
    kept = [it for it in track.failures if now - it.at < interval_s and streaks.get(it.worker, 0) >= it.count]
    for worker, streak in streaks.items():
        before = track.streaks.get(worker, 0)
        if streak < before:  # a success came between: the streak is a new one
            kept = [it for it in kept if it.worker != worker]
            before = 0
        if streak > before:
            kept.append(Failures(now, worker, streak - before, connections))
    return Track(dict(streaks), tuple(kept))


def in_a_row(track: Track, connections: int) -> int:
    """Failures in a row: over all workers as long as no connection came about, else as the unluckiest worker saw it."""
    total = sum(it.count for it in track.failures if it.connections == connections)
    by_worker: dict[int, int] = {}
    for it in track.failures:
        by_worker[it.worker] = by_worker.get(it.worker, 0) + it.count
    return max(total, *by_worker.values()) if by_worker else 0


def eject(configuration: Configuration, runtime: Runtime, suspects: Iterable[str], now: float) -> Runtime:
    """Take out those of the servers (by key) whose pools can do without them."""
    keys = frozenset(suspects)
    for pool in configuration.pools.values():
        if pool.passive is None:
            continue
        for server in pool.servers:
            key = server_key(pool.name, server.name)
            if key in keys and _may_go(runtime, pool, key, now):
                ejection = _ejection(pool.passive, runtime.ejections.get(key), now)
                runtime = replace(runtime, ejections={**runtime.ejections, key: ejection})
    return noted(configuration, runtime, now)


def vouch(configuration: Configuration, runtime: Runtime, target: ProbeTarget, now: float) -> Runtime:
    """A probe of ``target`` passed: servers that are out for the first time return if all their probes say up."""
    back = {
        key: replace(ejection, until=now)
        for key, ejection in runtime.ejections.items()
        # The probe began after the ejection.
        if ejection.times == 1 and now < ejection.until and now - ejection.since >= target.monitor.timeout_s
        if (found := _find(configuration, key)) and _vouched(runtime, target, *found)
    }
    return noted(configuration, replace(runtime, ejections={**runtime.ejections, **back}), now) if back else runtime


def _may_go(runtime: Runtime, pool: Pool, key: str, now: float) -> bool:
    members = [standing(runtime, now, server_key(pool.name, it.name), pool, it) for it in pool.servers]
    left: list[Member] = [member for member in members if member.key != key]
    out = sum(member.ejected_until is not None for member in members)
    serving = len(left) < len(members) and any(it.key == key for it in usable(members))
    return serving and out < _most(pool) and not is_short(usable(left), pool.quorum)


def _most(pool: Pool) -> int:
    """How many servers may be out at a time."""
    part = pool.passive.max_ejected if pool.passive else 0
    return max(1, len(pool.servers) * part // 100) if part else 0


def _ejection(passive: PassiveCheck, last: Ejection | None, now: float) -> Ejection:
    times = last.times + 1 if last is not None and now < last.forget_at else 1
    length_s = passive.eject_s * min(times, LONGEST)
    return Ejection(now, now + length_s, times, now + length_s * (1 + CALM))


def _find(configuration: Configuration, key: str) -> tuple[Pool, RealServer] | None:
    pool = configuration.pools.get(key.partition("/")[0])
    for server in pool.servers if pool else ():
        if pool and server_key(pool.name, server.name) == key:
            return pool, server
    return None


def _vouched(runtime: Runtime, target: ProbeTarget, pool: Pool, server: RealServer) -> bool:
    targets = [target_key(server, monitor) for monitor in pool.monitors]
    known = [runtime.health[it] for it in targets if it in runtime.health]
    return target in targets and len(known) == len(targets) and combine(known).verdict is Verdict.UP


def ejected(runtime: Runtime, now: float) -> frozenset[str]:
    """Keys of the servers that are out."""
    return frozenset(key for key in runtime.ejections if ejected_until(runtime, key, now) is not None)

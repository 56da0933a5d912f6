# SPDX-License-Identifier: Apache-2.0
"""Passive checking: which servers real traffic says are broken, and for how long they are taken out.

Invariants: only failures in a row within the interval count; at most ``max_ejected`` of a pool are out, and never so
many that less than the quorum is left; a server that is ejected again soon is out for longer each time and no probe
shortens that, so that one that comes and goes changes the tables ever less often (F43).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeTarget, Verdict
from fairlead.model.pool import PassiveCheck, Pool, RealServer, server_key
from fairlead.policy.health import combine, target_key
from fairlead.policy.members import standing
from fairlead.policy.runtime import Ejection, Runtime, ejected_until, keyed_servers, noted

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


def eject(configuration: Configuration, runtime: Runtime, suspects: Collection[str], now: float) -> Runtime:
    """Take out those of the servers (by key) whose pools can do without them."""
    ejections = dict(runtime.ejections)
    for pool in configuration.pools.values():
        if pool.passive is not None and any(key.startswith(f"{pool.name}/") for key in suspects):
            serving = _Serving(runtime, pool, now)
            for server in pool.servers:
                key = server_key(pool.name, server.name)
                if key in suspects and serving.spare(key):
                    ejections[key] = _ejection(pool.passive, ejections.get(key), now)
    return noted(configuration, replace(runtime, ejections=ejections), now)


def vouch(configuration: Configuration, runtime: Runtime, passed: Mapping[ProbeTarget, float], now: float) -> Runtime:
    """Servers that are out for the first time return if a probe passed meanwhile and all their probes say up.

    Args:
        configuration: The one in force.
        runtime: What happened so far.
        passed: Targets whose probes passed, and when these ended, in monotonic seconds.
        now: Monotonic seconds.
    """
    back = {
        key: replace(runtime.ejections[key], until=now)
        for key, pool, server in _sitting_out(configuration, runtime, now)
        if _vouched(runtime, runtime.ejections[key].since, passed, pool, server)
    }
    return noted(configuration, replace(runtime, ejections={**runtime.ejections, **back}), now) if back else runtime


def vouchers(configuration: Configuration, runtime: Runtime, now: float) -> frozenset[ProbeTarget]:
    """The targets whose passed probes can bring a server back."""
    return frozenset(
        target_key(server, monitor)
        for _, pool, server in _sitting_out(configuration, runtime, now)
        for monitor in pool.monitors
    )


def ejected(runtime: Runtime, now: float) -> frozenset[str]:
    """Keys of the servers that are out."""
    return frozenset(key for key in runtime.ejections if ejected_until(runtime, key, now) is not None)


class _Serving:
    """The servers of a pool that take new flows, primaries and backups, while some are taken away."""

    def __init__(self, runtime: Runtime, pool: Pool, now: float) -> None:
        members = [standing(runtime, now, server_key(pool.name, it.name), pool, it) for it in pool.servers]
        part = pool.passive.max_ejected if pool.passive else 0
        most = max(1, len(members) * part // 100) if part else 0
        self._room = most - sum(member.ejected_until is not None for member in members)
        self._quorum = pool.quorum
        self._tiers: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for member in members:
            if member.eligible and member.up and member.ejected_until is None:
                self._tiers[member.server.backup][member.key] = member.weight
        self._weights = [sum(tier.values()) for tier in self._tiers]

    def spare(self, key: str) -> bool:
        """Take a server away, if there is room for it and the quorum is left."""
        backup = not self._tiers[False]
        tier = self._tiers[backup]
        if self._room <= 0 or key not in tier:
            return False
        left = self._weights[backup] - tier[key] if len(tier) > 1 else 0 if backup else self._weights[True]
        if left < max(1, self._quorum):
            return False
        self._weights[backup] -= tier.pop(key)
        self._room -= 1
        return True


def _ejection(passive: PassiveCheck, last: Ejection | None, now: float) -> Ejection:
    times = last.times + 1 if last is not None and now < last.forget_at else 1
    length_s = passive.eject_s * min(times, LONGEST)
    return Ejection(now, now + length_s, times, now + length_s * (1 + CALM))


def _sitting_out(configuration: Configuration, runtime: Runtime, now: float) -> Iterator[tuple[str, Pool, RealServer]]:
    """The servers that are out for the first time."""
    if not runtime.ejections:
        return
    for key, pool, server in keyed_servers(configuration):
        ejection = runtime.ejections.get(key)
        if ejection is not None and ejection.times == 1 and now < ejection.until:
            yield key, pool, server


def _vouched(
    runtime: Runtime, since: float, passed: Mapping[ProbeTarget, float], pool: Pool, server: RealServer
) -> bool:
    targets = [target_key(server, monitor) for monitor in pool.monitors]
    # A probe that ended so late began after the ejection.
    fresh = any(passed.get(target, since) - since >= target.monitor.timeout_s for target in targets)
    return fresh and combine([runtime.health.get(it, HealthState()) for it in targets]).verdict is Verdict.UP

# SPDX-License-Identifier: Apache-2.0
"""Watches what real traffic says about servers, and tells when passive checking takes one out or lets it return.

Invariant: what counts and who is taken out is decided by ``policy.passive``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from fairlead.dataplane.base import ServerCounters
from fairlead.engine.events import Events
from fairlead.engine.present import Present
from fairlead.model.health import ProbeTarget
from fairlead.model.pool import PassiveCheck, server_key
from fairlead.policy import passive
from fairlead.policy.passive import Track

LOOK_S = 0.25  # a dead server gets new flows for this long after its last failure that counts
LOOK_SHARE = 0.05  # of the time that looking may take: with very many servers it is done less often


class Outliers:
    """The watch over all servers whose pools have passive checking.

    Args:
        present: What holds now; ejections go into its runtime.
        events: Where they are told.
        clock: Monotonic seconds.
        on_change: Told when a decision has to be made anew.
    """

    def __init__(
        self, present: Present, events: Events, clock: Callable[[], float], on_change: Callable[[], None]
    ) -> None:
        self._present = present
        self._events = events
        self._clock = clock
        self._on_change = on_change
        self._tracks: dict[str, Track] = {}
        self._out: dict[str, float] = {}  # by key: since when, which tells one ejection from the next
        self._configuration = present.configuration
        self._vouchers: frozenset[ProbeTarget] = frozenset()
        self._passed: dict[ProbeTarget, float] = {}  # when, since the last look
        self._totals: Counter[str] = Counter()

    @property
    def totals(self) -> Mapping[str, int]:
        """By server key: how often it was ejected since this agent began."""
        return self._totals

    def pace_s(self, calm_s: float, last_look_s: float) -> float:
        """Seconds until the next look, which is ``calm_s`` when nothing is watched; the last one took so long."""
        if any(pool.passive for pool in self._present.configuration.pools.values()):
            return min(calm_s, max(LOOK_S, last_look_s / LOOK_SHARE))
        return calm_s

    def look(self, counted: Mapping[str, ServerCounters]) -> None:
        """Take the counters of this moment into account."""
        configuration, now = self._present.configuration, self._clock()
        tracks: dict[str, Track] = {}
        suspects: dict[str, int] = {}
        for key, settings in self._watched():
            if key not in counted:
                continue
            streaks, connections = counted[key].streaks, counted[key].connections
            before = self._tracks.get(key, Track(streaks))  # what failed before this agent looked is not news
            tracks[key] = passive.follow(before, streaks, connections, settings.interval_s, now)
            failures = passive.in_a_row(tracks[key], connections)
            if failures >= settings.failures:
                suspects[key] = failures
        self._tracks = tracks
        runtime = found = self._present.runtime()
        if self._passed:
            runtime = passive.vouch(configuration, runtime, self._passed, now)
            self._passed = {}
        if suspects:
            runtime = passive.eject(configuration, runtime, suspects, now)
        if runtime.ejections != found.ejections:
            self._present.take(runtime)
            self._on_change()
        self._tell(suspects)

    def vouch(self, target: ProbeTarget) -> None:
        """A probe of ``target`` passed; what that means is decided with the next look, for all that passed together."""
        if self._vouchers and target in self._vouchers:  # hashing a target for each probe would cost
            self._passed[target] = self._clock()

    def _watched(self) -> Iterator[tuple[str, PassiveCheck]]:
        for pool in self._present.configuration.pools.values():
            if pool.passive is not None:
                for server in pool.servers:
                    yield server_key(pool.name, server.name), pool.passive

    def _tell(self, failures: Mapping[str, int]) -> None:
        runtime, now = self._present.runtime(), self._clock()
        out = {key: runtime.ejections[key].since for key in passive.ejected(runtime, now)}
        for key in sorted(key for key, since in self._out.items() if out.get(key) != since):
            self._events.record("server_returned", key, "is no longer ejected")
        for key in sorted(key for key, since in out.items() if self._out.get(key) != since):
            ejection = runtime.ejections[key]
            self._tracks.pop(key, None)  # to be ejected again it must fail again
            again = f", time {ejection.times} in a row" if ejection.times > 1 else ""
            why = f"{failures[key]} failures in a row, " if key in failures else ""
            self._totals[key] += key in failures
            self._events.record(
                "server_ejected", key, f"{why}out for {ejection.until - ejection.since:g} s{again}", level="warning"
            )
        configuration = self._present.configuration
        if out != self._out or configuration is not self._configuration:
            self._vouchers = passive.vouchers(configuration, runtime, now)
        self._out, self._configuration = out, configuration

# SPDX-License-Identifier: Apache-2.0
"""What holds now: the configuration in force, what happened since, and the decision that follows from both.

Invariant: a decision is made again only when something it rests on has changed or its moment has come, because it
costs time in proportion to the number of servers, and then only about the pools that it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeTarget, Verdict
from fairlead.model.shared import Shared, differing, shared
from fairlead.policy import derive
from fairlead.policy.derive import Derived, Runtime


class Present:
    """Configuration, runtime and the decision about them.

    Args:
        configuration: To begin with.
        states: The monitor's verdicts now.
        clock: Monotonic seconds.
        wall_clock: Seconds since the Unix epoch.
    """

    def __init__(
        self,
        configuration: Configuration,
        states: Callable[[], Mapping[ProbeTarget, HealthState]],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.configuration = configuration
        self._states = states
        self._clock = clock
        self._wall_clock = wall_clock
        self._runtime = Runtime()
        self._derived: Derived | None = None
        self._decided = False  # nothing has changed since
        self._since: Shared[str, tuple[Verdict | None, float]] = Shared()

    @property
    def is_decided(self) -> bool:
        """Whether nothing has changed since the last decision."""
        return self._decided

    @property
    def since(self) -> Mapping[str, float]:
        """By server key: seconds since the epoch at which its present verdict was reached."""
        return {key: moment for key, (_, moment) in self._since.items()}

    def runtime(self) -> Runtime:
        """What happened so far, with the monitor's verdicts of this moment."""
        states, held = shared(self._states()), shared(self._runtime.health)
        rest = held.without(states)  # of targets that the monitor does not have yet
        if rest is not held:
            self._runtime = replace(self._runtime, health=rest)
        return replace(self._runtime, health=rest.under(states))

    def take(self, runtime: Runtime, configuration: Configuration | None = None) -> None:
        """Go over to another runtime, and configuration."""
        self._runtime = runtime
        self.configuration = configuration or self.configuration
        self._decided = False

    def take_decided(self, derived: Derived) -> None:
        """Go over to a decision about another runtime or configuration that was made from the one in force."""
        before = self._derived
        self.take(derived.basis.runtime, derived.basis.configuration)
        self._derived, self._decided = derived, True
        self._note_verdicts(before, derived)

    def outdate(self) -> None:
        """A verdict has changed."""
        self._decided = False

    def decide(self) -> Derived:
        """What should be now."""
        now = self._clock()
        before = self._derived
        if before is not None and self._decided and (before.next_at is None or now < before.next_at):
            return before
        runtime = self.runtime()
        runtime = derive.noted(
            self.configuration, runtime, now, derive.touched(before, self.configuration, runtime, now)
        )
        self._runtime = replace(self._runtime, resting=runtime.resting, rising=runtime.rising)
        derived = self._derived = derive.desired(self.configuration, runtime, now, before)
        self._decided = True
        self._note_verdicts(before, derived)
        return derived

    def targets(self) -> Mapping[ProbeTarget, frozenset[str]]:
        """What is to be probed now."""
        return derive.targets(self.configuration, self._runtime)

    def _note_verdicts(self, before: Derived | None, derived: Derived) -> None:
        now_at, known = self._wall_clock(), self._since
        keys = derived.servers.keys() if before is None else differing(before.servers, derived.servers)
        changed: dict[str, tuple[Verdict | None, float]] = {}
        for key in keys:
            status = derived.servers.get(key)
            if status is not None and (key not in known or known[key][0] is not status.health):
                changed[key] = (status.health, now_at)
        gone = [key for key in keys if key not in derived.servers] if before is not None else ()
        self._since = known.changed(changed, gone)

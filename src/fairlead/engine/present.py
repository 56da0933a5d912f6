# SPDX-License-Identifier: Apache-2.0
"""What holds now: the configuration in force, what happened since, and the decision that follows from both.

Invariant: a decision is made again only when something it rests on has changed or its moment has come, because it
costs time in proportion to the number of servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeTarget, Verdict
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
        self._since: dict[str, tuple[Verdict | None, float]] = {}

    @property
    def is_decided(self) -> bool:
        """Whether nothing has changed since the last decision."""
        return self._derived is not None

    @property
    def since(self) -> Mapping[str, float]:
        """By server key: seconds since the epoch at which its present verdict was reached."""
        return {key: moment for key, (_, moment) in self._since.items()}

    def runtime(self) -> Runtime:
        """What happened so far, with the monitor's verdicts of this moment."""
        return replace(self._runtime, health={**self._runtime.health, **self._states()})

    def take(self, runtime: Runtime, configuration: Configuration | None = None) -> None:
        """Go over to another runtime, and configuration."""
        self._runtime = runtime
        self.configuration = configuration or self.configuration
        self._derived = None

    def outdate(self) -> None:
        """A verdict has changed."""
        self._derived = None

    def decide(self) -> Derived:
        """What should be now."""
        now = self._clock()
        derived = self._derived
        if derived is None or (derived.next_at is not None and now >= derived.next_at):
            runtime = derive.noted(self.configuration, self.runtime(), now)
            self._runtime = replace(self._runtime, resting=runtime.resting, rising=runtime.rising)
            derived = self._derived = derive.desired(self.configuration, runtime, now)
            self._note_verdicts(derived)
        return derived

    def targets(self) -> Mapping[ProbeTarget, frozenset[str]]:
        """What is to be probed now."""
        return derive.targets(self.configuration, self._runtime)

    def _note_verdicts(self, derived: Derived) -> None:
        now_at = self._wall_clock()
        known = self._since
        self._since = {
            key: known[key] if key in known and known[key][0] is status.health else (status.health, now_at)
            for key, status in derived.servers.items()
        }

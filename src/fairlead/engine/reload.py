# SPDX-License-Identifier: Apache-2.0
"""Going over to what the configuration file says now.

Invariants: an invalid file changes nothing; new servers were probed once before they can replace live ones; what did
not change is the same object as before, and is neither decided about again nor compared with what is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fairlead.config.load import Loaded
from fairlead.engine.changes import at_next_start
from fairlead.engine.events import Events
from fairlead.engine.present import Present
from fairlead.engine.probing import Probing
from fairlead.engine.reconciler import Reconciler
from fairlead.errors import ConfigError, Conflict
from fairlead.model.configuration import Configuration
from fairlead.model.views import ChangeResult
from fairlead.policy import derive
from fairlead.policy.derive import Derived, Runtime
from fairlead.policy.plan import describe


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last reload ended: when, in seconds since the Unix epoch, and what was wrong with the file."""

    at: float
    error: str | None = None


class Reload:
    """Reads the file again and goes over to it.

    Args:
        read: Reads and validates it; None: there is none.
        file: What the user calls it.
        present: What holds until then.
        probing: Probes new servers before they are used.
        reconciler: Says what is to be done.
        events: Where it is told.
        on_switch: Called when another configuration has come into force; returns when it is carried out.
        clock: Monotonic seconds.
        wall_clock: Seconds since the Unix epoch.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Loaded]] | None,
        file: str | None,
        *,
        present: Present,
        probing: Probing,
        reconciler: Reconciler,
        events: Events,
        on_switch: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._read = read
        self._file = file or ""
        self._present = present
        self._probing = probing
        self._reconciler = reconciler
        self._events = events
        self._on_switch = on_switch
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = asyncio.Lock()
        self.last = Outcome(wall_clock())

    async def run(self, *, dry_run: bool) -> ChangeResult:
        """Do it, or say what it would change.

        Raises:
            ConfigError: The file is invalid; nothing has changed.
            Conflict: There is no file, or another reload is under way.
            DataPlaneError: The data plane did not take all of it; the agent keeps trying.
        """
        if self._read is None:
            raise Conflict("the daemon runs without a configuration file; there is nothing to read again")
        if self._lock.locked():
            raise Conflict("another reload is under way; try again when it has ended")
        async with self._lock:
            try:
                loaded = await self._read()
            except ConfigError as error:
                if not dry_run:
                    self.last = Outcome(self._wall_clock(), str(error))
                    self._events.record("reload_failed", self._file, str(error), level="error")
                raise
            new = await asyncio.to_thread(loaded.configuration.keeping, self._present.configuration)
            if dry_run:
                return ChangeResult(self._difference(self._decided(new)))
            for warning in loaded.warnings:
                self._events.record("configuration_warning", warning.path, str(warning), level="warning")
            return await self._switch(new)

    async def _switch(self, new: Configuration) -> ChangeResult:
        other_pools = new.pools != self._present.configuration.pools
        if other_pools:
            after = self._transition(new, self._clock())
            wanted = {**self._present.targets(), **derive.targets(new, after)}
            await self._probing.first_results(wanted, after.health)
        derived = self._decided(new)
        changes = self._difference(derived)
        self._present.take_decided(derived)
        if other_pools:
            await self._probing.set(self._present.targets(), derived.basis.runtime.health)
        self.last = Outcome(self._wall_clock())
        self._events.record("reloaded", self._file, f"{len(changes)} changes", digest=new.digest)
        await self._on_switch()
        return ChangeResult(changes)

    def _decided(self, new: Configuration) -> Derived:
        """What would be with ``new`` in force."""
        now = self._clock()  # before the decision, that no moment of change comes between
        before = self._present.decide()
        return derive.desired(new, self._transition(new, now), now, before)

    def _transition(self, new: Configuration, now: float) -> Runtime:
        return derive.transition(self._present.configuration, new, self._present.runtime(), now)

    def _difference(self, derived: Derived) -> tuple[str, ...]:
        todo = self._reconciler.preview(derived.state)
        return (*map(describe, todo.ops), *at_next_start(self._present.configuration, derived.basis.configuration))

# SPDX-License-Identifier: Apache-2.0
"""The agent: holds configuration and runtime, joins monitor, policy and reconciler, and answers the API.

Invariants: every decision comes from ``policy``; all state changes happen on the event loop; a write is in the
store before it is answered; a configuration is switched only after its new servers were probed once, so that a
reload never replaces live servers by unknown ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from fairlead import __version__
from fairlead.config.load import Loaded
from fairlead.dataplane.base import Counters, DataPlane, FlowFilter
from fairlead.engine.events import Events
from fairlead.engine.monitor import Monitor
from fairlead.engine.reconciler import Reconciler
from fairlead.engine.store import Loss, Store
from fairlead.engine.views import server_views, service_views
from fairlead.errors import ConfigError, Conflict, DataPlaneError, FairleadError, NotFound
from fairlead.model.configuration import Configuration
from fairlead.model.health import ProbeTarget, Verdict
from fairlead.model.pool import AdminState
from fairlead.model.state import DesiredState, Plan
from fairlead.model.views import ChangeResult, EventView, FlowPage, HealthView, ServerView, ServiceView, StatusView
from fairlead.policy import derive
from fairlead.policy.derive import Derived, Runtime, ServerStatus
from fairlead.policy.plan import describe

HOUSEKEEPING_S = 1.0
FIRST_RESULTS_SLACK_S = 0.5  # beyond the longest probe timeout: when probes of many targets queue up
SAVE_DELAY_S = 0.2  # verdicts that change together are written together


@dataclass(frozen=True, slots=True)
class Parts:
    """What the agent is made of; the composition root fills it in.

    Attributes:
        read: Reads and validates the configuration again; None when the daemon runs without a file.
        clock: Monotonic seconds.
        wall_clock: Seconds since the Unix epoch.
    """

    dataplane: DataPlane
    monitor: Monitor
    events: Events
    store: Store
    read: Callable[[], Awaitable[Loaded]] | None
    clock: Callable[[], float]
    wall_clock: Callable[[], float]


class Agent:
    """One running daemon, without its API and its signals."""

    def __init__(self, parts: Parts, loaded: Loaded, config_file: str | None) -> None:
        self._parts = parts
        self._configuration = loaded.configuration
        self._config_file = config_file
        self._runtime = Runtime()
        self._derived: Derived | None = None
        self._reconciler = Reconciler(parts.dataplane, self._desired, parts.events, parts.clock)
        self._counters = Counters()
        self._since: dict[str, tuple[Verdict | None, float]] = {}
        self._reloading = asyncio.Lock()
        self._saving: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = False
        self._started_at = parts.wall_clock()
        self._reloaded: tuple[float, str | None] = (self._started_at, None)

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Adopt or start the data plane, probe everything once, and bring the data plane to the desired state.

        Raises:
            FairleadError: It cannot do its work, and nothing was running before that it could keep up.
        """
        parts = self._parts
        found = parts.store.load(self._configuration)
        if isinstance(found, Loss):
            parts.events.record("state_lost", "runtime directory", found.why, level="warning")
        elif found is not None:
            self._runtime = found
        self._runtime = derive.transition(self._configuration, self._configuration, self._runtime, parts.clock())
        await parts.dataplane.start()
        adopted = bool((await parts.dataplane.observe()).listeners)
        self._tasks.append(asyncio.create_task(parts.monitor.run(), name="monitor"))
        await self._first_results(derive.targets(self._configuration, self._runtime), self._runtime)
        convergence = await self._reconciler.reconcile()
        if convergence.error is not None and not adopted:
            raise FairleadError(convergence.error)
        self._tasks.append(asyncio.create_task(self._reconciler.run(), name="reconciler"))
        self._tasks.append(asyncio.create_task(self._housekeep(), name="housekeeping"))
        self._ready = True
        self._save()
        parts.events.record(
            "started",
            "fairlead",
            f"{len(self._configuration.services)} services, {'adopted running workers' if adopted else 'fresh start'}",
            version=__version__,
        )

    async def watch(self) -> None:
        """Return only by raising: one of the loops failed, which is a bug."""
        await asyncio.gather(*self._tasks)

    async def stop(self, *, drain_s: float) -> None:
        """Take no new flows, let the others end for up to ``drain_s`` seconds, end the workers."""
        await self._end_loops()
        await self._parts.dataplane.stop(drain_s=drain_s)

    async def detach(self) -> None:
        """End the agent and leave the workers forwarding."""
        await self._end_loops()
        await self._parts.dataplane.detach()

    async def _end_loops(self) -> None:
        self._ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._saving is not None:
            self._saving.cancel()
            self._save()

    # -- what drives it --------------------------------------------------------------------------------------

    def health_changed(self) -> None:
        """The monitor reached another verdict: decide anew and remember it."""
        self._derived = None
        self._reconciler.wake()
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_DELAY_S, self._save)

    def dataplane_changed(self) -> None:
        """The data plane lost or replaced something: look at once."""
        self._reconciler.wake()

    def _desired(self) -> tuple[DesiredState, float | None]:
        derived = self._decide()
        return derived.state, derived.next_at

    def _decide(self) -> Derived:
        """What should be now; decided again only when something changed or a deadline has passed."""
        now = self._parts.clock()
        derived = self._derived
        if derived is None or (derived.next_at is not None and now >= derived.next_at):
            self._runtime = self._with_health(self._runtime)
            derived = self._derived = derive.desired(self._configuration, self._runtime, now)
            self._note_verdicts(derived)
        return derived

    def _with_health(self, runtime: Runtime) -> Runtime:
        return replace(runtime, health=dict(self._parts.monitor.states()))

    def _note_verdicts(self, derived: Derived) -> None:
        now = self._parts.wall_clock()
        self._since = {
            key: kept
            if (kept := self._since.get(key)) is not None and kept[0] is status.health
            else (status.health, now)
            for key, status in derived.servers.items()
        }

    def _take(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._derived = None

    async def _first_results(self, wanted: Mapping[ProbeTarget, frozenset[str]], known: Runtime) -> None:
        """Probe ``wanted`` and wait until each target had a result, or could have had one.

        Targets that are new to the monitor start from what ``known`` knows of them.
        """
        self._parts.monitor.set_targets(wanted, known.health)
        longest_s = max((target.monitor.timeout_s for target in wanted), default=0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s + FIRST_RESULTS_SLACK_S):
                await self._parts.monitor.all_checked()
        self._derived = None

    async def _housekeep(self) -> None:
        """Once a second: read the counters, and let go of removed servers that have no flow left."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            # Only after a pass that left nothing to do is it sure that no table names a departed server any more:
            # its figure of active flows can then only fall.
            settled = self._reconciler.convergence.converged and self._derived is not None
            self._counters = await self._parts.dataplane.counters()
            if not settled:
                continue
            counted = self._counters.servers
            idle = frozenset(k for k in self._runtime.departures if k not in counted or counted[k].active == 0)
            runtime = derive.settle(self._configuration, self._runtime, self._parts.clock(), idle)
            if runtime != self._runtime:
                self._take(runtime)
                self._save()
                self._reconciler.wake()

    def _save(self) -> None:
        self._saving = None
        self._runtime = self._with_health(self._runtime)
        try:
            self._parts.store.save(self._runtime)
        except OSError as error:
            self._parts.events.record(
                "state_not_saved", "runtime directory", f"{error}; run-time states would not survive", level="error"
            )

    # -- what the API asks -----------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether the data plane was programmed once and the agent is not ending."""
        return self._ready

    def status(self) -> StatusView:
        """The daemon at a glance; the workers' figures are at most a second old."""
        convergence = self._reconciler.convergence
        reloaded_at, reload_error = self._reloaded
        return StatusView(
            version=__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            config_file=self._config_file,
            config_digest=self._configuration.digest,
            last_reload_at=reloaded_at,
            last_reload_ok=reload_error is None,
            last_reload_error=reload_error,
            converged=convergence.converged,
            pending_error=convergence.error,
            drift_repairs_total=convergence.drift_repairs,
            workers=self._counters.workers,
        )

    async def servers(self) -> tuple[ServerView, ...]:
        """All servers with their figures now."""
        self._counters = await self._parts.dataplane.counters()
        since = {key: moment for key, (_, moment) in self._since.items()}
        return server_views(self._decide(), self._counters, since, self._to_wall)

    async def services(self) -> tuple[ServiceView, ...]:
        """All services with their figures now."""
        servers = await self.servers()
        return service_views(self._configuration, self._decide(), self._counters, servers)

    def _to_wall(self, moment: float) -> float:
        return moment - self._parts.clock() + self._parts.wall_clock()

    def health(self) -> tuple[HealthView, ...]:
        """All probed targets."""
        return self._parts.monitor.views()

    def events(self, after: int, limit: int) -> tuple[EventView, ...]:
        """The oldest ``limit`` events that came after ``after``."""
        return self._parts.events.after(after, limit)

    async def wait_event(self, after: int, timeout_s: float) -> None:
        """Return when there is a newer event, or after ``timeout_s`` seconds."""
        await self._parts.events.wait(after, timeout_s)

    async def connections(self, service: str | None, server: str | None, cursor: str | None, limit: int) -> FlowPage:
        """One page of connections.

        Raises:
            NotFound: ``service`` or ``server`` is not configured.
        """
        if service is not None and service not in self._configuration.services:
            raise NotFound(_unknown("service", service, self._configuration.services))
        if server is not None and server not in self._decide().servers:
            raise NotFound(_unknown("server", server, self._decide().servers))
        return await self._parts.dataplane.flows(FlowFilter(service, server), cursor, limit)

    async def set_server(
        self, key: str, *, admin: AdminState | None, weight: int | None, dry_run: bool
    ) -> ChangeResult:
        """Change administrative state or weight at run time.

        Raises:
            NotFound: No such server.
            Conflict: It was removed and only its flows are left.
            DataPlaneError: The data plane did not take it; the agent keeps trying.
        """
        if key in self._runtime.departures:
            raise Conflict(f"{key} was removed from the configuration; only its last flows are left")
        now = self._parts.clock()
        runtime = self._runtime
        if admin is not None:
            runtime = derive.set_admin(self._configuration, runtime, key, admin, now)
        if weight is not None:
            runtime = derive.set_weight(self._configuration, runtime, key, weight, now)
        before = self._decide().servers.get(key)
        decided = derive.desired(self._configuration, self._with_health(runtime), now)
        changes = _server_changes(before, decided.servers[key])
        if dry_run or not changes:
            return ChangeResult(changes)
        self._take(runtime)
        self._save()
        self._parts.monitor.set_targets(derive.targets(self._configuration, runtime), self._runtime.health)
        self._parts.events.record("server_changed", key, "; ".join(changes))
        await self._reconcile()
        return ChangeResult(changes)

    async def reload(self, dry_run: bool) -> ChangeResult:
        """Read the file again and go over to it.

        Raises:
            ConfigError: It is invalid; nothing has changed.
            Conflict: There is no file, or another reload is under way.
            DataPlaneError: The data plane did not take all of it; the agent keeps trying.
        """
        if self._parts.read is None:
            raise Conflict("the daemon runs without a configuration file; there is nothing to read again")
        if self._reloading.locked():
            raise Conflict("another reload is under way; try again when it has ended")
        async with self._reloading:
            try:
                loaded = await self._parts.read()
            except ConfigError as error:
                if not dry_run:
                    self._reloaded = (self._parts.wall_clock(), str(error))
                    self._parts.events.record("reload_failed", self._config_file or "", str(error), level="error")
                raise
            return await self._switch(loaded, dry_run=dry_run)

    async def _switch(self, loaded: Loaded, *, dry_run: bool) -> ChangeResult:
        old, new = self._configuration, loaded.configuration
        if dry_run:
            runtime = derive.transition(old, new, self._with_health(self._runtime), self._parts.clock())
            return ChangeResult((*_changes(self._preview(new, runtime)), *_at_next_start(old, new)))
        if new.pools != old.pools:
            after = derive.transition(old, new, self._with_health(self._runtime), self._parts.clock())
            wanted = {**derive.targets(old, self._runtime), **derive.targets(new, after)}
            await self._first_results(wanted, after)
        runtime = derive.transition(old, new, self._with_health(self._runtime), self._parts.clock())
        changes = (*_changes(self._preview(new, runtime)), *_at_next_start(old, new))
        self._configuration = new
        self._take(runtime)
        self._parts.monitor.set_targets(derive.targets(new, runtime), runtime.health)
        self._reloaded = (self._parts.wall_clock(), None)
        self._save()
        self._parts.events.record("reloaded", self._config_file or "", f"{len(changes)} changes", digest=new.digest)
        await self._reconcile()
        return ChangeResult(changes)

    def _preview(self, configuration: Configuration, runtime: Runtime) -> Plan:
        return self._reconciler.preview(derive.desired(configuration, runtime, self._parts.clock()).state)

    async def _reconcile(self) -> None:
        convergence = await self._reconciler.reconcile()
        if convergence.error is not None:
            raise DataPlaneError(f"accepted, but not yet in force: {convergence.error}; the daemon keeps trying")


def _changes(todo: Plan) -> tuple[str, ...]:
    return tuple(describe(op) for op in todo.ops)


def _at_next_start(old: Configuration, new: Configuration) -> tuple[str, ...]:
    later = []
    if new.workers != old.workers:
        later.append("proxy.workers takes effect at the next start")
    if new.api != old.api:
        later.append("api takes effect at the next start")
    return tuple(later)


def _server_changes(before: ServerStatus | None, after: ServerStatus) -> tuple[str, ...]:
    if before is None:
        return ()
    pairs = (("state", before.admin.value, after.admin.value), ("weight", before.weight, after.weight))
    return tuple(f"{word} {old} -> {new}" for word, old, new in pairs if old != new)


def _unknown(kind: str, name: str, known: Mapping[str, object]) -> str:
    return f"no {kind} {name!r}; known: {', '.join(sorted(known)[:10]) or 'none'}"

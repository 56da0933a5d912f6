# SPDX-License-Identifier: Apache-2.0
"""The agent: joins monitor, policy and reconciler, and answers what the API asks (``api.facade.Facade``).

Invariants: every decision comes from ``policy``; all state changes happen on the event loop; a write is in the
store before it is answered.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fairlead import __version__
from fairlead.announce.base import Announcer, Event
from fairlead.config.load import Loaded
from fairlead.dataplane.base import Counters, DataPlane, FlowFilter
from fairlead.engine.advice import Advice
from fairlead.engine.certificates import CertificateWatch
from fairlead.engine.changes import server_changes, unknown
from fairlead.engine.events import Events
from fairlead.engine.explain import explain
from fairlead.engine.monitor import Monitor
from fairlead.engine.outliers import Outliers
from fairlead.engine.ownership import Ownership
from fairlead.engine.present import Present
from fairlead.engine.probing import Probing
from fairlead.engine.reconciler import Reconciler
from fairlead.engine.reload import Reload
from fairlead.engine.saver import Saver
from fairlead.engine.service_states import ServiceStates
from fairlead.engine.store import Loss, Store
from fairlead.engine.views import server_views, service_views
from fairlead.errors import Conflict, DataPlaneError, FairleadError, NotFound
from fairlead.model.configuration import Configuration
from fairlead.model.health import ProbeResult, ProbeTarget, Verdict
from fairlead.model.net import FlowQuestion
from fairlead.model.pool import AdminState, MonitorType
from fairlead.model.service import Forwarding
from fairlead.model.state import DesiredState
from fairlead.model.views import (
    ChangeResult,
    EventView,
    ExplainView,
    FlowPage,
    HealthView,
    ServerView,
    ServiceView,
    StatusView,
    VipView,
    VrrpView,
)
from fairlead.model.vip import STATIC
from fairlead.policy import derive
from fairlead.policy.health import Transition

HOUSEKEEPING_S = 1.0


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
    announcer: Announcer


class Agent:
    """One running daemon, without its API and its signals."""

    def __init__(self, parts: Parts, configuration: Configuration, config_file: str | None) -> None:
        self._parts = parts
        self._config_file = config_file
        self._present = Present(configuration, parts.monitor.states, parts.clock, parts.wall_clock)
        self._saver = Saver(parts.store, self._present.runtime, parts.events)
        self._reconciler = Reconciler(parts.dataplane, self._desired, parts.events, parts.clock)
        self._outliers = Outliers(self._present, parts.events, parts.clock, self._decide_anew)
        self._services = ServiceStates(parts.events)
        self._probing = Probing(parts.monitor, parts.dataplane, self._present)
        self._reload = Reload(
            parts.read,
            config_file,
            present=self._present,
            probing=self._probing,
            reconciler=self._reconciler,
            events=parts.events,
            on_switch=self._switched,
            clock=parts.clock,
            wall_clock=parts.wall_clock,
        )
        self._advice = Advice(self._present, parts.events, self._decide_anew)
        self._certificates = CertificateWatch(parts.events, parts.wall_clock)
        self._ownership = Ownership(
            parts.announcer,
            configuration=lambda: self._present.configuration,
            services=lambda: self._present.decide().services,
            dataplane=self._self_test,
            clock=parts.clock,
            wall_clock=parts.wall_clock,
        )
        self._counters = Counters()
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = False
        self._adopted = False
        self._started_at = parts.wall_clock()

    async def start(self) -> None:
        """Adopt or start the data plane, probe everything once, and bring the data plane to the desired state.

        Raises:
            FairleadError: It cannot do its work, and nothing was running before that it could keep up.
        """
        self._restore()
        await self._parts.announcer.start()
        self._ownership.decide()
        self._own_addresses()
        await self._parts.dataplane.start()
        held = await self._parts.dataplane.observe()
        self._adopted = bool(held.listeners)
        # What was removed from the file while no agent ran still has its time to end.
        after = derive.adopt(
            self._present.configuration, self._present.runtime(), held.servers.values(), self._parts.clock()
        )
        self._present.take(after)
        self._tasks.append(asyncio.create_task(self._parts.monitor.run(), name="monitor"))
        await self._probing.first_results(self._present.targets(), self._present.runtime().health)
        convergence = await self._reconciler.reconcile()
        if convergence.error is not None and not self._adopted:
            raise FairleadError(convergence.error)
        self._tasks.append(asyncio.create_task(self._reconciler.run(), name="reconciler"))
        self._ownership.allow()
        self._tasks.append(asyncio.create_task(self._ownership.run(), name="ownership"))
        self._counters = await self._parts.dataplane.counters(brief=True)
        self._tasks.append(asyncio.create_task(self._housekeep(), name="housekeeping"))
        self._ready = True
        await self._saver.now()
        how = "adopted the running workers" if self._adopted else "fresh start"
        services = len(self._present.configuration.services)
        self._parts.events.record("started", "fairlead", f"services: {services}, {how}", version=__version__)

    def _restore(self) -> None:
        """Take over what an earlier agent left."""
        configuration = self._present.configuration
        found = self._parts.store.load(configuration)
        if isinstance(found, Loss):
            self._parts.events.record("state_lost", "runtime directory", found.why, level="warning")
        elif found is not None:
            self._present.take(derive.transition(configuration, configuration, found, self._parts.clock()))

    async def watch(self) -> None:
        """Return only by raising: one of the loops failed, which is a bug."""
        await asyncio.gather(*self._tasks)

    async def stop(self, *, drain_s: float) -> None:
        """Hand VIPs over, take no new flows, let the others end for up to ``drain_s`` seconds, end the workers."""
        await self._end_loops()
        await self._hand_over()
        await self._parts.dataplane.stop(drain_s=drain_s if self._keeps_an_address() else 0.0)
        await self._parts.announcer.stop()

    async def _hand_over(self) -> None:
        """VIPs go first. What the kernel forwards lives on at the next owner, if nothing meets a node without program;
        connections of the proxy end with the move, and nothing is gained by waiting.
        """
        if any(it.forwarding is not Forwarding.PROXY for it in self._present.configuration.services.values()):
            await self._ownership.hand_over()
        else:
            self._ownership.withdraw()

    def _keeps_an_address(self) -> bool:
        """Whether connections can end here in their own time: those to addresses that have moved cannot."""
        configuration = self._present.configuration
        moved = {vip.address for vip in configuration.vips if vip.owner != STATIC}
        return any(at.address not in moved for it in configuration.services.values() for at in it.listen)

    async def detach(self) -> None:
        """End the agent and leave the workers forwarding."""
        await self._end_loops()
        await self._parts.announcer.detach()
        await self._parts.dataplane.detach()

    async def abandon(self) -> None:
        """End after a failed start: what was adopted goes on, what was started for it ends."""
        if self._adopted:
            await self.detach()
        else:
            await self.stop(drain_s=0.0)

    @property
    def longest_drain_s(self) -> float:
        """How long flows may take to end when the daemon stops."""
        return max((pool.drain_timeout_s for pool in self._present.configuration.pools.values()), default=0.0)

    async def _end_loops(self) -> None:
        self._ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._saver.close()

    def probed(self, target: ProbeTarget, result: ProbeResult) -> None:
        """The monitor has a result, which need not change a verdict."""
        self._certificates.look(target, result)
        if result.report is not None:
            self._advice.hear(target, result.report)
        if result.passed:
            self._outliers.vouch(target)

    def health_changed(self, target: ProbeTarget, pools: frozenset[str], transition: Transition) -> None:
        """The monitor reached another verdict: tell it, decide anew, remember it."""
        up = transition.verdict is Verdict.UP
        kind = f"health_{transition.verdict}"
        if target.monitor.type is MonitorType.AGENT:
            kind = "agent_answers" if up else "agent_silent"
        self._parts.events.record(
            kind,
            target.place,
            f"{target.monitor.type} probe of {', '.join(sorted(pools))}: {transition.detail}",
            level="info" if up else "warning",
            reason=transition.reason,
        )
        self._decide_anew()

    def _decide_anew(self) -> None:
        """Something that decisions rest on has changed: act on it, and remember it."""
        self._present.outdate()
        self._reconciler.wake(thorough=False)
        self._ownership.wake()
        self._saver.soon()

    def dataplane_changed(self) -> None:
        """The data plane lost or replaced something: look at once."""
        self._reconciler.wake()

    def _self_test(self) -> str | None:
        """What keeps the data plane from its work, if anything does."""
        trouble = self._parts.dataplane.trouble()
        if trouble is not None:
            self._reconciler.wake()  # what can be repaired is, at once
        return self._reconciler.convergence.error or trouble

    def announced(self, event: Event) -> None:
        """Something happened to a VIP."""
        self._parts.events.record(
            event.kind, event.subject, event.message, level=event.level, ago_s=round(event.ago_s, 3)
        )

    def _own_addresses(self) -> None:
        """The data plane may offer services at addresses that come and go."""
        self._parts.dataplane.set_vips(frozenset(self._present.configuration.vips))

    def _desired(self) -> tuple[DesiredState, float | None]:
        derived = self._present.decide()
        self._services.look(self._present.configuration, derived)
        return derived.state, derived.next_at

    async def _housekeep(self) -> None:
        """Read the counters, once a second or faster, and act on what they say.

        Servers whose traffic fails are ejected; removed servers that have no flow left are let go.
        """
        took_s = 0.0
        while True:
            await asyncio.sleep(self._outliers.pace_s(HOUSEKEEPING_S, took_s))
            began = self._parts.clock()
            # Only after a pass that left nothing to do is it sure that no table names a departed server any more:
            # its figure of active flows can then only fall.
            settled = self._reconciler.convergence.converged and self._present.is_decided
            brief = not self._present.runtime().departures  # whose flows are counted until none is left
            self._counters = await self._parts.dataplane.counters(brief=brief)
            self._outliers.look(self._counters.servers)
            took_s = self._parts.clock() - began
            runtime = self._present.runtime()
            if not settled or not runtime.departures:
                continue
            counted = self._counters.servers
            idle = frozenset(key for key in runtime.departures if key not in counted or counted[key].active == 0)
            after = derive.settle(self._present.configuration, runtime, self._parts.clock(), idle)
            if after.departures != runtime.departures:
                self._present.take(after)
                await self._saver.now()
                self._reconciler.wake(thorough=False)

    def ready(self) -> bool:
        """Whether the data plane was programmed once and the agent is not ending."""
        return self._ready

    def status(self) -> StatusView:
        """The daemon at a glance; the workers' figures are at most a second old."""
        convergence = self._reconciler.convergence
        reloaded = self._reload.last
        return StatusView(
            version=__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            config_file=self._config_file,
            config_digest=self._present.configuration.digest,
            last_reload_at=reloaded.at,
            last_reload_ok=reloaded.error is None,
            last_reload_error=reloaded.error,
            converged=convergence.converged,
            pending_error=self._self_test(),
            drift_repairs_total=convergence.drift_repairs,
            workers=self._counters.workers,
            packets=dict(self._counters.packets),
        )

    async def servers(self) -> tuple[ServerView, ...]:
        """All servers with their figures now."""
        self._counters = await self._parts.dataplane.counters()
        counted = self._counters
        return server_views(self._present.decide(), counted, self._present.since, self._to_wall, self._outliers.totals)

    async def services(self) -> tuple[ServiceView, ...]:
        """All services with their figures now."""
        servers = await self.servers()
        return service_views(self._present.configuration, self._present.decide(), self._counters, servers)

    def _to_wall(self, moment: float) -> float:
        return moment - self._parts.clock() + self._parts.wall_clock()

    def health(self) -> tuple[HealthView, ...]:
        """All probed targets."""
        return self._parts.monitor.views()

    def vips(self) -> tuple[VipView, ...]:
        """All VIPs, as they were at most a second ago."""
        return self._ownership.vips()

    def vrrp(self) -> tuple[VrrpView, ...]:
        """All VRRP instances, as they were at most a second ago."""
        return self._ownership.vrrp()

    async def move_vip(self, address: str, action: str, *, dry_run: bool) -> ChangeResult:
        """Hand over or take over the VRRP instance of a VIP; ``action`` is ``release`` or ``claim``.

        Raises:
            NotFound: No such VIP.
            Conflict: It cannot be moved.
        """
        changes = self._ownership.move(address, action, dry_run=dry_run)
        if changes and not dry_run:
            self._parts.events.record(f"vip_{action}", address, "; ".join(changes))
        return ChangeResult(changes)

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
        services, servers = self._present.configuration.services, self._present.decide().servers
        if service is not None and service not in services:
            raise NotFound(unknown("service", service, services))
        if server is not None and server not in servers:
            raise NotFound(unknown("server", server, servers))
        return await self._parts.dataplane.flows(FlowFilter(service, server), cursor, limit)

    async def explain(self, question: FlowQuestion, without: str | None) -> ExplainView:
        """Where a flow goes and why; ``without`` names a server that is to be thought away.

        Raises:
            NotFound: No service is there, or no such server.
            Conflict: The server is none of the service's.
        """
        return await explain(self._present, self._parts.dataplane, question, without, self._parts.clock())

    async def set_server(
        self, key: str, *, admin: AdminState | None, weight: int | None, dry_run: bool
    ) -> ChangeResult:
        """Change administrative state or weight at run time.

        Raises:
            NotFound: No such server.
            Conflict: It was removed and only its flows are left.
            DataPlaneError: The data plane did not take it; the agent keeps trying.
        """
        now = self._parts.clock()  # before the decision, that no moment of change comes between
        decided = self._present.decide()
        configuration, runtime = self._present.configuration, self._present.runtime()
        if key in runtime.departures:
            raise Conflict(f"{key} was removed from the configuration; only its last flows are left")
        if admin is not None:
            runtime = derive.set_admin(configuration, runtime, key, admin, now)
        if weight is not None:
            runtime = derive.set_weight(configuration, runtime, key, weight, now)
        derived = derive.desired(configuration, runtime, now, decided)
        before, after = decided.servers.get(key), derived.servers[key]
        changes = server_changes(before, after)
        if not changes or dry_run:
            return ChangeResult(changes)
        self._present.take_decided(derived)
        await self._saver.now()
        if before is None or AdminState.MAINT in {before.admin, after.admin}:
            await self._probing.set(self._present.targets(), runtime.health)
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
        return await self._reload.run(dry_run=dry_run)

    async def _switched(self) -> None:
        """Another configuration has come into force."""
        self._own_addresses()
        self._ownership.wake()
        await self._saver.now()
        await self._reconcile()

    async def _reconcile(self) -> None:
        convergence = await self._reconciler.reconcile(thorough=False)
        if convergence.error is not None:
            raise DataPlaneError(f"accepted, but not yet in force: {convergence.error}; the daemon keeps trying")

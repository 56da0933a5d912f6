# SPDX-License-Identifier: Apache-2.0
"""Joins policy and announcer: which VIPs this node should own, what came of it, and the operator's word on it.

Invariant: the announcer is told a complete wish whenever something that it rests on may have changed; telling it
the same again costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Container, Mapping

from fairlead.announce.base import Announcer, Stance, Wanted
from fairlead.engine.changes import unknown
from fairlead.errors import Conflict, NotFound
from fairlead.model.configuration import Configuration
from fairlead.model.views import VipView, VrrpView
from fairlead.model.vip import STATIC, Vip
from fairlead.policy import eligibility
from fairlead.policy.eligibility import Eligibility
from fairlead.policy.status import ServiceStatus

LOOK_S = 0.5  # how often the self-test of the data plane is looked at
LOOK_AGAIN_S = 0.01  # at what changes in a moment
HANDOVER_S = 2.0  # longer than the process keeps addresses after it was told to hand them over
SETTLE_S = 1.2  # while the next owner tells the neighbours: single announcements get lost


class Ownership:
    """The VIPs of one daemon.

    Args:
        announcer: Who owns them.
        configuration: Returns what is configured now.
        services: Returns how the services are.
        dataplane: Returns what the data plane's self-test found, or None.
        clock: Monotonic seconds.
        wall_clock: Seconds since the Unix epoch.
    """

    def __init__(
        self,
        announcer: Announcer,
        *,
        configuration: Callable[[], Configuration],
        services: Callable[[], Mapping[str, ServiceStatus]],
        dataplane: Callable[[], str | None],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._announcer = announcer
        self._configuration = configuration
        self._services = services
        self._dataplane = dataplane
        self._clock = clock
        self._wall_clock = wall_clock
        self._states: dict[str, Eligibility] = {}
        self._ready = False
        self._withdrawn = False
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something changed: decide soon."""
        self._changed.set()

    def allow(self) -> None:
        """The first verdicts are complete: instances may take part."""
        self._ready = True
        self.decide()

    def withdraw(self) -> None:
        """Hand over what others can take; addresses of this node alone stay until the end."""
        self._withdrawn = True
        self.decide()

    async def hand_over(self) -> None:
        """Withdraw, and return when nobody sends here any more what others have taken.

        Until then packets still come and must be forwarded: the host itself would answer them with RST.
        """
        shared = {str(vip) for vip in self._configuration().vips if vip.owner != STATIC}
        held = self._holds(shared)
        self.withdraw()
        if not held:
            return
        limit = self._clock() + HANDOVER_S
        while self._holds(shared) and self._clock() < limit:  # noqa: ASYNC110  # a report tells nobody that it changed
            await asyncio.sleep(LOOK_AGAIN_S)
        await asyncio.sleep(SETTLE_S)

    def _holds(self, vips: Container[str]) -> bool:
        return any(it.held for it in self._announcer.report().vips if it.vip in vips)

    def decide(self) -> None:
        """Tell the announcer what is wished now."""
        configuration, services, now = self._configuration(), self._services(), self._clock()
        instances = () if self._withdrawn else tuple(configuration.vrrp.values())
        named = {instance.name for instance in instances} | {STATIC}
        self._states = {name: state for name, state in self._states.items() if name in named}
        # Before the first verdicts every service looks down: that is no fault, and nothing is said about it.
        stances = {instance.name: Stance(ready=False) for instance in instances}
        for instance in instances if self._ready else ():
            found = eligibility.fault(instance.follow, services, configuration, self._dataplane())
            state = eligibility.step(self._states.get(instance.name, Eligibility()), found, now)
            self._states[instance.name] = state
            stances[instance.name] = Stance(ready=True, degraded=state.degraded)
        vips = tuple(vip for vip in configuration.vips if vip.owner in named)
        self._announcer.set(Wanted(vips, instances, stances))

    async def run(self) -> None:
        """Decide on every wake and every moment. Never returns."""
        while True:
            self._changed.clear()
            self.decide()
            moments = [moment for state in self._states.values() if (moment := eligibility.next_at(state)) is not None]
            wait_s = min([LOOK_S, *(max(0.0, moment - self._clock()) for moment in moments)])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    def vips(self) -> tuple[VipView, ...]:
        """Every configured address, as this node sees it."""
        report, now = self._announcer.report(), self._wall_clock()
        found = {vip.vip: vip for vip in report.vips}
        instances = {instance.name: instance for instance in report.instances}
        views = []
        for vip in self._configuration().vips:
            seen, instance = found.get(str(vip)), instances.get(vip.owner)
            state = (STATIC if vip.owner == STATIC else "unknown") if instance is None else instance.state
            detail = [] if instance is None else [instance.why]
            if seen is not None and seen.trouble is not None:
                detail.append(seen.trouble)
            views.append(
                VipView(
                    vip=str(vip),
                    interface=vip.interface,
                    owner=vip.owner,
                    state=state,
                    held=seen is not None and seen.held,
                    since_at=now if seen is None else now - seen.since_s,
                    active=None if instance is None else instance.active,
                    answered_by=() if seen is None else seen.answered_by,
                    conflict=seen is not None and seen.conflict,
                    conflicts_total=0 if seen is None else seen.conflicts_total,
                    restored_total=0 if seen is None else seen.restored_total,
                    detail="; ".join(filter(None, detail)),
                )
            )
        return tuple(views)

    def vrrp(self) -> tuple[VrrpView, ...]:
        """Every instance that takes part."""
        report, now = self._announcer.report(), self._wall_clock()
        configured = self._configuration().vrrp
        return tuple(
            VrrpView(
                name=it.name,
                interface=configured[it.name].interface,
                vrid=configured[it.name].vrid,
                version=configured[it.name].version,
                state=it.state,
                priority=it.priority,
                configured_priority=configured[it.name].priority,
                why=it.why,
                since_at=now - it.since_s,
                active=it.active,
                released=it.released,
                transitions_total=it.transitions_total,
                sent_total=it.sent_total,
                received_total=it.received_total,
                conflicts_total=it.conflicts_total,
                invalid={reason: n for reason, n in report.invalid.get(configured[it.name].interface, {}).items() if n},
            )
            for it in report.instances
            if it.name in configured
        )

    def move(self, address: str, action: str, *, dry_run: bool) -> tuple[str, ...]:
        """Release or claim the instance that owns ``address``; what that changes.

        Raises:
            NotFound: No such VIP.
            Conflict: It cannot be moved.
        """
        vip = self._find(address)
        if vip.owner == STATIC:
            raise Conflict(f"{vip} is static: no other node would take it; remove it from the configuration instead")
        state = next((it for it in self._announcer.report().instances if it.name == vip.owner), None)
        if state is None:
            raise Conflict(
                f"the process for VIPs does not run, so {vip} cannot be moved; `fairlead show events` says why"
            )
        moved = [str(it) for it in self._configuration().vips if it.owner == vip.owner]
        if action == "release":
            changes = () if state.released and state.state != "active" else (f"release {', '.join(moved)}",)
        else:
            degraded = self._states.get(vip.owner, Eligibility()).degraded
            if degraded is not None:
                raise Conflict(f"this node should not own {vip} now: {degraded}")
            changes = () if state.state == "active" and not state.released else (f"claim {', '.join(moved)}",)
        if changes and not dry_run:
            (self._announcer.release if action == "release" else self._announcer.claim)(vip.owner)
        return changes

    def _find(self, address: str) -> Vip:
        host = address.partition("/")[0].strip("[]")
        known = {str(vip.address): vip for vip in self._configuration().vips}
        if host not in known:
            raise NotFound(unknown("vip", host, known))
        return known[host]

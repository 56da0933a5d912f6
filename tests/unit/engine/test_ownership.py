# SPDX-License-Identifier: Apache-2.0
"""What the agent wishes of the announcer, and what it says of it."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Any

import pytest

from fairlead.announce.base import InstanceReport, Report, Stance, VipReport
from fairlead.engine.ownership import HANDOVER_S, SETTLE_S, Ownership
from fairlead.errors import Conflict, NotFound
from fairlead.model.state import ServiceMode
from fairlead.model.vip import STATIC, Vip, VrrpInstance
from fairlead.policy.status import ServiceStatus
from support.announcer import FakeAnnouncer
from support.models import configuration, pool, server, service
from support.virtual import run_virtually

PAIR = Vip(ip_address("192.0.2.10"), 24, "eth0", "pair")
FIXED = Vip(ip_address("192.0.2.11"), 24, "eth0", STATIC)
UP = ServiceStatus("web", "up", ServiceMode.FORWARD, 1)
DOWN = ServiceStatus("web", "down", ServiceMode.REJECT, 0)


class Bench:
    """An Ownership over a fake announcer and a clock that a test turns."""

    def __init__(self) -> None:
        self.announcer = FakeAnnouncer()
        self.site = configuration(
            service(),
            pool(server("10.0.0.1:80")),
            vips=(PAIR, FIXED),
            vrrp={"pair": VrrpInstance("pair", "eth0", 51, follow=("web",))},
        )
        self.status, self.fault, self.now = UP, None, 100.0
        self.ownership = Ownership(
            self.announcer,
            configuration=lambda: self.site,
            services=lambda: {"web": self.status},
            dataplane=lambda: self.fault,
            clock=lambda: self.now,
            wall_clock=lambda: 1000.0,
        )

    def stance(self) -> Stance:
        self.ownership.decide()
        return self.announcer.wanted.stances["pair"]

    def report(self, **changes: Any) -> None:
        told: dict[str, Any] = {
            "name": "pair", "state": "active", "priority": 100, "why": "timeout", "since_s": 5.0, "active": "192.0.2.1",
            "released": False, "transitions_total": 2, "sent_total": 50, "received_total": 3, "conflicts_total": 0,
        }  # fmt: skip
        vip = VipReport("192.0.2.10/24", True, 5.0, True, 1, 0, ("02:00:00:00:00:09",), None)
        self.announcer.told = Report((vip,), (InstanceReport(**(told | changes)),), {"eth0": {"ttl": 2, "short": 0}})


def test_nothing_is_said_before_the_first_verdicts() -> None:
    bench = Bench()
    bench.status = DOWN
    assert bench.stance() == Stance(ready=False)
    assert bench.announcer.wanted.vips == (PAIR, FIXED)
    bench.status = UP
    bench.ownership.allow()
    assert bench.stance() == Stance(ready=True), "and what came before is no fault"


def test_a_followed_service_that_is_down_degrades() -> None:
    bench = Bench()
    bench.ownership.allow()
    bench.status = DOWN
    assert bench.stance().degraded == "service web is down"
    bench.status = UP
    assert bench.stance().degraded is not None
    bench.now += 5.1
    bench.stance()
    bench.now += 5.1
    assert bench.stance().degraded is None


def test_a_stop_hands_over_and_keeps_what_nobody_else_takes() -> None:
    bench = Bench()
    bench.ownership.allow()
    bench.ownership.withdraw()
    assert bench.announcer.wanted.instances == ()
    assert bench.announcer.wanted.vips == (FIXED,)


def test_a_hand_over_ends_when_the_neighbours_know_the_next_owner() -> None:
    """Not before: what still comes here must be forwarded."""

    async def run() -> None:
        bench, loop = Bench(), asyncio.get_running_loop()
        bench.ownership._clock = loop.time
        bench.ownership.allow()
        bench.report()
        ending = asyncio.create_task(bench.ownership.hand_over())
        await asyncio.sleep(0.2)
        assert bench.announcer.wanted.instances == ()
        bench.announcer.told = Report()
        await ending
        assert 0.2 + SETTLE_S <= loop.time() < 0.3 + SETTLE_S

    run_virtually(run())


def test_a_hand_over_does_not_wait_for_a_process_that_says_nothing_and_not_for_nothing() -> None:
    async def run() -> None:
        bench, loop = Bench(), asyncio.get_running_loop()
        bench.ownership._clock = loop.time
        await bench.ownership.hand_over()
        assert loop.time() == 0.0, "no address was here"
        bench.report()
        await bench.ownership.hand_over()
        assert loop.time() < HANDOVER_S + SETTLE_S + 0.1

    run_virtually(run())


def test_views_join_configuration_and_report() -> None:
    bench = Bench()
    vip, fixed = bench.ownership.vips()
    assert (vip.state, vip.held, fixed.state) == ("unknown", False, "static")
    assert bench.ownership.vrrp() == ()
    bench.report()
    vip, _ = bench.ownership.vips()
    assert (vip.state, vip.held, vip.since_at, vip.active) == ("active", True, 995.0, "192.0.2.1")
    assert (vip.conflict, vip.answered_by) == (True, ("02:00:00:00:00:09",))
    (instance,) = bench.ownership.vrrp()
    assert (instance.vrid, instance.configured_priority, instance.invalid) == (51, 100, {"ttl": 2})


def test_release_and_claim() -> None:
    bench = Bench()
    bench.ownership.allow()
    bench.report()
    assert bench.ownership.move("192.0.2.10/24", "release", dry_run=True) == ("release 192.0.2.10/24",)
    assert bench.announcer.commands == []
    bench.ownership.move("192.0.2.10", "release", dry_run=False)
    assert bench.announcer.commands == [("release", "pair")]
    assert bench.ownership.move("192.0.2.10", "claim", dry_run=False) == (), "it owns it already"
    bench.report(state="backup", released=True)
    assert bench.ownership.move("192.0.2.10", "release", dry_run=False) == ()
    assert bench.ownership.move("192.0.2.10", "claim", dry_run=False) == ("claim 192.0.2.10/24",)


def test_what_cannot_be_moved_says_why() -> None:
    bench = Bench()
    bench.ownership.allow()
    with pytest.raises(NotFound, match=r"192\.0\.2\.12.*192\.0\.2\.1"):
        bench.ownership.move("192.0.2.12", "claim", dry_run=False)
    with pytest.raises(Conflict, match="static"):
        bench.ownership.move("192.0.2.11", "release", dry_run=False)
    with pytest.raises(Conflict, match="does not run"):
        bench.ownership.move("192.0.2.10", "release", dry_run=False)
    bench.report(state="backup")
    bench.status = DOWN
    bench.ownership.decide()
    with pytest.raises(Conflict, match="service web is down"):
        bench.ownership.move("192.0.2.10", "claim", dry_run=False)

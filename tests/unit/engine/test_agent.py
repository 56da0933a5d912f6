# SPDX-License-Identifier: Apache-2.0
"""The agent in virtual time: what it decides when servers die, operators act and files change."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fairlead.announce.base import Report, VipReport
from fairlead.config import Loaded
from fairlead.dataplane.base import Counters, ServerCounters
from fairlead.dataplane.memory import MemoryDataPlane
from fairlead.engine import logs
from fairlead.engine.agent import Agent, Parts
from fairlead.engine.dump import dump
from fairlead.engine.events import Events
from fairlead.engine.monitor import Monitor
from fairlead.engine.store import Store
from fairlead.errors import ConfigError, Conflict, DataPlaneError, FairleadError, NotFound, Problem
from fairlead.model.configuration import Configuration
from fairlead.model.health import ProbeResult, ProbeTarget, Way
from fairlead.model.net import Protocol
from fairlead.model.pool import AdminState, PassiveCheck
from fairlead.model.service import Forwarding, Passage, WhenAllDown
from fairlead.model.state import FlowTreatment, ServiceMode
from fairlead.model.vip import STATIC, Vip, VrrpInstance
from fairlead.policy.health import Transition
from support.announcer import FakeAnnouncer
from support.models import PASSED, REFUSED, TCP_MONITOR, configuration, endpoint, pool, server, service
from support.virtual import run_virtually

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logs.configure(timestamps=False, out=io.StringIO())


def site(*addresses: str, **changes: Any) -> Configuration:
    changes = {"monitors": (TCP_MONITOR,), **changes}
    return configuration(service(), pool(*(server(a) for a in addresses), **changes))


class Bench:
    """One agent over a data plane in memory and servers that are dead or alive by word."""

    def __init__(self, path: Path, wanted: Configuration) -> None:
        loop = asyncio.get_running_loop()
        self.dead: set[str] = set()
        self.probes: list[tuple[float, str]] = []
        self.plane = MemoryDataPlane()
        self.announcer = FakeAnnouncer()
        self.file: Configuration | ConfigError = wanted
        self.path = path
        self.events = Events(loop.time)
        self.agent = self.build(wanted)

    def build(self, wanted: Configuration) -> Agent:
        loop = asyncio.get_running_loop()
        monitor = Monitor(
            self.probe,
            clock=loop.time,
            wall_clock=loop.time,
            random=lambda: 0.0,
            on_transition=self.health_changed,
            on_result=self.probed,
        )
        store = Store(self.path / "state.json", "boot")
        parts = Parts(self.plane, monitor, self.events, store, self.read, loop.time, loop.time, self.announcer)
        return Agent(parts, wanted, "fairlead.yaml")

    def health_changed(self, target: ProbeTarget, pools: frozenset[str], transition: Transition) -> None:
        self.agent.health_changed(target, pools, transition)

    def probed(self, target: ProbeTarget, result: ProbeResult) -> None:
        self.agent.probed(target, result)

    async def until_live(self, addresses: set[str]) -> float:
        """Virtual seconds until exactly these servers take new flows."""
        began = asyncio.get_running_loop().time()
        while self.live() != addresses:
            await asyncio.sleep(0.01)  # of virtual time
            assert asyncio.get_running_loop().time() < began + 600, f"never {addresses}, but {self.live()}"
        return asyncio.get_running_loop().time() - began

    async def probe(self, target: ProbeTarget) -> ProbeResult:
        self.probes.append((asyncio.get_running_loop().time(), str(target.endpoint)))
        await asyncio.sleep(0.01)
        return REFUSED if str(target.endpoint) in self.dead else PASSED

    async def read(self) -> Loaded:
        if isinstance(self.file, ConfigError):
            raise self.file
        return Loaded(self.file, ())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        await self.agent.start()
        try:
            yield self.agent
        finally:
            await self.agent.detach()

    def live(self) -> set[str]:
        (spec,) = self.plane.state.services.values()
        assert spec.table is not None
        recipe = self.plane.state.tables[spec.table]
        assert recipe is not None
        return {key.removeprefix("web/") for key in recipe.live}


def test_nothing_is_offered_before_every_server_was_probed_once(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B))
        bench.dead = {B}
        async with bench.running() as agent:
            assert agent.ready()
            assert bench.live() == {A}
            assert len(bench.probes) == 2
            assert asyncio.get_running_loop().time() < 0.1

    run_virtually(run())


def test_a_server_that_dies_leaves_after_fall_and_returns_after_rise(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B))
        async with bench.running() as agent:
            await asyncio.sleep(0.5)
            bench.dead = {A}
            monitor = TCP_MONITOR
            assert await bench.until_live({B}) <= monitor.interval_s * monitor.fall + 0.1
            (view,) = [view for view in await agent.servers() if view.address == A]
            assert (view.health, view.down_reason, view.idle_reason, view.effective_weight) == (
                "down",
                "refused",
                "down",
                0,
            )
            bench.dead = set()
            assert await bench.until_live({A, B}) <= monitor.down_interval_s * monitor.rise + 0.1
        kinds = [event.kind for event in bench.events.after(0, 100)]
        assert kinds.count("health_down") == 1
        assert kinds.count("health_up") == 3

    run_virtually(run())


def test_a_drain_ends_at_its_deadline(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B, drain_timeout_s=30.0))
        async with bench.running() as agent:
            result = await agent.set_server(f"web/{A}", admin=AdminState.DRAIN, weight=None, dry_run=False)
            assert result.changes == ("state ready -> drain",)
            assert bench.live() == {B}
            await asyncio.sleep(29)
            assert bench.plane.state.servers[f"web/{A}"].flows is FlowTreatment.KEEP
            await asyncio.sleep(1.1)
            assert bench.plane.state.servers[f"web/{A}"].flows is FlowTreatment.RESET
            await agent.set_server(f"web/{A}", admin=AdminState.READY, weight=None, dry_run=False)
            assert bench.plane.state.servers[f"web/{A}"].flows is FlowTreatment.KEEP
            assert bench.live() == {A, B}

    run_virtually(run())


def test_maint_stops_probes_and_resets_flows_and_ready_waits_for_a_probe(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B))
        async with bench.running() as agent:
            await agent.set_server(f"web/{A}", admin=AdminState.MAINT, weight=None, dry_run=False)
            assert bench.plane.state.servers[f"web/{A}"].flows is FlowTreatment.RESET
            bench.probes.clear()
            await asyncio.sleep(10)
            assert {address for _, address in bench.probes} == {B}
            bench.dead = {A}
            await agent.set_server(f"web/{A}", admin=AdminState.READY, weight=None, dry_run=False)
            await asyncio.sleep(1)
            assert bench.live() == {B}, "its verdict from before maintenance does not count"

    run_virtually(run())


def test_dry_run_and_no_change_touch_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B))
        async with bench.running() as agent:
            applied = len(bench.plane.applied)
            said = await agent.set_server(f"web/{A}", admin=AdminState.DRAIN, weight=None, dry_run=True)
            assert said.changes == ("state ready -> drain",)
            assert (await agent.set_server(f"web/{A}", admin=AdminState.READY, weight=1, dry_run=False)).changes == ()
            bench.file = site(A)
            assert any("1 of 1 servers live" in line for line in (await agent.reload(dry_run=True)).changes)
            assert len(bench.plane.applied) == applied
            assert bench.live() == {A, B}

    run_virtually(run())


def test_unknown_names_are_told_with_near_ones(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B))
        async with bench.running() as agent:
            with pytest.raises(NotFound, match="did you mean"):
                await agent.set_server("web/10.0.0.1:81", admin=AdminState.DRAIN, weight=None, dry_run=False)
            with pytest.raises(NotFound, match="did you mean web"):
                await agent.connections("wep", None, None, 10)
            with pytest.raises(NotFound):
                await agent.connections(None, "nothing/like-it", None, 10)

    run_virtually(run())


def test_a_reload_probes_new_servers_before_old_ones_leave(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A))
        async with bench.running() as agent:
            bench.file = site(B, C)
            bench.dead = {C}
            await agent.reload(dry_run=False)
            assert bench.live() == {B}
            assert bench.plane.state.services["web"].mode is ServiceMode.FORWARD
            modes = [op.spec.mode for op in bench.plane.applied if type(op).__name__ == "PutService"]  # type: ignore[union-attr]
            assert ServiceMode.REJECT not in modes

    run_virtually(run())


def test_a_removed_server_stays_while_it_has_flows(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B, drain_timeout_s=60.0))
        async with bench.running() as agent:
            bench.plane.totals = Counters(servers={f"web/{A}": ServerCounters(active=1)})
            bench.file = site(B, drain_timeout_s=60.0)
            await agent.reload(dry_run=False)
            assert bench.live() == {B}
            await asyncio.sleep(20)
            assert f"web/{A}" in bench.plane.state.servers
            with pytest.raises(Conflict, match="removed"):
                await agent.set_server(f"web/{A}", admin=AdminState.READY, weight=None, dry_run=False)
            bench.plane.totals = Counters()
            await asyncio.sleep(10)
            assert f"web/{A}" not in bench.plane.state.servers

    run_virtually(run())


def test_an_invalid_file_changes_nothing_and_is_in_the_status(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A))
        async with bench.running() as agent:
            applied = len(bench.plane.applied)
            bench.file = ConfigError((Problem("fairlead.yaml", 3, 4, "services", "wrong"),))
            with pytest.raises(ConfigError):
                await agent.reload(dry_run=False)
            assert len(bench.plane.applied) == applied
            assert agent.status().last_reload_error == "fairlead.yaml:3:4: services: wrong"
            bench.file = site(A)
            await agent.reload(dry_run=False)
            assert agent.status().last_reload_ok

    run_virtually(run())


def test_what_takes_effect_only_at_the_next_start_is_said(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A))
        async with bench.running() as agent:
            bench.file = replace(site(A), workers=7)
            assert (await agent.reload(dry_run=False)).changes == ("proxy.workers takes effect at the next start",)

    run_virtually(run())


def test_a_start_that_cannot_listen_is_an_error(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A))
        bench.plane.fail(3)
        with pytest.raises(FairleadError, match=r"open 192\.0\.2\.10:80"):
            await bench.agent.start()
        await bench.agent.abandon()
        assert not bench.plane.running
        assert bench.plane.state.listeners == frozenset()

    run_virtually(run())


def test_a_start_that_adopts_goes_on_with_what_it_can_do(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A))
        async with bench.running():
            pass
        bench.file = site(A, B)
        bench.agent = bench.build(site(A, B))
        bench.plane.cut(0)
        async with bench.running() as agent:
            assert not agent.status().converged
            await asyncio.sleep(1)
            assert agent.status().converged
            assert bench.live() == {A, B}

    run_virtually(run())


def test_a_server_removed_while_no_agent_ran_has_its_time_to_end(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B))
        async with bench.running():
            pass
        bench.agent = bench.build(site(B))
        bench.plane.totals = Counters(servers={f"web/{A}": ServerCounters(active=1)})
        async with bench.running():
            assert bench.live() == {B}
            await asyncio.sleep(20)
            assert bench.plane.state.servers[f"web/{A}"].flows is FlowTreatment.KEEP

    run_virtually(run())


def test_f41_verdicts_and_wishes_survive_the_agent(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B, C))
        bench.dead = {B}
        async with bench.running() as agent:
            await agent.set_server(f"web/{A}", admin=AdminState.DRAIN, weight=None, dry_run=False)
            await agent.set_server(f"web/{C}", admin=None, weight=5, dry_run=False)
        bench.agent = bench.build(site(A, B, C))
        bench.dead = set()
        async with bench.running() as agent:
            assert bench.live() == {C}, "one passed probe is not yet a rise"
            views = {view.address: view for view in await agent.servers()}
            assert views[A].admin == "drain"
            assert views[C].weight == 5

    run_virtually(run())


def test_a_data_plane_that_does_not_take_a_change_is_said_so(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B))
        async with bench.running() as agent:
            bench.plane.cut(0)
            with pytest.raises(DataPlaneError, match="keeps trying"):
                await agent.set_server(f"web/{A}", admin=AdminState.DRAIN, weight=None, dry_run=False)
            await asyncio.sleep(1)
            assert bench.live() == {B}

    run_virtually(run())


def test_the_dump_has_everything(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A))
        async with bench.running() as agent:
            text = await dump(agent)
        assert text.count("\n") == 0
        for word in ('"status"', '"services"', '"health"', '"events"', A):
            assert word in text

    run_virtually(run())


def test_a_server_that_returns_starts_slowly_also_across_reloads_and_restarts(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B, slow_start_s=20.0))
        tables: set[str] = set()

        async def share_after(seconds: float) -> int:
            await asyncio.sleep(seconds)
            tables.update(bench.plane.state.tables)
            (view,) = [view for view in await bench.agent.servers() if view.address == A]
            assert view.share_reason == ("slow_start" if view.share < 100 else None)
            return view.share

        async with bench.running() as agent:
            assert await share_after(0.5) == 100
            bench.dead = {A}
            await bench.until_live({B})
            bench.dead = set()
            await bench.until_live({A, B})
            began = asyncio.get_running_loop().time()
            assert await share_after(0.1) == 10
            assert await share_after(7.0) in {20, 30, 40}
            bench.file = site(A, B, slow_start_s=20.0, drain_timeout_s=1.0)
            await agent.reload(dry_run=False)
            assert await share_after(0.1) in {20, 30, 40}
        bench.agent = bench.build(site(A, B, slow_start_s=20.0, drain_timeout_s=1.0))
        async with bench.running() as agent:
            assert await share_after(0.1) in {20, 30, 40}
            while await share_after(0.1) < 100:
                continue
            assert 20.0 <= asyncio.get_running_loop().time() - began <= 22.2
        assert len(tables) <= 12

    run_virtually(run())


def failing(key: str, failures: int, connections: int = 0) -> Counters:
    return Counters(servers={key: ServerCounters(connections=connections, streaks={0: failures})})


def test_a_server_whose_traffic_fails_is_ejected_at_once_and_returns_by_a_passed_probe(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B, passive=PassiveCheck(failures=5)))
        async with bench.running() as agent:
            bench.plane.totals = failing(f"web/{A}", 0)
            await asyncio.sleep(2.5)
            bench.plane.totals = failing(f"web/{A}", 5)
            assert await bench.until_live({B}) <= 0.3
            (view,) = [view for view in await agent.servers() if view.address == A]
            assert (view.health, view.idle_reason, view.effective_weight, view.ejections_total) == (
                "up",
                "ejected",
                0,
                1,
            )
            assert view.ejected_until_at is not None
            assert await bench.until_live({A, B}) <= TCP_MONITOR.timeout_s + TCP_MONITOR.interval_s + 0.1
        told = [(event.kind, event.message) for event in bench.events.after(0, 100) if event.subject == f"web/{A}"]
        assert told == [
            ("server_ejected", "5 failures in a row, out for 30 s"),
            ("server_returned", "is no longer ejected"),
        ]

    run_virtually(run())


def test_f43_one_that_fails_again_sits_out_its_time_also_across_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        wanted = site(A, B, passive=PassiveCheck(failures=5))
        bench = Bench(tmp_path, wanted)
        async with bench.running():
            bench.plane.totals = failing(f"web/{A}", 0)
            await asyncio.sleep(2.5)
            bench.plane.totals = failing(f"web/{A}", 5)
            await bench.until_live({B})
            await bench.until_live({A, B})
            bench.plane.totals = failing(f"web/{A}", 9)
            await asyncio.sleep(1.0)
            assert bench.live() == {A, B}
            bench.plane.totals = failing(f"web/{A}", 10)
            await bench.until_live({B})
            await asyncio.sleep(20.0)
            assert bench.live() == {B}
        bench.agent = bench.build(wanted)
        async with bench.running():
            assert bench.live() == {B}
            assert 35.0 <= await bench.until_live({A, B}) <= 40.5

    run_virtually(run())


def test_looking_at_very_many_servers_is_done_less_often(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Bench(tmp_path, site(A, passive=PassiveCheck())).agent._outliers
        assert [watched.pace_s(1.0, took) for took in (0.0, 0.02, 9.0)] == [0.25, pytest.approx(0.4), 1.0]
        assert Bench(tmp_path, site(A)).agent._outliers.pace_s(1.0, 0.0) == 1.0

    run_virtually(run())


def test_one_that_is_ejected_again_the_moment_it_returns_is_told_as_such(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, site(A, B, monitors=(), passive=PassiveCheck(failures=5, eject_s=2.0)))
        async with bench.running():
            for failures in range(0, 1500, 5):
                bench.plane.totals = failing(f"web/{A}", failures)
                await asyncio.sleep(0.01)
        told = [event.kind for event in bench.events.after(0, 100) if event.subject == f"web/{A}"]
        assert told == ["server_ejected", "server_returned", "server_ejected"]

    run_virtually(run())


def test_f40_a_service_that_goes_down_or_fails_open_is_told_with_what_becomes_of_new_flows(tmp_path: Path) -> None:
    async def run() -> None:
        wanted = configuration(
            service(),
            service("192.0.2.11:80", name="open", when_all_down=WhenAllDown.USE_ALL),
            pool(server(A), server(B), monitors=(TCP_MONITOR,)),
        )
        bench = Bench(tmp_path, wanted)
        async with bench.running():
            await asyncio.sleep(1.0)
            bench.dead = {A, B}
            await asyncio.sleep(10.0)
            modes = {name: spec.mode for name, spec in bench.plane.state.services.items()}
            assert modes == {"web": ServiceMode.REJECT, "open": ServiceMode.FORWARD}
            bench.dead = set()
            await asyncio.sleep(10.0)
        told = [(e.subject, e.kind, e.message) for e in bench.events.after(0, 100) if e.kind.startswith("service_")]
        assert ("web", "service_down", "live weight 0, quorum 1: new flows are refused") in told
        assert [kind for name, kind, _ in told if name == "web"][-1] == "service_up"
        failing_open = "live weight 0, quorum 1: new flows go to every server, whatever its probes say"
        assert any(name == "open" and text.startswith(failing_open) for name, _, text in told)

    run_virtually(run())


def test_ways_are_there_before_the_probes_that_take_them(tmp_path: Path) -> None:
    """From the first probe on, after a reload, and once maintenance ends; what is in maintenance needs none."""

    async def scenario() -> None:
        passage = Passage(endpoint("192.0.2.10:80"), Protocol.TCP, Forwarding.DSR)
        by_way = replace(TCP_MONITOR, through=passage)
        ways = {address: Way(endpoint(address).address, passage) for address in (A, B)}
        bench = Bench(tmp_path, site(A, monitors=(by_way,)))
        missing: list[Way] = []
        plain = bench.probe

        async def probe(target: ProbeTarget) -> ProbeResult:
            if target.way is not None and target.way not in bench.plane.ways:
                missing.append(target.way)
            return await plain(target)

        bench.probe = probe  # type: ignore[method-assign]
        bench.agent = bench.build(site(A, monitors=(by_way,)))
        async with bench.running() as agent:
            assert bench.plane.ways == {ways[A]}
            bench.file = site(A, B, monitors=(by_way,))
            await agent.reload(dry_run=False)
            assert bench.plane.ways == set(ways.values())
            await agent.set_server(f"web/{A}", admin=AdminState.MAINT, weight=None, dry_run=False)
            assert bench.plane.ways == {ways[B]}
            await agent.set_server(f"web/{A}", admin=AdminState.READY, weight=None, dry_run=False)
            assert bench.plane.ways == set(ways.values())
            await asyncio.sleep(10)
            bench.file = site(A, B)
            await agent.reload(dry_run=False)
            assert bench.plane.ways == set()
        assert not missing
        assert {address for _, address in bench.probes} == {A, B}

    run_virtually(scenario())


PAIR = Vip(ip_address("192.0.2.10"), 24, "eth0", "pair")


def shared(**changes: Any) -> Configuration:
    parts = (service(**changes), pool(server(A), monitors=(TCP_MONITOR,)))
    return configuration(*parts, vips=(PAIR,), vrrp={"pair": VrrpInstance("pair", "eth0", 51)})


@pytest.mark.parametrize(("forwarding", "waits"), [(Forwarding.NAT, True), (Forwarding.PROXY, False)])
def test_packets_are_forwarded_until_the_vip_has_gone(tmp_path: Path, forwarding: Forwarding, waits: bool) -> None:
    """Connections through the kernel go on at the next owner, unless they meet this host without its program."""

    async def run() -> None:
        bench = Bench(tmp_path, shared(forwarding=forwarding))
        await bench.agent.start()
        bench.announcer.told = Report((VipReport("192.0.2.10/24", True, 5.0, False, 0, 0),))
        ending = asyncio.create_task(bench.agent.stop(drain_s=0.0))
        await asyncio.sleep(0.5)
        assert bench.announcer.wanted.instances == ()
        assert bench.plane.running == waits
        bench.announcer.told = Report()
        await ending
        assert not bench.plane.running

    run_virtually(run())


@pytest.mark.parametrize(("owner", "drained_s"), [("pair", 0.0), (STATIC, 30.0)])
def test_only_what_stays_here_is_waited_for(tmp_path: Path, owner: str, drained_s: float) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, replace(shared(), vips=(replace(PAIR, owner=owner),)))
        await bench.agent.start()
        await bench.agent.stop(drain_s=30.0)
        assert bench.plane.drained_s == drained_s

    run_virtually(run())


def test_a_data_plane_that_does_not_forward_degrades_the_node(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, shared())
        async with bench.running() as agent:
            bench.plane.ailment = "net.ipv4.conf.eth0.forwarding is 0"
            await asyncio.sleep(2.5)
            assert bench.announcer.wanted.stances["pair"].degraded is None, "what is repaired soon was no fault"
            await asyncio.sleep(1.5)
            assert bench.announcer.wanted.stances["pair"].degraded == f"data plane: {bench.plane.ailment}"
            assert agent.status().pending_error == bench.plane.ailment
            bench.plane.ailment = None
            await asyncio.sleep(6.0)
            assert bench.announcer.wanted.stances["pair"].degraded is None

    run_virtually(run())

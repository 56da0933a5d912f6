# SPDX-License-Identifier: Apache-2.0
"""Who takes new flows, what becomes of old ones, and what people are told about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network

import pytest

from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeTarget, Verdict
from fairlead.model.net import AddressRange, Protocol
from fairlead.model.pool import AdminState, RealServer
from fairlead.model.reasons import DownReason, IdleReason
from fairlead.model.service import Limits, Persistence, ProxyHeader, Scheduler, WhenAllDown
from fairlead.model.state import FlowTreatment, ServerSpec, ServiceMode
from fairlead.policy import derive, flowhash, tables
from fairlead.policy.derive import Departure, Derived, Override, Runtime
from support.models import DOWN, SEED, TCP_MONITOR, UP, configuration, endpoint, listen, listener, pool, server, service

READY, DRAIN, MAINT = AdminState.READY, AdminState.DRAIN, AdminState.MAINT
KEEP, RESET = FlowTreatment.KEEP, FlowTreatment.RESET
SECOND = replace(TCP_MONITOR, port=9000)


def address(name: str) -> str:
    return f"10.0.0.{ord(name) - ord('a') + 1}:80"


def real(name: str, **changes: object) -> RealServer:
    return server(address(name), name=name, **changes)


def states(up: str = "", down: str = "") -> Mapping[ProbeTarget, HealthState]:
    return {
        ProbeTarget(endpoint(address(name)), TCP_MONITOR): state
        for names, state in ((up, UP), (down, DOWN))
        for name in names
    }


def decide(
    *servers: RealServer, up: str = "", down: str = "", quorum: int = 1,
    when_all_down: WhenAllDown = WhenAllDown.REJECT, runtime: Runtime | None = None, now: float = 100.0,
) -> Derived:  # fmt: skip
    """Decide for one service and one pool with a monitor; servers in neither ``up`` nor ``down`` are unchecked."""
    web = configuration(
        service(when_all_down=when_all_down), pool(*servers, monitors=(TCP_MONITOR,), quorum=quorum, drain_timeout_s=30)
    )
    return derive.desired(web, replace(runtime or Runtime(), health=states(up, down)), now)


def live(derived: Derived, name: str = "web") -> str:
    """Names of the servers that take new flows of a service."""
    table = derived.state.services[name].table
    recipe = derived.state.tables[table] if table else None
    return "".join(sorted(key.removeprefix("web/") for key in recipe.live)) if recipe else ""


def overridden(state: AdminState | None, weight: int | None = None) -> Runtime:
    return Runtime(overrides={"web/a": Override(state, weight, READY, 1)})


class TestNewFlows:
    def test_go_to_servers_that_are_up_and_ready(self) -> None:
        assert live(decide(real("a"), real("b"), real("c"), up="ab", down="c")) == "ab"

    def test_do_not_go_to_servers_that_were_not_probed_yet(self) -> None:
        assert live(decide(real("a"), real("b"), up="a")) == "a"

    @pytest.mark.parametrize("changes", [{"state": DRAIN}, {"state": MAINT}, {"weight": 0}])
    def test_do_not_go_where_the_file_says_no(self, changes: dict[str, object]) -> None:
        assert live(decide(real("a", **changes), real("b"), up="ab")) == "b"

    @pytest.mark.parametrize("runtime", [overridden(DRAIN), overridden(MAINT), overridden(None, 0)])
    def test_do_not_go_where_the_operator_says_no(self, runtime: Runtime) -> None:
        assert live(decide(real("a"), real("b"), up="ab", runtime=runtime)) == "b"

    def test_go_where_the_operator_says_yes_against_the_file(self) -> None:
        ready = Runtime(overrides={"web/a": Override(READY, None, DRAIN, 1)})
        assert live(decide(real("a", state=DRAIN), up="a", runtime=ready)) == "a"

    def test_pools_without_monitors_count_as_up(self) -> None:
        derived = derive.desired(configuration(service(), pool(real("a"))), Runtime(), 0.0)
        assert live(derived) == "a"
        assert derived.servers["web/a"].health is None

    def test_all_monitors_must_pass(self) -> None:
        checked = configuration(service(), pool(real("a"), monitors=(TCP_MONITOR, SECOND)))
        first, second = (
            ProbeTarget(endpoint("10.0.0.1:80"), TCP_MONITOR),
            ProbeTarget(endpoint("10.0.0.1:9000"), SECOND),
        )
        assert live(derive.desired(checked, Runtime(health={first: UP, second: UP}), 0.0)) == "a"
        down = derive.desired(checked, Runtime(health={first: UP, second: DOWN}), 0.0)
        assert live(down) == ""
        assert down.servers["web/a"].down_reason is DownReason.REFUSED
        assert live(derive.desired(checked, Runtime(health={first: UP}), 0.0)) == ""


class TestBackups:
    primary, backup = real("a"), real("z", backup=True)

    def test_rest_while_a_primary_is_live(self) -> None:
        derived = decide(self.primary, self.backup, up="az")
        assert live(derived) == "a"
        assert derived.servers["web/z"].idle_reason is IdleReason.BACKUP

    def test_serve_when_no_primary_may(self) -> None:
        derived = decide(self.primary, self.backup, up="z", down="a")
        assert live(derived) == "z"
        assert derived.services["web"].state == "degraded"

    def test_serve_when_all_primaries_are_drained(self) -> None:
        derived = decide(self.primary, self.backup, up="az", runtime=overridden(DRAIN))
        assert live(derived) == "z"
        assert derived.services["web"].state == "degraded"

    def test_are_no_members_of_the_primaries_table(self) -> None:
        table = next(iter(decide(self.primary, real("b"), self.backup, up="az", down="b").state.tables.values()))
        assert table is not None
        assert [member.key for member in table.members] == ["web/a", "web/b"]

    def test_do_not_count_for_the_quorum_beside_primaries(self) -> None:
        derived = decide(self.primary, self.backup, up="az", quorum=2)
        assert derived.services["web"].mode is ServiceMode.REJECT


class TestQuorum:
    servers = (real("a", weight=2), real("b", weight=3))

    def test_is_compared_with_the_live_weight(self) -> None:
        assert decide(*self.servers, up="ab", quorum=5).services["web"].state == "up"
        lost = decide(*self.servers, up="b", down="a", quorum=4).services["web"]
        assert (lost.state, lost.mode, lost.live_weight) == ("down", ServiceMode.REJECT, 3)
        assert decide(*self.servers, up="b", down="a", quorum=3).services["web"].mode is ServiceMode.FORWARD

    def test_counts_weights_set_at_run_time(self) -> None:
        heavy = Runtime(overrides={"web/b": Override(None, 9, READY, 3)})
        assert decide(*self.servers, up="b", down="a", quorum=9, runtime=heavy).services["web"].live_weight == 9

    def test_of_0_still_needs_a_server(self) -> None:
        assert decide(real("a"), down="a", quorum=0).services["web"].state == "down"
        assert live(decide(real("a"), down="a", quorum=0, when_all_down=WhenAllDown.USE_ALL)) == "a"

    def test_servers_that_wait_for_the_quorum_keep_their_weight(self) -> None:
        waiting = decide(*self.servers, up="b", down="a", quorum=4).servers["web/b"]
        assert (waiting.effective_weight, waiting.idle_reason) == (3, None)


class TestAllDown:
    servers = (real("a"), real("b"), real("z", backup=True))

    @pytest.mark.parametrize(
        ("wish", "mode"), [(WhenAllDown.REJECT, ServiceMode.REJECT), (WhenAllDown.DROP, ServiceMode.DROP)]
    )
    def test_rejects_or_drops(self, wish: WhenAllDown, mode: ServiceMode) -> None:
        derived = decide(*self.servers, down="abz", when_all_down=wish)
        assert derived.services["web"].mode is mode
        assert derived.state.services["web"].table is None
        assert derived.state.tables == {}
        assert derived.state.listeners

    def test_use_all_takes_all_primaries_regardless_of_health(self) -> None:
        derived = decide(*self.servers, down="abz", when_all_down=WhenAllDown.USE_ALL)
        assert live(derived) == "ab"
        status = derived.services["web"]
        assert (status.state, status.mode, status.live_weight) == ("degraded", ServiceMode.FORWARD, 0)
        assert [derived.servers[f"web/{name}"].effective_weight for name in "abz"] == [1, 1, 0]
        assert derived.servers["web/a"].health is Verdict.DOWN

    def test_use_all_respects_the_operator(self) -> None:
        derived = decide(*self.servers, down="abz", when_all_down=WhenAllDown.USE_ALL, runtime=overridden(MAINT))
        assert live(derived) == "b"

    def test_use_all_takes_backups_when_no_primary_is_eligible(self) -> None:
        drained = (real("a", state=DRAIN), real("z", backup=True))
        assert live(decide(*drained, down="az", when_all_down=WhenAllDown.USE_ALL)) == "z"

    def test_use_all_rejects_when_the_operator_left_nobody(self) -> None:
        derived = decide(real("a", state=MAINT), when_all_down=WhenAllDown.USE_ALL)
        assert derived.services["web"].mode is ServiceMode.REJECT

    def test_use_all_below_the_quorum(self) -> None:
        assert live(decide(*self.servers, up="a", down="b", quorum=2, when_all_down=WhenAllDown.USE_ALL)) == "ab"

    def test_use_all_below_a_quorum_that_nobody_reaches_is_degraded(self) -> None:
        derived = decide(real("a"), up="a", quorum=5, when_all_down=WhenAllDown.USE_ALL)
        assert (live(derived), derived.services["web"].state) == ("a", "degraded")

    def test_services_of_one_pool_decide_for_themselves(self) -> None:
        both = configuration(
            service(),
            service("192.0.2.11:80", name="open", when_all_down=WhenAllDown.USE_ALL),
            pool(real("a"), monitors=(TCP_MONITOR,)),
        )
        derived = derive.desired(both, Runtime(health=states(down="a")), 0.0)
        assert (live(derived), live(derived, "open")) == ("", "a")
        assert derived.servers["web/a"].effective_weight == 1


class TestEstablishedFlows:
    def flows(self, derived: Derived, name: str = "a") -> FlowTreatment:
        return derived.state.servers[f"web/{name}"].flows

    def test_are_reset_at_once_in_maintenance(self) -> None:
        derived = decide(real("a"), up="a", runtime=overridden(MAINT))
        assert (self.flows(derived), derived.next_at) == (RESET, None)

    @pytest.mark.parametrize("runtime", [overridden(DRAIN), overridden(None, 0)])
    def test_are_kept_until_the_drain_ends(self, runtime: Runtime) -> None:
        draining = replace(runtime, drain_since={"web/a": 90.0})
        before = decide(real("a"), up="a", runtime=draining, now=119.9)
        assert (self.flows(before), before.next_at, before.servers["web/a"].drain_deadline) == (KEEP, 120.0, 120.0)
        after = decide(real("a"), up="a", runtime=draining, now=120.0)
        assert (self.flows(after), after.next_at) == (RESET, None)

    def test_are_reset_at_once_by_a_drain_without_time(self) -> None:
        web = configuration(service(), pool(real("a", state=DRAIN), drain_timeout_s=0.0))
        runtime = derive.settle(web, Runtime(), 7.0, frozenset())
        assert self.flows(derive.desired(web, runtime, 7.0)) is RESET

    def test_are_kept_when_the_drain_was_not_clocked_yet(self) -> None:
        derived = decide(real("a", state=DRAIN), up="a", now=100.0)
        assert (self.flows(derived), derived.next_at) == (KEEP, 130.0)

    def test_are_kept_by_a_server_that_goes_down(self) -> None:
        assert self.flows(decide(real("a"), down="a")) is KEEP

    def test_are_kept_by_a_departing_server_until_its_deadline(self) -> None:
        leaving = Runtime(departures={"web/b": Departure("web", real("b"), 120.0, 90.0)})
        before = decide(real("a"), up="a", runtime=leaving, now=119.0)
        assert (self.flows(before, "b"), before.next_at) == (KEEP, 120.0)
        status = before.servers["web/b"]
        assert (status.idle_reason, status.effective_weight, status.drain_deadline) == (IdleReason.REMOVED, 0, 120.0)
        assert (status.health, status.detail) == (None, "no longer configured")
        after = decide(real("a"), up="a", runtime=leaving, now=120.0)
        assert self.flows(after, "b") is RESET
        assert after.next_at == 120.0 + 5.0

    def test_follow_a_server_that_was_only_renamed(self) -> None:
        leaving = Runtime(departures={"web/old": Departure("web", replace(real("a"), name="old"), 1.0, 0.0)})
        assert self.flows(decide(real("a"), up="a", runtime=leaving), "old") is KEEP
        resting = replace(leaving, overrides=overridden(MAINT).overrides)
        assert self.flows(decide(real("a"), up="a", runtime=resting), "old") is RESET

    def test_next_at_is_the_earliest_moment(self) -> None:
        runtime = Runtime(
            drain_since={"web/a": 95.0, "web/b": 80.0}, departures={"web/x": Departure("web", real("x"), 117.0, 90.0)}
        )
        assert decide(real("a", state=DRAIN), real("b", state=DRAIN), runtime=runtime).next_at == 110.0


class TestServers:
    def test_one_spec_for_all_services(self) -> None:
        both = configuration(service(), service("192.0.2.11:80", name="api"), pool(real("a", max_connections=9)))
        servers = derive.desired(both, Runtime(), 0.0).state.servers
        assert servers == {"web/a": ServerSpec("web/a", endpoint("10.0.0.1:80"), 1, 9)}

    def test_of_pools_that_nobody_uses_are_held_too(self) -> None:
        assert derive.desired(configuration(pool(real("a"))), Runtime(), 0.0).state.servers.keys() == {"web/a"}

    def test_a_spec_does_not_change_with_health(self) -> None:
        assert decide(real("a"), up="a").state.servers == decide(real("a"), down="a").state.servers

    def test_a_weight_set_at_run_time_reaches_the_data_plane(self) -> None:
        derived = decide(real("a"), up="a", runtime=overridden(None, 7))
        assert derived.state.servers["web/a"].weight == 7
        assert (derived.servers["web/a"].weight, derived.servers["web/a"].effective_weight) == (7, 7)

    @pytest.mark.parametrize(
        ("which", "idle", "down_reason", "health"),
        [
            (decide(real("a"), up="a"), None, None, Verdict.UP),
            (decide(real("a"), down="a"), IdleReason.DOWN, DownReason.REFUSED, Verdict.DOWN),
            (decide(real("a")), IdleReason.DOWN, DownReason.UNCHECKED, Verdict.DOWN),
            (decide(real("a", state=DRAIN), down="a"), IdleReason.DRAIN, DownReason.REFUSED, Verdict.DOWN),
            (decide(real("a", state=MAINT), down="a"), IdleReason.MAINT, None, None),
            (decide(real("a", weight=0), up="a"), IdleReason.WEIGHT_ZERO, None, Verdict.UP),
        ],
    )
    def test_reasons(
        self, which: Derived, idle: IdleReason | None, down_reason: DownReason | None, health: Verdict | None
    ) -> None:
        status = which.servers["web/a"]
        assert (status.idle_reason, status.down_reason, status.health) == (idle, down_reason, health)


class TestServices:
    def test_is_up_only_when_all_ready_servers_are(self) -> None:
        assert decide(real("a"), real("b"), up="ab").services["web"].state == "up"
        assert decide(real("a"), real("b"), up="a", down="b").services["web"].state == "degraded"
        assert decide(real("a"), real("b", state=MAINT), up="a").services["web"].state == "up"
        assert decide(real("a"), real("b", state=DRAIN), up="a", down="b").services["web"].state == "up"
        assert decide(real("a"), real("z", backup=True), up="a", down="z").services["web"].state == "degraded"
        assert decide(real("a"), down="a").services["web"].state == "down"

    def test_settings_arrive_whole(self) -> None:
        everything = service(
            scheduler=Scheduler.WLC, persistence=Persistence(300.0, 24, 64), idle_timeout_s=0.0004,
            connect_timeout_s=1.5, half_close_timeout_s=0.0, retries=7, limits=Limits(1, 2, 3, 24, 56, 4, 5.0),
            transparent=True,
            accept_proxy=True, send_proxy=ProxyHeader.V2, allow=(ip_network("10.0.0.0/8"),),
        )  # fmt: skip
        spec = derive.desired(configuration(everything, pool(real("a"))), Runtime(), 0.0).state.services["web"]
        low = (0xFFFF << 32) + (10 << 24)
        assert (spec.name, spec.protocol, spec.forwarding, spec.engine, spec.scheduler) == (
            "web", everything.protocol, everything.forwarding, everything.engine, Scheduler.WLC,
        )  # fmt: skip
        assert (spec.idle_timeout_ms, spec.connect_timeout_ms, spec.half_close_timeout_ms) == (1, 1500, 0)
        assert (spec.retries, spec.persistence) == (7, Persistence(300.0, 24, 64))
        assert (spec.max_connections, spec.connections_per_source, spec.new_per_source) == (1, 2, 3)
        assert (spec.source_prefix_v4, spec.source_prefix_v6, spec.queue, spec.queue_timeout_ms) == (24, 56, 4, 5000)
        assert spec.allowed == (AddressRange(low, low + 0xFFFFFF),)
        assert (spec.transparent, spec.accept_proxy, spec.send_proxy) == (True, True, ProxyHeader.V2)

    def test_the_seed_comes_from_the_first_address_and_the_shared_seed(self) -> None:
        web = replace(service("192.0.2.10:80"), listen=(listen("192.0.2.10:80"), listen("[2001:db8::1]:80")))
        for shared in (None, SEED):
            state = derive.desired(configuration(web, pool(real("a")), hash_seed=shared), Runtime(), 0.0).state
            expected = flowhash.service_seed(listen("192.0.2.10:80"), shared)
            assert state.services["web"].seed == expected
            assert [table.seed for table in state.tables.values() if table] == [expected]
            assert state.listeners == {listener(), listener(at="[2001:db8::1]:80")}

    def test_tables_are_named_by_their_digest(self) -> None:
        state = decide(real("a"), up="a").state
        assert all(table and tables.digest(table) == name for name, table in state.tables.items())

    def test_services_with_the_same_rr_table_share_it(self) -> None:
        both = configuration(
            service(scheduler=Scheduler.RR),
            service("192.0.2.11:80", name="api", scheduler=Scheduler.LC),
            pool(real("a"), real("b")),
        )
        assert len(derive.desired(both, Runtime(), 0.0).state.tables) == 1

    def test_nothing_configured_is_nothing_held(self) -> None:
        derived = derive.desired(Configuration(), Runtime(), 0.0)
        assert (derived.state.servers, derived.state.services, derived.next_at) == ({}, {}, None)


def test_f27_udp_flows_leave_a_server_that_is_down() -> None:
    monitored = pool(real("a"), real("b"), monitors=(TCP_MONITOR,))
    for protocol, treatment in ((Protocol.UDP, FlowTreatment.UNPIN), (Protocol.TCP, KEEP)):
        found = derive.desired(
            configuration(service(protocol=protocol), monitored), Runtime(health=states("a", "b")), 0
        )
        assert {key: it.flows for key, it in found.state.servers.items()} == {"web/a": KEEP, "web/b": treatment}


def test_f27_a_server_in_maintenance_resets_whatever_its_health() -> None:
    monitored = pool(real("a", state=MAINT), monitors=(TCP_MONITOR,))
    found = derive.desired(configuration(service(protocol=Protocol.UDP), monitored), Runtime(), 0)
    assert found.state.servers["web/a"].flows is RESET


def test_services_that_share_a_table_leave_it_together() -> None:
    web = configuration(
        service("192.0.2.1:80", name="a"), service("192.0.2.2:80", name="b"), pool(real("a"), real("b"))
    )
    web = replace(web, services={name: replace(it, scheduler=Scheduler.RR) for name, it in web.services.items()})
    before = derive.desired(web, Runtime(), 0.0)
    assert len(before.state.tables) == 1
    drained = derive.set_admin(web, Runtime(), "web/a", AdminState.DRAIN, 0.0)
    assert derive.desired(web, drained, 0.0, before) == derive.desired(web, drained, 0.0)


def test_servers_come_in_the_order_of_the_configuration_and_departed_ones_last() -> None:
    names = [f"s{number}" for number in range(60)]
    web = configuration(service(), pool(*(server(f"10.0.1.{at}:80", name=name) for at, name in enumerate(names))))
    gone = Runtime(departures={"web/gone": Departure("web", server("10.0.2.1:80", name="gone"), 99.0)})
    assert [it.name for it in derive.desired(web, gone, 0.0).ordered] == [*names, "gone"]


def test_another_shared_seed_concerns_every_pool() -> None:
    """Although no pool and no service is another one."""
    web = configuration(service(), pool(real("a"), real("b")))
    other = replace(web, hash_seed=SEED)
    before = derive.desired(web, Runtime(), 0.0)
    after = derive.desired(other, Runtime(), 0.0, before)
    assert after == derive.desired(other, Runtime(), 0.0) != before

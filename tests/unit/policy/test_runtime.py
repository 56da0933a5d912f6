# SPDX-License-Identifier: Apache-2.0
"""Overrides, drain clocks, departures and health across reloads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fairlead.errors import ContractViolation, NotFound
from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeTarget, Verdict
from fairlead.model.pool import AdminState, HealthMonitor, RealServer
from fairlead.model.reasons import DownReason
from fairlead.policy import runtime as rt
from fairlead.policy.runtime import Departure, Override, Runtime
from support.models import DOWN, TCP_MONITOR, UP, configuration, endpoint, pool, server, server_spec, service

READY, DRAIN, MAINT = AdminState.READY, AdminState.DRAIN, AdminState.MAINT
A, B = server("10.0.0.1:80", name="a"), server("10.0.0.2:80", name="b")
SLOWER = replace(TCP_MONITOR, interval_s=9.0)


def web(*servers: RealServer, monitors: tuple[HealthMonitor, ...] = (), drain_timeout_s: float = 30.0) -> Configuration:
    return configuration(service(), pool(*servers, monitors=monitors, drain_timeout_s=drain_timeout_s))


def target(address: str, monitor: HealthMonitor = TCP_MONITOR) -> ProbeTarget:
    return ProbeTarget(endpoint(address), monitor)


class TestOverrides:
    def test_the_operators_state_is_kept_beside_the_files(self) -> None:
        after = rt.set_admin(web(A, B), Runtime(), "web/a", DRAIN, 10.0)
        assert after.overrides == {"web/a": Override(DRAIN, None, READY, 1)}
        assert rt.admin_state(after, "web/a", A) is DRAIN
        assert rt.admin_state(after, "web/b", B) is READY

    def test_back_to_the_files_state_is_no_override(self) -> None:
        drained = rt.set_admin(web(A), Runtime(), "web/a", DRAIN, 10.0)
        assert rt.set_admin(web(A), drained, "web/a", READY, 11.0) == Runtime()

    def test_state_and_weight_are_set_independently(self) -> None:
        after = rt.set_weight(web(A), rt.set_admin(web(A), Runtime(), "web/a", DRAIN, 1.0), "web/a", 7, 2.0)
        assert after.overrides == {"web/a": Override(DRAIN, 7, READY, 1)}
        assert rt.present_weight(after, "web/a", A) == 7
        ready = rt.set_admin(web(A), after, "web/a", READY, 3.0)
        assert ready.overrides == {"web/a": Override(None, 7, READY, 1)}
        assert rt.set_weight(web(A), ready, "web/a", 1, 4.0).overrides == {}

    def test_an_override_survives_a_reload_that_does_not_touch_it(self) -> None:
        before = rt.set_admin(web(A), Runtime(), "web/a", DRAIN, 10.0)
        after = rt.transition(web(A), web(A, B), before, 20.0)
        assert after == before

    def test_each_half_falls_with_its_own_value_in_the_file(self) -> None:
        both = rt.set_weight(web(A), rt.set_admin(web(A), Runtime(), "web/a", DRAIN, 1.0), "web/a", 7, 2.0)
        heavier = rt.transition(web(A), web(replace(A, weight=3)), both, 20.0)
        assert heavier.overrides == {"web/a": Override(DRAIN, None, READY, 3)}
        in_maint = rt.transition(web(A), web(replace(A, state=MAINT)), both, 20.0)
        assert in_maint.overrides == {"web/a": Override(None, 7, MAINT, 1)}

    def test_one_that_no_longer_fits_the_file_does_not_count(self) -> None:
        """A restarted agent meets a file that changed while it was away."""
        stale = Runtime(overrides={"web/a": Override(DRAIN, 5, MAINT, 9)})
        assert rt.admin_state(stale, "web/a", A) is READY
        assert rt.present_weight(stale, "web/a", A) == 1

    @pytest.mark.parametrize("name", ["web/aa", "wep/a"])
    def test_a_misspelt_server_is_refused_with_near_names(self, name: str) -> None:
        with pytest.raises(NotFound, match=rf"no server {name}; did you mean web/a"):
            rt.set_admin(web(A, B), Runtime(), name, DRAIN, 0.0)
        with pytest.raises(NotFound, match="did you mean"):
            rt.set_weight(web(A, B), Runtime(), name, 1, 0.0)

    def test_a_name_like_no_other_is_refused_with_the_way_to_all_names(self) -> None:
        with pytest.raises(NotFound, match="no server zzzzzz; `fairlead show servers` lists all"):
            rt.set_admin(web(A), Runtime(), "zzzzzz", DRAIN, 0.0)

    def test_a_negative_weight_is_a_bug(self) -> None:
        with pytest.raises(ContractViolation):
            rt.set_weight(web(A), Runtime(), "web/a", -1, 0.0)


class TestDrainClock:
    def test_starts_with_the_drain_and_is_not_wound_up_again(self) -> None:
        first = rt.set_admin(web(A), Runtime(), "web/a", DRAIN, 10.0)
        assert first.drain_since == {"web/a": 10.0}
        assert rt.set_admin(web(A), first, "web/a", DRAIN, 20.0).drain_since == {"web/a": 10.0}
        assert rt.set_weight(web(A), first, "web/a", 0, 20.0).drain_since == {"web/a": 10.0}
        assert rt.settle(web(A), first, 20.0, frozenset()) == first

    def test_weight_0_starts_it(self) -> None:
        assert rt.set_weight(web(A), Runtime(), "web/a", 0, 10.0).drain_since == {"web/a": 10.0}

    @pytest.mark.parametrize("state", [READY, MAINT])
    def test_stops_with_the_drain(self, state: AdminState) -> None:
        draining = rt.set_admin(web(A), Runtime(), "web/a", DRAIN, 10.0)
        assert rt.set_admin(web(A), draining, "web/a", state, 11.0).drain_since == {}

    @pytest.mark.parametrize("drained", [replace(A, state=DRAIN), replace(A, weight=0)])
    def test_starts_for_what_the_file_drains(self, drained: RealServer) -> None:
        assert rt.settle(web(drained), Runtime(), 5.0, frozenset()).drain_since == {"web/a": 5.0}
        assert rt.transition(web(A), web(drained), Runtime(), 7.0).drain_since == {"web/a": 7.0}


class TestRestart:
    """One configuration on both sides: what an earlier agent left, whatever its file said, is gone through."""

    def test_an_override_on_another_base_falls(self) -> None:
        now_in_force = web(replace(A, weight=3))
        left = Runtime(overrides={"web/a": Override(None, 7, READY, 1), "gone/a": Override(DRAIN, None, READY, 1)})
        assert rt.transition(now_in_force, now_in_force, left, 20.0).overrides == {}

    def test_drains_of_the_file_begin_and_others_end(self) -> None:
        now_in_force = web(replace(A, state=DRAIN), B)
        left = Runtime(drain_since={"web/b": 3.0, "gone/a": 4.0})
        assert rt.transition(now_in_force, now_in_force, left, 20.0).drain_since == {"web/a": 20.0}


class TestDepartures:
    gone = Departure("web", B, 40.0, 10.0)

    def test_a_removed_server_departs_with_the_old_pools_timeout(self) -> None:
        after = rt.transition(web(A, B), web(A, drain_timeout_s=999.0), Runtime(), 10.0)
        assert after.departures == {"web/b": self.gone}

    def test_a_removed_pool_departs_with_all_its_servers(self) -> None:
        after = rt.transition(web(A, B), Configuration(), Runtime(), 10.0)
        assert after.departures.keys() == {"web/a", "web/b"}

    def test_a_server_that_was_draining_keeps_its_deadline(self) -> None:
        draining = rt.set_admin(web(A, B), Runtime(), "web/b", DRAIN, 3.0)
        after = rt.transition(web(A, B), web(A), draining, 10.0)
        assert after.departures["web/b"].deadline == 33.0
        assert (after.drain_since, after.overrides) == ({}, {})

    def test_a_server_in_maintenance_has_no_flows_to_wait_for(self) -> None:
        resting = rt.set_admin(web(A, B), Runtime(), "web/b", MAINT, 3.0)
        assert rt.transition(web(A, B), web(A), resting, 10.0).departures == {}

    def test_a_server_that_returns_no_longer_departs(self) -> None:
        before = Runtime(departures={"web/b": self.gone})
        assert rt.transition(web(A), web(A, B), before, 20.0).departures == {}

    def test_departures_survive_another_reload(self) -> None:
        before = Runtime(departures={"web/b": self.gone})
        assert rt.transition(web(A), web(A), before, 20.0) == before

    def test_a_server_that_moves_to_another_address_does_not_depart(self) -> None:
        moved = server("10.0.0.9:80", name="b")
        assert rt.transition(web(A, B), web(A, moved), Runtime(), 10.0).departures == {}

    @pytest.mark.parametrize(
        ("now", "idle", "kept"),
        [
            (11.0, frozenset({"web/b"}), True),  # a table may still name it
            (10.0 + rt.IDLE_AFTER_S, frozenset({"web/b"}), False),
            (39.0, frozenset[str](), True),
            (40.0, frozenset[str](), True),  # its flows are being reset
            (40.0 + rt.FORGET_AFTER_S, frozenset[str](), False),
        ],
    )
    def test_is_forgotten_when_idle_or_over(self, now: float, idle: frozenset[str], kept: bool) -> None:
        after = rt.settle(web(A), Runtime(departures={"web/b": self.gone}), now, idle)
        assert ("web/b" in after.departures) is kept

    def test_a_renamed_server_waits_for_its_flows_without_deadline(self) -> None:
        renamed = web(A, server("10.0.0.2:80", name="better"))
        departing = Runtime(departures={"web/b": self.gone})
        assert rt.settle(renamed, departing, 9999.0, frozenset()) == departing
        assert rt.settle(renamed, departing, 9999.0, frozenset({"web/b"})).departures == {}

    def test_servers_that_only_the_data_plane_knows_depart(self) -> None:
        held = [server_spec("web/a"), server_spec("web/b", "10.0.0.2:80"), server_spec("old/[::1]:80", "[::1]:80")]
        after = rt.adopt(web(A), Runtime(), held, 10.0)
        assert after.departures == {
            "web/b": self.gone,
            "old/[::1]:80": Departure("old", server("[::1]:80"), 10.0 + rt.UNKNOWN_DRAIN_TIMEOUT_S, 10.0),
        }
        assert rt.adopt(web(A), after, held, 20.0) == after


class TestHealth:
    def test_targets_are_shared_by_pools(self) -> None:
        both = configuration(
            pool(A, B, monitors=(TCP_MONITOR,)), pool(server("10.0.0.2:80"), name="api", monitors=(TCP_MONITOR, SLOWER))
        )
        assert rt.targets(both, Runtime()) == {
            target("10.0.0.1:80"): {"web"},
            target("10.0.0.2:80"): {"web", "api"},
            target("10.0.0.2:80", SLOWER): {"api"},
        }

    def test_maintenance_is_not_probed_but_drain_is(self) -> None:
        resting = replace(A, state=MAINT)
        draining = replace(B, state=DRAIN)
        probed = rt.targets(web(resting, draining, monitors=(TCP_MONITOR,)), Runtime())
        assert probed.keys() == {target("10.0.0.2:80")}

    def test_a_verdict_survives_a_reload(self) -> None:
        known = Runtime(health={target("10.0.0.1:80"): DOWN})
        checked = web(A, monitors=(TCP_MONITOR,))
        assert rt.transition(checked, checked, known, 5.0) == known

    def test_a_new_server_is_not_known(self) -> None:
        known = Runtime(health={target("10.0.0.1:80"): UP})
        after = rt.transition(web(A, monitors=(TCP_MONITOR,)), web(A, B, monitors=(TCP_MONITOR,)), known, 5.0)
        assert after.health == known.health

    @pytest.mark.parametrize("state", [UP, DOWN])
    def test_a_changed_monitor_inherits_the_verdict(self, state: HealthState) -> None:
        known = Runtime(health={target("10.0.0.1:80"): replace(state, streak=1)})
        after = rt.transition(web(A, monitors=(TCP_MONITOR,)), web(A, monitors=(SLOWER,)), known, 5.0)
        assert after.health == {target("10.0.0.1:80", SLOWER): state}

    def test_a_renamed_server_inherits_its_verdict(self) -> None:
        known = Runtime(health={target("10.0.0.1:80"): UP})
        renamed = server("10.0.0.1:80", name="better")
        after = rt.transition(web(A, monitors=(TCP_MONITOR,)), web(renamed, monitors=(SLOWER,)), known, 5.0)
        assert after.health == {target("10.0.0.1:80", SLOWER): UP}

    def test_a_server_that_moves_to_another_address_inherits_nothing(self) -> None:
        known = Runtime(health={target("10.0.0.1:80"): UP})
        moved = server("10.0.0.9:80", name="a")
        after = rt.transition(web(A, monitors=(TCP_MONITOR,)), web(moved, monitors=(TCP_MONITOR,)), known, 5.0)
        assert after.health == {}

    def test_unknown_health_is_not_inherited(self) -> None:
        after = rt.transition(web(A, monitors=(TCP_MONITOR,)), web(A, monitors=(SLOWER,)), Runtime(), 5.0)
        assert after.health == {}

    def test_the_first_monitor_of_a_pool_takes_nobody_down_before_it_speaks(self) -> None:
        after = rt.transition(web(A), web(A, monitors=(TCP_MONITOR,)), Runtime(), 5.0)
        assert after.health == {
            target("10.0.0.1:80"): HealthState(Verdict.UP, 0, False, None, "no probe has finished yet")
        }

    def test_a_target_that_is_probed_already_is_not_taken_to_be_alive_for_another_pool(self) -> None:
        api = pool(server("10.0.0.1:80"), name="api", monitors=(TCP_MONITOR,))
        old, new = configuration(pool(A), api), configuration(pool(A, monitors=(TCP_MONITOR,)), api)
        assert rt.transition(old, new, Runtime(), 5.0).health == {}

    def test_a_second_monitor_inherits_and_the_first_keeps_its_state(self) -> None:
        known = Runtime(health={target("10.0.0.1:80"): UP})
        after = rt.transition(web(A, monitors=(TCP_MONITOR,)), web(A, monitors=(TCP_MONITOR, SLOWER)), known, 5.0)
        assert after.health == {target("10.0.0.1:80"): UP, target("10.0.0.1:80", SLOWER): UP}

    def test_down_wins_where_servers_share_a_new_target(self) -> None:
        shared = replace(TCP_MONITOR, port=9000)
        late = replace(DOWN, reason=DownReason.TIMEOUT)
        one, two = server("10.0.0.1:80"), server("10.0.0.1:81")
        known = Runtime(health={target("10.0.0.1:80"): UP, target("10.0.0.1:81"): late})
        for servers in ((one, two), (two, one)):
            after = rt.transition(web(*servers, monitors=(TCP_MONITOR,)), web(*servers, monitors=(shared,)), known, 5.0)
            assert after.health == {target("10.0.0.1:9000", shared): late}

    def test_monitors_of_one_server_keep_their_own_states(self) -> None:
        both = web(A, monitors=(TCP_MONITOR, SLOWER))
        known = Runtime(health={target("10.0.0.1:80"): UP, target("10.0.0.1:80", SLOWER): DOWN})
        assert rt.transition(both, both, known, 5.0) == known

    def test_maintenance_forgets_the_verdict(self) -> None:
        checked = web(A, monitors=(TCP_MONITOR,))
        known = Runtime(health={target("10.0.0.1:80"): UP})
        resting = rt.set_admin(checked, known, "web/a", MAINT, 5.0)
        assert resting.health == {}
        assert rt.set_admin(checked, resting, "web/a", READY, 6.0).health == {}

    def test_what_left_the_file_is_forgotten(self) -> None:
        known = Runtime(health={target("10.0.0.1:80"): UP, target("10.0.0.2:80"): UP})
        after = rt.transition(web(A, B, monitors=(TCP_MONITOR,)), web(A, monitors=(TCP_MONITOR,)), known, 5.0)
        assert after.health == {target("10.0.0.1:80"): UP}

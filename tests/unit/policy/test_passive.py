# SPDX-License-Identifier: Apache-2.0
"""Passive checking: what counts as failures in a row, who is taken out, for how long, and who never is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeTarget
from fairlead.model.pool import AdminState, PassiveCheck
from fairlead.model.reasons import IdleReason
from fairlead.model.service import WhenAllDown
from fairlead.model.state import ServiceMode
from fairlead.policy import derive, passive
from fairlead.policy.derive import Ejection, Runtime
from fairlead.policy.passive import Track, follow, in_a_row
from support.models import DOWN, TCP_MONITOR, UP, configuration, endpoint, pool, server, service

PASSIVE = PassiveCheck(failures=5, interval_s=10.0, eject_s=30.0, max_ejected=50)
NAMES = ("a", "b", "c", "d")


def address(name: str) -> str:
    return f"10.0.0.{NAMES.index(name) + 1}:80"


def site(names: str = "abcd", backup: str = "", **changes: Any) -> Configuration:
    servers = [server(address(it), name=it, backup=it in backup) for it in names]
    when = changes.pop("when_all_down", WhenAllDown.REJECT)
    settings: dict[str, Any] = {"monitors": (TCP_MONITOR,), "passive": PASSIVE, **changes}
    return configuration(service(when_all_down=when), pool(*servers, **settings))


def target(name: str) -> ProbeTarget:
    return ProbeTarget(endpoint(address(name)), TCP_MONITOR)


def health(up: str = "abcd", down: str = "") -> dict[ProbeTarget, HealthState]:
    return {**{target(it): UP for it in up}, **{target(it): DOWN for it in down}}


def eject(names: str, runtime: Runtime | None = None, now: float = 100.0, of: Configuration | None = None) -> Runtime:
    keys = [f"web/{name}" for name in names]
    return passive.eject(of or site(), runtime or Runtime(health=health()), keys, now)


def out(runtime: Runtime, now: float = 100.0) -> str:
    return "".join(sorted(key.removeprefix("web/") for key in passive.ejected(runtime, now)))


def live(runtime: Runtime, now: float = 100.0, of: Configuration | None = None) -> str:
    derived = derive.desired(of or site(), runtime, now)
    table = derived.state.services["web"].table
    recipe = derived.state.tables[table] if table else None
    return "".join(sorted(key.removeprefix("web/") for key in recipe.live)) if recipe else ""


Look = tuple[float, dict[int, int], int]


def seen(*looks: Look) -> int:
    """Failures in a row after these looks: moment, streaks by worker, connections."""
    track = Track(looks[0][1])
    for now, streaks, connections in looks:
        track = follow(track, streaks, connections, 10.0, now)
    return in_a_row(track, looks[-1][2])


class TestCounting:
    def test_failures_before_the_first_look_do_not_count(self) -> None:
        assert seen((0.0, {0: 9}, 50), (1.0, {0: 9}, 50)) == 0

    def test_those_of_all_workers_count_together_while_nothing_succeeds(self) -> None:
        assert seen((0.0, {}, 50), (1.0, {0: 2, 3: 1}, 50), (2.0, {0: 2, 1: 1, 3: 2}, 50)) == 5

    def test_a_success_anywhere_parts_the_workers(self) -> None:
        assert seen((0.0, {}, 50), (1.0, {0: 3, 1: 1}, 50), (2.0, {0: 3, 1: 2}, 51)) == 3

    def test_a_worker_that_never_succeeds_counts_alone(self) -> None:
        looks: list[Look] = [(float(n), {0: n}, 50 + n) for n in range(8)]
        assert seen(*looks) == 7

    def test_a_success_begins_a_new_row(self) -> None:
        assert seen((0.0, {}, 50), (1.0, {0: 4}, 50), (2.0, {0: 1}, 51)) == 1
        assert seen((0.0, {}, 50), (1.0, {0: 4}, 50), (2.0, {}, 51)) == 0

    def test_old_failures_do_not_count(self) -> None:
        assert seen((0.0, {}, 50), (1.0, {0: 4}, 50), (10.9, {0: 5}, 50)) == 5
        assert seen((0.0, {}, 50), (1.0, {0: 4}, 50), (11.1, {0: 5}, 50)) == 1

    def test_a_calm_server_costs_nothing(self) -> None:
        assert follow(Track(), {}, 7, 10.0, 1.0) == Track()

    @given(st.lists(st.tuples(st.dictionaries(st.integers(0, 3), st.integers(1, 9)), st.integers(0, 2)), max_size=30))
    def test_never_more_than_the_workers_say(self, steps: list[tuple[dict[int, int], int]]) -> None:
        track, connections = Track(), 0
        for now, (streaks, more) in enumerate(steps):
            connections += more
            track = follow(track, streaks, connections, 5.0, float(now))
            assert in_a_row(track, connections) <= sum(streaks.values())


class TestWho:
    def test_an_ejected_server_gets_no_new_flows_and_keeps_those_it_has(self) -> None:
        runtime = eject("a")
        derived = derive.desired(site(), runtime, 100.0)
        status = derived.servers["web/a"]
        assert live(runtime) == "bcd"
        assert (status.idle_reason, status.effective_weight, status.ejected_until) == (IdleReason.EJECTED, 0, 130.0)
        assert (derived.services["web"].state, derived.next_at) == ("degraded", 130.0)
        assert (
            derived.state.servers["web/a"] == derive.desired(site(), Runtime(health=health()), 0).state.servers["web/a"]
        )

    def test_it_returns_when_its_time_is_over(self) -> None:
        assert live(eject("a"), 129.9) == "bcd"
        assert live(eject("a"), 130.0) == "abcd"

    @pytest.mark.parametrize(("part", "most"), [(50, 2), (74, 2), (75, 3), (10, 1), (0, 0), (100, 3)])
    def test_at_most_a_share_of_the_pool_is_out_and_one_is_always_left(self, part: int, most: int) -> None:
        of = site(passive=replace(PASSIVE, max_ejected=part))
        assert len(out(eject("abcd", of=of))) == most

    def test_f40_the_last_live_server_stays_whatever_happens_when_all_are_down(self) -> None:
        for when in WhenAllDown:
            of = site("ab", when_all_down=when, passive=replace(PASSIVE, max_ejected=100))
            runtime = eject("ab", Runtime(health=health("ab")), of=of)
            assert (out(runtime), live(runtime, of=of)) == ("a", "b")

    def test_never_so_many_that_less_than_the_quorum_is_left(self) -> None:
        of = site(quorum=3, passive=replace(PASSIVE, max_ejected=100))
        assert out(eject("abcd", of=of)) == "a"

    def test_a_backup_that_is_up_may_take_over(self) -> None:
        of = site("ab", backup="b")
        runtime = eject("a", Runtime(health=health("ab")), of=of)
        assert live(runtime, of=of) == "b"

    def test_an_ejection_is_overruled_when_the_others_die(self) -> None:
        runtime = replace(eject("ab"), health=health("ab", "cd"))
        assert live(runtime) == "ab"
        status = derive.desired(site(), runtime, 100.0).servers["web/a"]
        assert (status.idle_reason, status.ejected_until) == (None, 130.0)

    @pytest.mark.parametrize("when", list(WhenAllDown))
    def test_f40_ejected_servers_that_are_up_come_before_failing_open(self, when: WhenAllDown) -> None:
        of = site("ab", when_all_down=when)
        runtime = replace(eject("a", Runtime(health=health("ab")), of=of), health=health("a", "b"))
        assert derive.desired(of, runtime, 100.0).services["web"].mode is ServiceMode.FORWARD
        assert live(runtime, of=of) == "a"

    def test_servers_that_take_no_flows_anyway_are_left_alone(self) -> None:
        assert out(eject("a", Runtime(health=health("bcd", "a")))) == ""
        drained = derive.set_admin(site(), Runtime(health=health()), "web/a", AdminState.DRAIN, 0.0)
        assert out(eject("a", drained)) == ""
        assert out(eject("d", of=site(backup="d"))) == ""

    def test_pools_without_passive_checking_and_strange_keys_are_left_alone(self) -> None:
        assert eject("a", of=site(passive=None)).ejections == {}
        assert passive.eject(site(), Runtime(health=health()), ["web/x", "other/a"], 1.0).ejections == {}


class TestReturn:
    def test_a_passed_probe_ends_the_first_ejection(self) -> None:
        runtime = passive.vouch(site(), eject("a"), {target("a"): 105.0}, 105.0)
        assert live(runtime, 105.0) == "abcd"

    def test_but_not_one_that_began_before_it(self) -> None:
        assert live(passive.vouch(site(), eject("a"), {target("a"): 100.5}, 100.5), 100.5) == "bcd"

    def test_nor_one_of_another_server_nor_while_the_probes_say_down(self) -> None:
        assert live(passive.vouch(site(), eject("a"), {target("b"): 105.0}, 105.0), 105.0) == "bcd"
        down = replace(eject("a"), health=health("bcd", "a"))
        assert passive.vouch(site(), down, {target("a"): 105.0}, 105.0) is down

    def test_f43_a_server_that_fails_again_soon_sits_out_its_time(self) -> None:
        runtime = passive.vouch(site(), eject("a"), {target("a"): 105.0}, 105.0)
        again = eject("a", runtime, 106.0)
        assert again.ejections["web/a"] == Ejection(106.0, 166.0, 2, 286.0)
        assert live(passive.vouch(site(), again, {target("a"): 120.0}, 120.0), 120.0) == "bcd"

    def test_f43_a_server_that_comes_and_goes_changes_the_table_ever_less_often(self) -> None:
        runtime, now, moments = Runtime(health=health()), 0.0, 0
        while now < 3600.0:
            now += 0.25
            if not out(runtime, now):
                runtime = eject("a", runtime, now)
                moments += 1
            runtime = passive.vouch(site(), runtime, {target("a"): now}, now)
        assert moments <= 20
        assert runtime.ejections["web/a"].until - runtime.ejections["web/a"].since == 300.0

    def test_calm_is_rewarded(self) -> None:
        runtime = eject("a")
        forgotten = derive.settle(site(), runtime, 190.0, frozenset())
        assert forgotten.ejections == {}
        assert eject("a", forgotten, 200.0).ejections["web/a"].times == 1

    def test_an_ejection_outlives_a_reload_but_not_the_server_or_the_setting(self) -> None:
        assert out(derive.transition(site(), site(slow_start_s=5.0), eject("a"), 101.0)) == "a"
        assert out(derive.transition(site(), site(passive=None), eject("a"), 101.0)) == ""
        moved = configuration(service(), pool(server("10.9.9.9:80", name="a"), passive=PASSIVE))
        assert out(derive.transition(site(), moved, eject("a"), 101.0)) == ""

    def test_who_returns_starts_slowly(self) -> None:
        of = site(slow_start_s=20.0)
        runtime = derive.noted(of, eject("a", of=of), 130.0)
        assert derive.desired(of, runtime, 130.0).servers["web/a"].share == 10


@given(
    st.lists(st.tuples(st.sampled_from(["eject", "vouch", "die", "live"]), st.sampled_from(NAMES), st.floats(0.1, 40))),
    st.integers(0, 100),
    st.integers(1, 5),
)
def test_passive_checking_never_takes_a_service_down(
    steps: list[tuple[str, str, float]], part: int, quorum: int
) -> None:
    """Whatever happens: with passive checking a service forwards whenever it would without."""
    of = site(passive=replace(PASSIVE, max_ejected=part), quorum=quorum)
    runtime, now = Runtime(health=health()), 0.0
    for what, name, later in steps:
        now += later
        match what:
            case "eject":
                runtime = passive.eject(of, runtime, [f"web/{name}"], now)
            case "vouch":
                runtime = passive.vouch(of, runtime, {target(name): now}, now)
            case _:
                state = DOWN if what == "die" else UP
                runtime = derive.noted(of, replace(runtime, health={**runtime.health, target(name): state}), now)
        with_it = derive.desired(of, runtime, now)
        without = derive.desired(of, replace(runtime, ejections={}), now)
        assert with_it.services["web"].mode is without.services["web"].mode
        assert set(live(runtime, now, of)) <= set(live(replace(runtime, ejections={}), now, of))


def test_ten_thousand_servers_that_fail_together_are_decided_about_in_one_go() -> None:
    names = [f"10.{n >> 8}.{n & 255}.1:80" for n in range(10_000)]
    crowd = configuration(service(), pool(*map(server, names), passive=PASSIVE))
    runtime = passive.eject(crowd, Runtime(), {f"web/{name}" for name in names}, 1.0)
    assert len(passive.ejected(runtime, 1.0)) == 5_000
    assert len(derive.settle(crowd, runtime, 1000.0, frozenset()).ejections) == 0

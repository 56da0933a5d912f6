# SPDX-License-Identifier: Apache-2.0
"""Slow start: who starts slowly, how its share grows, and what schedulers make of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeTarget
from fairlead.model.pool import AdminState
from fairlead.model.reasons import ShareReason
from fairlead.model.service import Scheduler
from fairlead.policy import derive, rising, tables
from fairlead.policy.derive import Derived, Runtime
from support.models import DOWN, TCP_MONITOR, UP, configuration, endpoint, pool, server, service

A, B = "10.0.0.1:80", "10.0.0.2:80"
UNKNOWN = HealthState()


def site(slow_start_s: float = 20.0, scheduler: Scheduler = Scheduler.WRR, *servers: str) -> Configuration:
    found = [server(each, weight=3 if each == A else 1) for each in servers or (A, B)]
    return configuration(service(scheduler=scheduler), pool(*found, monitors=(TCP_MONITOR,), slow_start_s=slow_start_s))


def health(**verdicts: HealthState) -> dict[ProbeTarget, HealthState]:
    return {ProbeTarget(endpoint({"a": A, "b": B}[name]), TCP_MONITOR): state for name, state in verdicts.items()}


def after(*history: tuple[float, dict[ProbeTarget, HealthState]], of: Configuration | None = None) -> Runtime:
    """What is noted when verdicts come like this."""
    runtime = Runtime()
    for now, states in history:
        runtime = derive.noted(of or site(), replace(runtime, health={**runtime.health, **states}), now)
    return runtime


def share(runtime: Runtime, now: float, key: str = A) -> int:
    return derive.desired(site(), runtime, now).servers[f"web/{key}"].share


RETURNED = ((100.0, health(a=UP, b=UP)), (110.0, health(a=DOWN)), (200.0, health(a=UP)))


class TestWho:
    def test_a_server_that_returns_grows_to_its_weight_within_the_slow_start(self) -> None:
        runtime = after(*RETURNED)
        shares = [share(runtime, 200.0 + 2 * step) for step in range(12)]
        assert shares == [10, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100]

    def test_at_the_first_start_nobody_does(self) -> None:
        runtime = after((0.0, health(a=UNKNOWN, b=UNKNOWN)), (1.0, health(a=UP, b=UP)))
        assert (runtime.rising, share(runtime, 1.0)) == ({}, 100)

    def test_a_server_that_was_down_at_the_first_start_does(self) -> None:
        runtime = after((0.0, health(a=UNKNOWN, b=UNKNOWN)), (1.0, health(a=DOWN, b=UP)), (9.0, health(a=UP)))
        assert share(runtime, 9.0) == 10

    @pytest.mark.parametrize("state", [AdminState.DRAIN, AdminState.MAINT])
    def test_a_server_that_was_drained_or_in_maintenance_does(self, state: AdminState) -> None:
        runtime = derive.set_admin(site(), after((0.0, health(a=UP, b=UP))), f"web/{A}", state, 10.0)
        runtime = derive.set_admin(site(), runtime, f"web/{A}", AdminState.READY, 50.0)
        runtime = derive.noted(site(), replace(runtime, health=health(a=UP, b=UP)), 50.0)
        assert (share(runtime, 50.0), share(runtime, 50.0, B)) == (10, 100)

    def test_a_server_that_joins_does_and_one_that_is_renamed_does_not(self) -> None:
        joined = derive.transition(site(20.0, Scheduler.WRR, A), site(), after((0.0, health(a=UP, b=UP))), 30.0)
        joined = derive.noted(site(), replace(joined, health=health(a=UP, b=UP)), 30.0)
        assert (share(joined, 30.0), share(joined, 30.0, B)) == (100, 10)
        renamed = configuration(
            service(), pool(server(A, name="new"), server(B), monitors=(TCP_MONITOR,), slow_start_s=20.0)
        )
        runtime = derive.transition(site(), renamed, after((0.0, health(a=UP, b=UP))), 30.0)
        assert derive.desired(renamed, runtime, 30.0).servers["web/new"].share == 100

    def test_without_slow_start_nobody_does(self) -> None:
        runtime = after(*RETURNED, of=site(0.0))
        assert (runtime.resting, runtime.rising) == (frozenset(), {})

    def test_a_server_that_falls_again_begins_anew(self) -> None:
        runtime = after(*RETURNED, (216.0, health(a=DOWN)), (300.0, health(a=UP)))
        assert share(runtime, 300.0) == 10

    def test_a_reload_and_a_changed_slow_start_keep_its_clock(self) -> None:
        runtime = derive.transition(site(), site(40.0), after(*RETURNED), 210.0)
        assert derive.desired(site(40.0), runtime, 220.0).servers[f"web/{A}"].share == 50


def decided(scheduler: Scheduler, now: float = 208.0) -> Derived:
    """A's share of its weight 3 is 40 %, B has its weight 1."""
    return derive.desired(site(20.0, scheduler), after(*RETURNED), now)


class TestSchedulers:
    @pytest.mark.parametrize(
        ("scheduler", "part"),
        [
            (Scheduler.WRR, 1.2 / 2.2),
            (Scheduler.RR, 0.4 / 1.4),
            (Scheduler.MAGLEV, 1.2 / 2.2),
            (Scheduler.SH, 1.2 / 2.2),
            (Scheduler.RANDOM, 1.2 / 2.2),
        ],
    )
    def test_slots_follow_the_share(self, scheduler: Scheduler, part: float) -> None:
        (recipe,) = decided(scheduler).state.tables.values()
        assert recipe is not None
        counted = Counter(tables.build(recipe))
        assert counted[0] / recipe.size == pytest.approx(part, rel=0.02)

    def test_wlc_follows_the_weights_of_the_servers(self) -> None:
        servers = decided(Scheduler.WLC).state.servers
        assert [servers[f"web/{each}"].weight for each in (A, B)] == [120, 100]

    def test_lc_knows_no_weights(self) -> None:
        (recipe,) = decided(Scheduler.LC).state.tables.values()
        assert recipe is not None
        assert tables.build(recipe).tolist() == [0, 1]

    def test_each_step_is_another_table_and_the_end_is_the_first_one_again(self) -> None:
        digests = {next(iter(decided(Scheduler.MAGLEV, 200.0 + t / 2).state.tables)) for t in range(100)}
        assert len(digests) == rising.STEPS
        calm = derive.desired(site(20.0, Scheduler.MAGLEV), Runtime(health=health(a=UP, b=UP)), 0.0)
        assert next(iter(calm.state.tables)) in digests

    def test_people_are_told(self) -> None:
        status = decided(Scheduler.WRR).servers[f"web/{A}"]
        assert (status.effective_weight, status.share, status.share_reason) == (2, 40, ShareReason.SLOW_START)
        assert status.idle_reason is None

    def test_the_quorum_counts_whole_weights(self) -> None:
        assert decided(Scheduler.WRR).services["web"].live_weight == 4


@given(st.floats(0, 1e7), st.floats(0.001, 86400), st.floats(0, 1))
def test_shares_grow_at_the_foretold_moments_only(since: float, slow_start_s: float, part: float) -> None:
    now = since + part * slow_start_s
    following = rising.next_step_at(slow_start_s, now)
    assert following > now
    held = rising.share(since, slow_start_s, now)
    assert 10 <= held <= 100
    assert rising.share(since, slow_start_s, (now + following) / 2) in {
        held,
        rising.share(since, slow_start_s, following),
    }
    assert held <= rising.share(since, slow_start_s, following) <= held + 10
    assert rising.share(since, slow_start_s, since + 1.2 * slow_start_s + 0.02) == 100


def test_many_servers_that_come_up_one_after_the_other_change_the_table_at_few_moments() -> None:
    names = [f"10.0.1.{n}:80" for n in range(1, 101)]
    crowd = site(10.0, Scheduler.WRR, *names)
    runtime = Runtime(resting=frozenset(f"web/{name}" for name in names))
    moments = set()
    for number, name in enumerate(names):
        now = 100.0 + number / 100
        state = {ProbeTarget(endpoint(name), TCP_MONITOR): UP}
        runtime = derive.noted(crowd, replace(runtime, health={**runtime.health, **state}), now)
    now = 101.0
    while (found := derive.desired(crowd, runtime, now).next_at) is not None:
        moments.add(found)
        now = found
        runtime = derive.noted(crowd, runtime, now)
    assert len(moments) <= rising.STEPS + 1
    assert runtime.rising == {}

# SPDX-License-Identifier: Apache-2.0
"""VRRP routers on a simulated LAN: after whatever happened, one Active router in each connected part."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.protocols.vrrp.machine import VrrpState, Why
from sim.lan import Lan, router

INTERVAL_S = 0.1
SETTLE_S = 3 * INTERVAL_S * 4 + 0.2  # Active_Down_Interval of the slowest, a preemption, and a round more


def test_the_better_router_owns_the_address_from_a_cold_start() -> None:
    lan = Lan([router(0, priority=100), router(1, priority=200)])
    lan.start()
    lan.run_until(2)
    assert lan.active() == {1}


def test_equal_priorities_are_decided_by_address() -> None:
    lan = Lan([router(0), router(1), router(2)])
    lan.start()
    lan.run_until(2)
    assert lan.active() == {2}


def test_unplanned_takeover_takes_the_active_down_interval() -> None:
    lan = Lan([router(0, priority=100), router(1, priority=200)])
    lan.start()
    lan.run_until(2)
    lan.kill(1)
    killed = lan.now
    lan.run_until(4)
    moment, moved = lan.nodes[0].moves[-1]
    assert moved.new is VrrpState.ACTIVE
    assert moment - killed <= 3 * INTERVAL_S + 156 / 256 * INTERVAL_S + 0.001


def test_planned_release_takes_a_skew() -> None:
    lan = Lan([router(0, priority=100), router(1, priority=200)])
    lan.start()
    lan.run_until(2)
    lan.nodes[1].machine.release(lan.now)
    lan.act(1)
    released = lan.now
    lan.run_until(4)
    assert lan.active() == {0}
    assert lan.nodes[0].moves[-1][0] - released <= INTERVAL_S


def test_without_preempt_the_first_stays() -> None:
    lan = Lan([router(0, priority=100), router(1, priority=200)])
    lan.start(0)
    lan.run_until(2)
    lan.start(1)
    lan.run_until(5)
    assert lan.active() == {0}


@pytest.mark.parametrize("delay_s", [0.0, 1.5])
def test_with_preempt_the_better_takes_over_after_its_delay(delay_s: float) -> None:
    lan = Lan([router(0, priority=100, preempt=True), router(1, priority=200, preempt=True, preempt_delay_s=delay_s)])
    lan.start(0)
    lan.run_until(2)
    lan.start(1)
    lan.run_until(2 + delay_s)
    assert delay_s == 0 or lan.active() == {0}
    lan.run_until(2 + delay_s + SETTLE_S)
    assert lan.active() == {1}


@pytest.mark.parametrize("stall_s", [0.15, 0.3, 0.5, 3.0, 10.0])
@pytest.mark.parametrize("preempt", [False, True])
def test_f01_a_stalled_active_router_listens_before_it_speaks(stall_s: float, preempt: bool) -> None:
    lan = Lan([router(0, priority=100, preempt=preempt), router(1, priority=200, preempt=preempt)])
    lan.start()
    lan.run_until(2)
    lan.stall(1, stall_s)
    ends = lan.now + stall_s
    lan.run_until(ends + INTERVAL_S)
    both = [moment for moment, owners in lan.owners if len(owners) > 1 and moment > ends]
    assert both == []
    assert len(lan.active()) == 1
    lan.run_until(ends + 5)
    if preempt or stall_s < 2 * INTERVAL_S:
        assert lan.active() == {1}
    elif stall_s > 4 * INTERVAL_S:
        assert lan.active() == {0}
    else:
        assert len(lan.active()) == 1


def test_f01_a_backup_router_that_was_stalled_does_not_take_over() -> None:
    lan = Lan([router(0, priority=100), router(1, priority=200)])
    lan.start()
    lan.run_until(2)
    lan.lost = lambda _from, to: to == 0  # its socket's queue overran while it was stopped
    lan.stall(0, 3)
    lan.run_until(2 + 3 - 0.001)
    lan.lost = lambda _from, _to: False
    lan.run_until(8)
    assert all(moved.new is not VrrpState.ACTIVE for _, moved in lan.nodes[0].moves)


def test_f02_healing_tells_the_neighbours_though_the_owner_never_changed() -> None:
    lan = Lan([router(0, priority=100), router(1, priority=200)])
    lan.start()
    lan.run_until(2)
    lan.lost = lambda sender, _to: sender == 1  # only one direction is lost
    lan.run_until(4)
    lan.lost = lambda _from, _to: False
    healed = lan.now
    lan.run_until(6)
    assert lan.active() == {1}
    assert any(healed <= moment <= healed + 2 * INTERVAL_S for moment in lan.nodes[1].announced_at)


def test_a_degraded_owner_is_relieved_even_without_preempt() -> None:
    lan = Lan([router(0, priority=100), router(1, priority=200)])
    lan.start()
    lan.run_until(2)
    lan.nodes[1].machine.set_priority(1, lan.now)
    lan.act(1)
    lan.run_until(4)
    assert lan.active() == {0}


def test_two_degraded_nodes_still_have_an_owner() -> None:
    lan = Lan([router(0, priority=100), router(1, priority=200)])
    lan.start()
    lan.run_until(2)
    for number in (0, 1):
        lan.nodes[number].machine.set_priority(1, lan.now)
        lan.nodes[number].machine.release(lan.now)
        lan.act(number)
    lan.run_until(5)
    assert len(lan.active()) == 1


def test_a_released_address_comes_back_when_nobody_takes_it() -> None:
    lan = Lan([router(0)])
    lan.start()
    lan.run_until(2)
    lan.nodes[0].machine.release(lan.now)
    lan.act(0)
    assert lan.active() == set()
    lan.run_until(4)
    assert lan.active() == {0}
    assert [moved.why for _, moved in lan.nodes[0].moves][-2:] == [Why.RELEASE, Why.TIMEOUT]


@dataclass(frozen=True)
class Trouble:
    """Something that happens to the LAN: at a moment, to one node, for so long."""

    kind: str
    at: float
    node: int
    lasts: float


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[tuple[int, bool, float]], list[Trouble], int, float, float]:
    """Nodes (priority, preempt, delay), troubles, seed, loss and delay of the network."""
    nodes = draw(
        st.lists(
            st.tuples(st.integers(1, 255), st.booleans(), st.sampled_from([0.0, 0.0, 0.4])), min_size=2, max_size=4
        )
    )
    troubles = draw(
        st.lists(
            st.builds(
                Trouble,
                st.sampled_from(["stall", "part", "release", "claim", "priority", "deaf"]),
                st.floats(0, 5),
                st.integers(0, len(nodes) - 1),
                st.floats(0, 3),
            ),
            max_size=6,
        )
    )
    return (
        nodes,
        troubles,
        draw(st.integers(0, 2**32)),
        draw(st.sampled_from([0.0, 0.1, 0.4])),
        draw(st.sampled_from([0.0, 0.001, 0.02])),
    )


@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedules())
@pytest.mark.timeout(600)
def test_after_heal_there_is_one_active_router_in_each_part(
    plan: tuple[list[tuple[int, bool, float]], list[Trouble], int, float, float],
) -> None:
    nodes, troubles, seed, loss, delay_s = plan
    chance = random.Random(seed)
    # One node at most owns the address by priority 255: two would be an error of configuration.
    owners = [i for i, (priority, _, _) in enumerate(nodes) if priority == 255]
    lan = Lan(
        [
            router(i, priority=254 if i in owners[1:] else p, preempt=preempt, preempt_delay_s=wait)
            for i, (p, preempt, wait) in enumerate(nodes)
        ],
        delay_s=delay_s,
    )
    deaf: set[int] = set()
    lan.lost = lambda _from, to: to in deaf or chance.random() < loss
    lan.start()
    for trouble in troubles:
        lan.at(trouble.at, partial(_happen, lan, trouble, deaf))
    lan.run_until(8.1)  # every trouble has begun and ended, but parts last
    lan.lost = lambda _from, _to: False
    deaf.clear()
    lan.run_until(lan.now + SETTLE_S + 0.5)
    for part in set(lan.parts):
        assert len(lan.active(part)) == 1
    lan.parts = [0] * len(lan.nodes)
    lan.run_until(lan.now + SETTLE_S + 0.5)
    assert len(lan.active()) == 1
    settled = lan.now
    lan.run_until(settled + 5)
    assert [owners for moment, owners in lan.owners if moment > settled] == [], "nobody moves when nothing happens"


def _happen(lan: Lan, trouble: Trouble, deaf: set[int]) -> None:
    machine = lan.nodes[trouble.node].machine
    if trouble.kind == "stall":
        lan.stall(trouble.node, trouble.lasts)
        return
    if trouble.kind == "part":
        lan.parts[trouble.node] = 1 - lan.parts[trouble.node]
    elif trouble.kind == "deaf":
        deaf.add(trouble.node)
        lan.at(lan.now + trouble.lasts, lambda: deaf.discard(trouble.node))
    elif trouble.kind == "release":
        machine.release(lan.now)
    elif trouble.kind == "claim":
        machine.claim(lan.now)
    elif machine.priority != 255:
        machine.set_priority(1 + int(trouble.lasts * 80), lan.now)
    lan.act(trouble.node)

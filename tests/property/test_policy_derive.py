# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a configuration: who may take flows, what is said about it, and when it changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.model.configuration import Configuration
from fairlead.model.health import AgentReport, HealthState, Verdict
from fairlead.model.pool import AdminState, HealthMonitor, MonitorType, PassiveCheck, Pool, RealServer, server_key
from fairlead.model.service import Scheduler, VirtualService, WhenAllDown
from fairlead.model.state import FlowTreatment, ForwardingState, Listener, ServiceMode
from fairlead.policy import derive, passive, tables
from fairlead.policy.derive import Derived, Runtime
from fairlead.policy.plan import apply_op, plan
from fairlead.policy.runtime import admin_state, pool_of, present_weight, successor
from support.models import DOWN, TCP_MONITOR, UP, configuration, pool, server, service

EXAMPLES = settings(max_examples=100, deadline=None)
SLOWER = replace(TCP_MONITOR, interval_s=9.0)
REPORTS = st.builds(
    AgentReport,
    share=st.sampled_from([None, 0, 50, 100]),
    admin=st.sampled_from([None, *AdminState]),
    up=st.sampled_from([None, True, False]),
    max_connections=st.sampled_from([None, 0, 7]),
)
POOLS = ("web", "api")
SERVERS = ("a", "b", "c")


@st.composite
def pools(draw: st.DrawFn, name: str) -> Pool:
    servers: list[RealServer] = [
        server(
            f"10.0.0.{draw(st.integers(1, 4))}:80",
            name=each,
            weight=draw(st.integers(0, 3)),
            state=draw(st.sampled_from([AdminState.READY, AdminState.READY, AdminState.READY, *AdminState])),
            backup=draw(st.booleans()),
        )
        for each in sorted(draw(st.sets(st.sampled_from(SERVERS), min_size=1)))
    ]
    return pool(
        *servers,
        name=name,
        monitors=draw(st.sampled_from([(), (TCP_MONITOR,), (SLOWER,), (TCP_MONITOR, SLOWER)])),
        drain_timeout_s=draw(st.sampled_from([0.0, 5.0, 30.0])),
        quorum=draw(st.integers(1, 4)),
        slow_start_s=draw(st.sampled_from([0.0, 0.0, 3.0])),
        passive=draw(st.sampled_from([None, PassiveCheck(eject_s=6.0)])),
        agent=draw(st.sampled_from([None, HealthMonitor(MonitorType.AGENT, port=9999)])),
    )


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    present = [draw(pools(name)) for name in POOLS if draw(st.booleans())]
    services: Sequence[VirtualService] = [
        service(
            f"192.0.2.{number}:80",
            name=f"service-{number}",
            pool=draw(st.sampled_from(present)).name,
            # Maglev tables are never built here: only their recipes count.
            scheduler=draw(st.sampled_from(Scheduler)),
            when_all_down=draw(st.sampled_from(WhenAllDown)),
        )
        for number in range(draw(st.integers(0, 3)) if present else 0)
    ]
    seed = draw(st.sampled_from([None, None, bytes(16)]))
    return replace(configuration(*present, *services), hash_seed=seed)


@st.composite
def successors(draw: st.DrawFn, current: Configuration) -> Configuration:
    """What a file may say next; some pools and services are those of before."""
    following = draw(configurations())
    kept = draw(st.sets(st.sampled_from((*POOLS, *current.services))))
    pools = {name: current.pools.get(name, it) if name in kept else it for name, it in following.pools.items()}
    services = {name: each for name, each in current.services.items() if name in kept and each.pool in pools}
    return replace(following, pools=pools, services={**following.services, **services})


Step = tuple[Configuration, Runtime, float]


@st.composite
def chronicles(draw: st.DrawFn) -> list[Step]:
    """Configurations in force, with some reloads, wishes of the operator and verdicts between them; and moments."""
    now, current, runtime = 0.0, draw(configurations()), Runtime()
    runtime = derive.settle(current, runtime, now, frozenset())
    steps = [(current, runtime, now)]
    for _ in range(draw(st.integers(0, 6))):
        now += draw(st.sampled_from([0.0, 1.0, 4.0, 7.0, 40.0]))
        keys = [server_key(it.name, each.name) for it in current.pools.values() for each in it.servers]
        match draw(st.sampled_from(["reload", "admin", "weight", "health", "settle", "eject", "advice"])):
            case "reload":
                following = draw(successors(current))
                runtime = derive.transition(current, following, runtime, now)
                current = following
            case "admin" if keys:
                wish = draw(st.sampled_from(AdminState))
                runtime = derive.set_admin(current, runtime, draw(st.sampled_from(keys)), wish, now)
            case "weight" if keys:
                runtime = derive.set_weight(current, runtime, draw(st.sampled_from(keys)), draw(st.integers(0, 3)), now)
            case "eject" if keys:
                runtime = passive.eject(current, runtime, draw(st.sets(st.sampled_from(keys))), now)
            case "advice":
                for target in derive.targets(current, runtime):
                    if target.monitor.type is MonitorType.AGENT:
                        runtime = derive.heard(runtime, target, draw(REPORTS))
            case "health":
                known = {it: draw(st.sampled_from([UP, UP, DOWN])) for it in derive.targets(current, runtime)}
                runtime = replace(runtime, health=known)
            case _:
                idle = frozenset(draw(st.sets(st.sampled_from(sorted(runtime.departures) or ["none"]))))
                runtime = derive.settle(current, runtime, now, idle)
        steps.append((current, runtime, now))
    steps.append((current, derive.settle(current, runtime, now, frozenset()), now))
    return steps


@st.composite
def histories(draw: st.DrawFn) -> Step:
    """How such a chronicle ends: a configuration in force, what happened, and the present moment."""
    return draw(chronicles())[-1]


def live_keys(derived: Derived, name: str) -> frozenset[str]:
    table = derived.state.services[name].table
    recipe = derived.state.tables[table] if table is not None else None
    return recipe.live if recipe else frozenset()


@given(histories())
@EXAMPLES
def test_no_new_flow_goes_where_the_operator_says_no(history: tuple[Configuration, Runtime, float]) -> None:
    current, runtime, now = history
    derived = derive.desired(current, runtime, now)
    for each in current.services.values():
        servers = {server_key(each.pool, it.name): it for it in current.pools[each.pool].servers}
        for key in live_keys(derived, each.name):
            assert admin_state(runtime, key, servers[key]) is AdminState.READY
            assert present_weight(runtime, key, servers[key]) > 0
            assert derived.state.servers[key].flows is FlowTreatment.KEEP


@given(histories())
@EXAMPLES
def test_no_new_flow_goes_to_a_down_server_unless_the_service_fails_open(
    history: tuple[Configuration, Runtime, float],
) -> None:
    current, runtime, now = history
    derived = derive.desired(current, runtime, now)
    for each in current.services.values():
        down = {key for key in live_keys(derived, each.name) if derived.servers[key].health is Verdict.DOWN}
        if down:
            assert each.when_all_down is WhenAllDown.USE_ALL
            assert derived.services[each.name].state == "degraded"


@given(histories())
@EXAMPLES
def test_primaries_and_backups_never_mix(history: tuple[Configuration, Runtime, float]) -> None:
    current, runtime, now = history
    derived = derive.desired(current, runtime, now)
    for name in current.services:
        assert len({derived.servers[key].backup for key in live_keys(derived, name)}) <= 1


@given(histories())
@EXAMPLES
def test_what_is_said_agrees_with_what_is_held(history: tuple[Configuration, Runtime, float]) -> None:
    current, runtime, now = history
    derived = derive.desired(current, runtime, now)
    used = frozenset().union(*(live_keys(derived, name) for name in current.services))
    assert derived.servers.keys() == derived.state.servers.keys()
    for key, status in derived.servers.items():
        assert (status.effective_weight == 0) is (status.idle_reason is not None)
        assert status.effective_weight in (0, -(-status.weight * status.share // 100))
        assert (status.share < 100) is (status.share_reason is not None)
        assert key not in used or status.effective_weight > 0
    for name, said in derived.services.items():
        held = derived.state.services[name]
        assert said.mode is held.mode
        assert (held.mode is ServiceMode.FORWARD) is (held.table is not None) is bool(live_keys(derived, name))
        assert (said.state == "down") is (held.mode is not ServiceMode.FORWARD)
        if said.state == "up":
            assert said.live_weight == sum(derived.servers[key].weight for key in live_keys(derived, name))


@given(histories())
@EXAMPLES
def test_the_state_can_be_applied_and_its_tables_are_named_right(
    history: tuple[Configuration, Runtime, float],
) -> None:
    current, runtime, now = history
    state = derive.desired(current, runtime, now).state
    built = ForwardingState()
    for op in plan(state, built).ops:
        built = apply_op(built, op)
    assert built == state
    assert all(table and tables.digest(table) == name for name, table in state.tables.items())
    assert {spec.table for spec in state.services.values()} - {None} == state.tables.keys()


@given(histories())
@EXAMPLES
def test_nothing_changes_before_next_at(history: tuple[Configuration, Runtime, float]) -> None:
    current, runtime, now = history
    derived = derive.desired(current, runtime, now)
    until = derived.next_at if derived.next_at is not None else now + 1e6
    assert until > now
    for moment in ((now + until) / 2, math.nextafter(until, now)):
        if now <= moment < until:
            settled = derive.settle(current, runtime, moment, frozenset())
            assert replace(settled, ejections=runtime.ejections) == runtime  # what is over may be forgotten
            assert derive.desired(current, settled, moment) == derived


@given(histories())
@EXAMPLES
def test_time_alone_ends_every_flow_that_must_end(history: tuple[Configuration, Runtime, float]) -> None:
    """Following ``next_at`` is enough: it ends, with every drain over and every removed server forgotten."""
    current, runtime, now = history
    for _ in range(40):
        derived = derive.desired(current, runtime, now)
        if derived.next_at is None:
            break
        now = derived.next_at
        runtime = derive.settle(current, runtime, now, frozenset())
    assert derived.next_at is None
    assert all(successor(current, departure) for departure in runtime.departures.values())
    for status in derived.servers.values():
        if status.drain_deadline is not None:
            assert derived.state.servers[status.key].flows is FlowTreatment.RESET


@given(histories(), st.sampled_from([0.0, 1.0, 40.0]))
@EXAMPLES
def test_the_same_file_again_changes_nothing(history: tuple[Configuration, Runtime, float], later: float) -> None:
    current, runtime, now = history
    now += later
    again = derive.transition(current, current, runtime, now)
    assert replace(again, ejections=runtime.ejections) == derive.noted(current, runtime, now)
    before, after = derive.desired(current, runtime, now), derive.desired(current, again, now)
    assert plan(after.state, before.state).ops == ()


@given(histories(), configurations(), st.sampled_from([0.0, 1.0, 40.0]))
@EXAMPLES
def test_a_reload_never_makes_a_dead_server_look_alive(
    history: tuple[Configuration, Runtime, float], following: Configuration, later: float
) -> None:
    current, runtime, now = history
    before = derive.desired(current, runtime, now)
    after = derive.desired(following, derive.transition(current, following, runtime, now + later), now + later)
    dead = {(it.pool, it.endpoint) for it in before.servers.values() if it.health is Verdict.DOWN}
    alive = {(it.pool, it.endpoint) for it in before.servers.values() if it.health is not Verdict.DOWN}
    for status in after.servers.values():
        place = (status.pool, status.endpoint)
        if status.health is Verdict.UP and place in dead - alive:
            assert following.pools[status.pool].monitors != current.pools[status.pool].monitors


@given(histories(), configurations(), st.sampled_from([0.0, 1.0, 40.0]))
@EXAMPLES
def test_a_reload_never_postpones_a_drain(
    history: tuple[Configuration, Runtime, float], following: Configuration, later: float
) -> None:
    current, runtime, now = history
    after = derive.transition(current, following, runtime, now + later)
    for key, since in after.drain_since.items():
        assert since == runtime.drain_since.get(key, now + later)
    for key, departure in runtime.departures.items():
        assert after.departures.get(key, departure) == departure


@given(histories())
@EXAMPLES
def test_established_flows_end_only_by_the_operators_wish(history: tuple[Configuration, Runtime, float]) -> None:
    current, runtime, now = history
    derived = derive.desired(current, replace(runtime, health=dict.fromkeys(runtime.health, HealthState())), now)
    for key, spec in derived.state.servers.items():
        status = derived.servers[key]
        if spec.flows is FlowTreatment.RESET and key not in runtime.departures:
            over = status.drain_deadline is not None and status.drain_deadline <= now
            draining = status.admin is AdminState.DRAIN or status.weight == 0
            assert status.admin is AdminState.MAINT or (draining and over)


@given(chronicles())
@EXAMPLES
def test_a_decision_before_saves_work_and_changes_no_decision(chronicle: list[Step]) -> None:
    before: Derived | None = None
    for current, runtime, now in chronicle:
        pools = derive.touched(before, current, runtime, now)
        noted = derive.noted(current, runtime, now, pools)
        assert noted == derive.noted(current, runtime, now)
        before = derive.desired(current, noted, now, before)
        assert before == derive.desired(current, noted, now)


@given(histories(), st.data())
@EXAMPLES
def test_a_reload_comes_to_the_same_whether_it_is_known_what_stays(history: Step, data: st.DataObject) -> None:
    current, runtime, now = history
    known = data.draw(successors(current))
    unknown = replace(known, pools={name: replace(it) for name, it in known.pools.items()})
    assert unknown.pools_unlike(current) == known.pools.keys() | current.pools.keys()
    after = derive.transition(current, known, runtime, now)
    assert after == derive.transition(current, unknown, runtime, now)
    assert unknown.keeping(current).pools_unlike(current) <= known.pools_unlike(current)


@given(histories(), st.data())
@EXAMPLES
def test_a_reload_leaves_what_it_does_not_concern(history: Step, data: st.DataObject) -> None:
    """The same objects: so a data plane need not be asked about them."""
    current, runtime, now = history
    before = derive.desired(current, runtime, now)
    following = data.draw(successors(current))
    runtime = derive.transition(current, following, runtime, now)
    after = derive.desired(following, runtime, now, before)
    concerned = derive.touched(before, following, runtime, now)
    concerned = POOLS if concerned is None else concerned
    for key, spec in before.state.servers.items():
        assert pool_of(key) in concerned or after.state.servers[key] is spec
    for name, held in before.state.services.items():
        assert held.pool in concerned or after.state.services[name] is held
    assert after.state.listeners == {
        Listener(it.name, it.protocol, listen) for it in following.services.values() for listen in it.listen
    }


@given(chronicles())
@EXAMPLES
def test_what_did_not_change_is_the_same_object(chronicle: list[Step]) -> None:
    current, runtime, now = chronicle[-1]
    before = derive.desired(current, runtime, now)
    for name in current.pools:
        for each in current.pools[name].servers[:1]:
            after = derive.desired(
                current, derive.set_weight(current, runtime, server_key(name, each.name), 7, now), now, before
            )
            for key in before.state.servers:
                if not key.startswith(f"{name}/"):
                    assert after.state.servers[key] is before.state.servers[key]
            for spec in before.state.services.values():
                assert spec.pool == name or after.state.services[spec.name] is spec

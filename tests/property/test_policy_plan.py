# SPDX-License-Identifier: Apache-2.0
"""Plans between any two states: they arrive, also when cut anywhere, and nothing named is ever missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.model.service import Scheduler
from fairlead.model.state import FlowTreatment, ForwardingState, Listener, Plan, ServerSpec, ServiceSpec
from fairlead.policy import tables
from fairlead.policy.plan import apply_op, describe, plan
from support.models import forwarding_state, listener, server_spec, service_spec, table_spec

EXAMPLES = settings(max_examples=100, deadline=None)
NAMES = "abcd"
ADDRESSES = ("192.0.2.10:80", "192.0.2.10:80-89", "192.0.2.10:85-99", "[2001:db8::1]:80", "192.0.2.11:443")


@st.composite
def server_specs(draw: st.DrawFn) -> dict[str, ServerSpec]:
    return {
        name: server_spec(
            f"web/{name}",
            f"10.0.0.{draw(st.integers(1, 2))}:80",
            weight=draw(st.integers(0, 2)),
            flows=draw(st.sampled_from(FlowTreatment)),
        )
        for name in draw(st.sets(st.sampled_from(NAMES)))
    }


@st.composite
def states(draw: st.DrawFn) -> ForwardingState:
    """A consistent state: what is named is there, and live servers keep their flows."""
    servers = draw(server_specs())
    keeping = [name for name, spec in servers.items() if spec.flows is FlowTreatment.KEEP]
    recipes = []
    for live in draw(st.lists(st.sets(st.sampled_from(sorted(keeping)), min_size=1), max_size=3)) if keeping else ():
        members = live | draw(st.sets(st.sampled_from(sorted(servers))))
        weights = dict.fromkeys(sorted(members), 1)
        recipes.append(
            table_spec(weights, dead=frozenset(members - live), size=251, scheduler=draw(st.sampled_from(Scheduler)))
        )
    digests = [None, *map(tables.digest, recipes)]
    services = [
        service_spec(name, draw(st.sampled_from(digests)), retries=draw(st.integers(0, 1)))
        for name in draw(st.sets(st.sampled_from(["web", "api", "ftp"])))
    ]
    return forwarding_state(tuple(servers.values()), tuple(recipes), tuple(services), draw(listeners(services)))


@st.composite
def listeners(draw: st.DrawFn, services: list[ServiceSpec]) -> tuple[Listener, ...]:
    """At most one service for each port of an address."""
    chosen: list[Listener] = []
    for address in ADDRESSES if services else ():
        candidate = listener(draw(st.sampled_from(services)).name, address)
        taken = (
            it.listen.address == candidate.listen.address
            and it.listen.first <= candidate.listen.last
            and candidate.listen.first <= it.listen.last
            for it in chosen
        )
        if draw(st.booleans()) and not any(taken):
            chosen.append(candidate)
    return tuple(chosen)


def blind(state: ForwardingState) -> ForwardingState:
    """What a data plane reads back that keeps digests but no recipes."""
    return replace(state, tables=dict.fromkeys(state.tables))


def run(state: ForwardingState, todo: Plan) -> ForwardingState:
    for op in todo.ops:
        state = apply_op(state, op)
    return state


def cuts(state: ForwardingState, todo: Plan) -> Iterator[ForwardingState]:
    yield state
    for op in todo.ops:
        state = apply_op(state, op)
        yield state


@given(states())
@EXAMPLES
def test_a_state_needs_no_plan_to_itself(state: ForwardingState) -> None:
    assert plan(state, state) == Plan()
    assert plan(state, blind(state)) == Plan()


@given(states(), states())
@EXAMPLES
def test_a_plan_arrives(before: ForwardingState, after: ForwardingState) -> None:
    assert run(before, plan(after, before)) == after


@given(states(), states())
@EXAMPLES
def test_a_plan_arrives_without_knowing_recipes(before: ForwardingState, after: ForwardingState) -> None:
    assert blind(run(blind(before), plan(after, blind(before)))) == blind(after)


@given(states(), states(), states())
@EXAMPLES
def test_a_cut_plan_is_replanned_to_the_same_end(
    before: ForwardingState, after: ForwardingState, other: ForwardingState
) -> None:
    """``other``: the wish may change between the cut and the next plan."""
    for state in cuts(before, plan(after, before)):
        assert run(state, plan(after, state)) == after
        assert run(state, plan(other, state)) == other


@given(states(), states())
@EXAMPLES
def test_every_op_may_be_repeated(before: ForwardingState, after: ForwardingState) -> None:
    state = before
    for op in plan(after, before).ops:
        state = apply_op(state, op)
        assert apply_op(state, op) == state


@given(states(), states())
@EXAMPLES
def test_at_no_cut_is_anything_missing_that_is_named(before: ForwardingState, after: ForwardingState) -> None:
    for state in cuts(before, plan(after, before)):
        assert {spec.table for spec in state.services.values()} - {None} <= state.tables.keys()
        assert {it.service for it in state.listeners} <= state.services.keys()
        for table in state.tables.values():
            assert table is not None
            assert {member.key for member in table.members} <= state.servers.keys()


@given(states(), states())
@EXAMPLES
def test_at_no_cut_does_a_new_flow_meet_a_server_that_resets(before: ForwardingState, after: ForwardingState) -> None:
    for state in cuts(before, plan(after, before)):
        for service in state.services.values():
            table = state.tables[service.table] if service.table is not None else None
            for key in table.live if table else ():
                assert state.servers[key].flows is FlowTreatment.KEEP


@given(states(), states())
@EXAMPLES
def test_a_listener_that_stays_is_never_touched(before: ForwardingState, after: ForwardingState) -> None:
    for state in cuts(before, plan(after, before)):
        assert before.listeners & after.listeners <= state.listeners


@given(states(), states())
@EXAMPLES
def test_a_plan_is_the_same_every_time_and_can_be_told(before: ForwardingState, after: ForwardingState) -> None:
    todo = plan(after, before)
    assert todo == plan(after, before)
    assert len(set(map(repr, todo.ops))) == len(todo.ops)
    assert all(describe(op) and "\n" not in describe(op) for op in todo.ops)


@given(states(), states(), states())
@EXAMPLES
def test_a_pair_that_is_known_to_agree_saves_looking_and_changes_no_plan(
    known: ForwardingState, desired: ForwardingState, observed: ForwardingState
) -> None:
    pair = (known, replace(blind(known), servers=dict(known.servers)))
    assert plan(desired, observed, pair) == plan(desired, observed)
    assert plan(desired, pair[1], pair) == plan(desired, pair[1])
    assert plan(known, observed, pair) == plan(known, observed)

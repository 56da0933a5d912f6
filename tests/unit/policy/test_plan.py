# SPDX-License-Identifier: Apache-2.0
"""Order and wording of Ops, and what the reference semantics refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fairlead.errors import ContractViolation
from fairlead.model.service import Scheduler
from fairlead.model.state import (
    CloseListener,
    DeleteServer,
    DeleteService,
    DeleteTable,
    FlowTreatment,
    ForwardingState,
    Op,
    OpenListener,
    Plan,
    PutServer,
    PutService,
    PutTable,
    ServiceMode,
)
from fairlead.policy import tables
from fairlead.policy.plan import apply_op, describe, plan
from support.models import SEED, forwarding_state, listener, server_spec, service_spec, table_spec

A, B = server_spec("web/a"), server_spec("web/b", "10.0.0.2:80")
BOTH = table_spec({"a": 1, "b": 1}, scheduler=Scheduler.RR, size=2)
ONLY_A = table_spec({"a": 1}, scheduler=Scheduler.RR, size=1)
BOTH_DIGEST, ONLY_A_DIGEST = tables.digest(BOTH), tables.digest(ONLY_A)
WEB = service_spec("web", BOTH_DIGEST)
EMPTY = ForwardingState()
FULL = forwarding_state((A, B), (BOTH,), (WEB,), (listener(),))


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan(FULL, FULL) == Plan()
    assert not plan(FULL, FULL)


def test_from_nothing_everything_is_put_before_it_is_named() -> None:
    assert plan(FULL, EMPTY).ops == (
        PutServer(A),
        PutServer(B),
        PutTable(BOTH_DIGEST, BOTH),
        PutService(WEB),
        OpenListener(listener()),
    )


def test_to_nothing_everything_goes_before_what_it_names() -> None:
    assert plan(EMPTY, FULL).ops == (
        CloseListener(listener()),
        DeleteService("web"),
        DeleteTable(BOTH_DIGEST),
        DeleteServer("web/a"),
        DeleteServer("web/b"),
    )


def test_a_server_that_resets_its_flows_changes_after_the_table_that_stops_using_it() -> None:
    reset = B._replace(flows=FlowTreatment.RESET)
    alone = service_spec("web", ONLY_A_DIGEST)
    desired = forwarding_state((A, reset), (ONLY_A,), (alone,), (listener(),))
    assert plan(desired, FULL).ops == (
        PutTable(ONLY_A_DIGEST, ONLY_A),
        PutService(alone),
        PutServer(reset),
        DeleteTable(BOTH_DIGEST),
    )


def test_a_server_that_comes_back_changes_before_the_table_that_uses_it() -> None:
    reset = B._replace(flows=FlowTreatment.RESET)
    observed = forwarding_state((A, reset), (ONLY_A,), (service_spec("web", ONLY_A_DIGEST),), (listener(),))
    assert plan(FULL, observed).ops == (
        PutServer(B),
        PutTable(BOTH_DIGEST, BOTH),
        PutService(WEB),
        DeleteTable(ONLY_A_DIGEST),
    )


def test_a_new_server_that_nobody_uses_comes_first_too() -> None:
    spare = server_spec("web/c", flows=FlowTreatment.RESET)
    desired = replace(FULL, servers={**FULL.servers, spare.key: spare})
    assert plan(desired, FULL).ops == (PutServer(spare),)


def test_a_changed_weight_touches_only_its_server() -> None:
    heavier = B._replace(weight=5)
    assert plan(replace(FULL, servers={A.key: A, B.key: heavier}), FULL).ops == (PutServer(heavier),)


def test_a_listener_that_moves_closes_right_before_it_opens() -> None:
    other = service_spec("api", BOTH_DIGEST)
    observed = forwarding_state(
        (A, B), (BOTH,), (WEB, other), (listener("web"), listener("web", "192.0.2.11:80"), listener("web", "[::1]:80"))
    )
    desired = replace(observed, listeners=frozenset({listener("api"), listener("api", "192.0.2.11:80")}))
    assert plan(desired, observed).ops == (
        CloseListener(listener("web")),
        OpenListener(listener("api")),
        CloseListener(listener("web", "192.0.2.11:80")),
        OpenListener(listener("api", "192.0.2.11:80")),
        CloseListener(listener("web", "[::1]:80")),
    )


def test_a_range_that_changes_closes_before_it_opens() -> None:
    observed = replace(FULL, listeners=frozenset({listener(at="192.0.2.10:80-89")}))
    desired = replace(FULL, listeners=frozenset({listener(at="192.0.2.10:80-99")}))
    assert plan(desired, observed).ops == (
        CloseListener(listener(at="192.0.2.10:80-89")),
        OpenListener(listener(at="192.0.2.10:80-99")),
    )


def test_a_new_address_opens_before_an_old_one_closes() -> None:
    desired = replace(FULL, listeners=frozenset({listener(at="192.0.2.99:80")}))
    assert plan(desired, FULL).ops == (OpenListener(listener(at="192.0.2.99:80")), CloseListener(listener()))


def test_tables_are_compared_by_digest_alone() -> None:
    blind = replace(FULL, tables={BOTH_DIGEST: None})
    assert plan(FULL, blind) == Plan()
    assert plan(EMPTY, blind) == plan(EMPTY, FULL)


def test_a_desired_table_needs_its_recipe() -> None:
    with pytest.raises(ContractViolation, match="no recipe"):
        plan(replace(FULL, tables={BOTH_DIGEST: None}), EMPTY)


@pytest.mark.parametrize(
    ("state", "op", "why"),
    [
        (FULL, DeleteServer("web/a"), "names it"),
        (FULL, DeleteTable(BOTH_DIGEST), "service web names it"),
        (FULL, DeleteService("web"), "has a listener"),
        (replace(FULL, servers={A.key: A}), PutTable(BOTH_DIGEST, BOTH), "no server web/b"),
        (EMPTY, PutService(WEB), "no table"),
        (FULL, PutService(replace(WEB, table=None)), "table and mode differ"),
        (FULL, PutService(replace(WEB, mode=ServiceMode.REJECT)), "table and mode differ"),
        (FULL, OpenListener(listener("api", "192.0.2.77:80")), "no service api"),
        (FULL, OpenListener(listener("web", "192.0.2.10:70-90")), "in use"),
    ],
)
def test_refusals(state: ForwardingState, op: Op, why: str) -> None:
    with pytest.raises(ContractViolation, match=why):
        apply_op(state, op)


def test_ports_of_other_addresses_and_protocols_do_not_clash() -> None:
    state = apply_op(FULL, OpenListener(listener(at="192.0.2.11:80")))
    assert apply_op(state, OpenListener(listener(at="192.0.2.10:81"))).listeners > state.listeners


@pytest.mark.parametrize(
    ("op", "line"),
    [
        (PutServer(A), "put server web/a: 10.0.0.1:80, weight 1"),
        (
            PutServer(A._replace(max_connections=9, flows=FlowTreatment.RESET)),
            "put server web/a: 10.0.0.1:80, weight 1, at most 9 connections, resetting its flows",
        ),
        (DeleteServer("web/a"), "delete server web/a"),
        (
            PutTable("0123456789abcdef", table_spec({"a": 1, "b": 1}, dead=frozenset({"b"}), seed=SEED)),
            "put table 01234567: maglev, 65537 slots, 1 of 2 servers live",
        ),
        (DeleteTable("0123456789abcdef"), "delete table 01234567"),
        (PutService(service_spec("web", "0123456789abcdef")), "put service web: forward by table 01234567"),
        (PutService(service_spec("web")), "put service web: reject"),
        (DeleteService("web"), "delete service web"),
        (OpenListener(listener()), "open 192.0.2.10:80/tcp for service web"),
        (CloseListener(listener()), "close 192.0.2.10:80/tcp of service web"),
    ],
)
def test_every_op_has_a_line_for_people(op: Op, line: str) -> None:
    assert describe(op) == line

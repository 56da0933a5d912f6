# SPDX-License-Identifier: Apache-2.0
"""When a node should leave its VIPs to another: at once when a service is down, back only after a steady while."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.model.state import ServiceMode
from fairlead.policy.eligibility import (
    FAULT_S,
    MAX_RECOVERY_S,
    RECOVERY_S,
    STEADY_S,
    Eligibility,
    Fault,
    fault,
    next_at,
    step,
)
from fairlead.policy.status import ServiceStatus
from support.models import configuration, pool, server, service

DOWN = Fault("service web is down", settled=True)
BROKEN = Fault("data plane: x", settled=False)
SITE = configuration(service(), pool(server("10.0.0.1:80"), quorum=2))


def status(**changes: Any) -> dict[str, ServiceStatus]:
    return {"web": replace(ServiceStatus("web", "up", ServiceMode.FORWARD, 2), **changes)}


def fallen(now: float = 100.0) -> Eligibility:
    return step(Eligibility(), DOWN, now)


def test_a_followed_service_that_is_down_degrades_at_once() -> None:
    assert fallen().degraded == "service web is down"


def test_a_fault_of_the_data_plane_must_last() -> None:
    state = step(Eligibility(), BROKEN, 100.0)
    assert state.degraded is None
    assert next_at(state) == 100.0 + FAULT_S
    assert step(state, None, 101.0) == Eligibility()
    assert step(state, BROKEN, 100.0 + FAULT_S).degraded == "data plane: x"


def test_recovery_takes_a_while_without_a_fault() -> None:
    state = step(fallen(), None, 101.0)
    assert state.degraded is not None
    assert next_at(state) == 101.0 + RECOVERY_S
    assert step(step(state, DOWN, 102.0), None, 101.0 + RECOVERY_S).degraded is not None, "it began anew"
    assert step(state, None, 101.0 + RECOVERY_S).degraded is None


def test_who_falls_again_and_again_recovers_ever_later_up_to_a_bound() -> None:
    state, now, waits = Eligibility(), 1000.0, []
    for _ in range(8):
        state = step(state, DOWN, now)
        state = step(state, None, now)
        due = next_at(state)
        assert due is not None
        waits.append(due - now)
        now = due
        state = step(state, None, now)
        assert state.degraded is None
    assert waits == [5, 10, 20, 40, 80, 80, 80, 80]
    assert waits[-1] == MAX_RECOVERY_S
    state = step(state, DOWN, now + STEADY_S + 1)
    assert next_at(step(state, None, now + STEADY_S + 1)) == now + STEADY_S + 1 + RECOVERY_S


def test_the_reason_is_the_present_one() -> None:
    assert step(fallen(), BROKEN, 101.0).degraded == "data plane: x"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"state": "degraded"}, None),
        ({"state": "down", "mode": ServiceMode.REJECT}, "service web is down"),
        ({"state": "degraded", "live_weight": 1}, "service web is down"),  # fails open, below its quorum
    ],
)
def test_a_service_is_down_by_its_quorum(changes: dict[str, Any], why: str | None) -> None:
    found = fault(["web"], status(**changes), SITE, None)
    assert (None if found is None else found.why) == why


def test_a_service_that_is_not_followed_does_not_matter() -> None:
    assert fault([], status(state="down"), SITE, None) is None
    assert fault(["gone"], status(), SITE, None) is None


def test_the_data_plane_matters_to_all() -> None:
    assert fault([], status(), SITE, "no worker runs") == Fault("data plane: no worker runs", settled=False)


@given(st.lists(st.tuples(st.sampled_from([None, DOWN, BROKEN]), st.floats(0, 200))))
def test_it_always_recovers(history: list[tuple[Fault | None, float]]) -> None:
    state, now = Eligibility(), 0.0
    for found, wait_s in history:
        now += wait_s
        state = step(state, found, now)
    state = step(state, None, now)
    assert step(state, None, now + MAX_RECOVERY_S).degraded is None

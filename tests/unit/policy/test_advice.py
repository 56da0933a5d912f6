# SPDX-License-Identifier: Apache-2.0
"""What agents on servers say: a third axis, which only takes away from what the operator allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fairlead.model.configuration import Configuration
from fairlead.model.health import AgentReport, ProbeTarget
from fairlead.model.pool import AdminState, HealthMonitor, MonitorType
from fairlead.model.reasons import IdleReason, ShareReason
from fairlead.model.service import Scheduler, WhenAllDown
from fairlead.model.state import FlowTreatment
from fairlead.policy import derive
from fairlead.policy.derive import Runtime
from fairlead.policy.status import ServerStatus
from support.models import DOWN, TCP_MONITOR, UP, configuration, endpoint, pool, server, service

A, B = "10.0.0.1:80", "10.0.0.2:80"
AGENT = HealthMonitor(MonitorType.AGENT, port=9999)
DRAIN, MAINT, READY = AdminState.DRAIN, AdminState.MAINT, AdminState.READY


def site(when: WhenAllDown = WhenAllDown.REJECT, **changes: Any) -> Configuration:
    settings = {"monitors": (TCP_MONITOR,), "agent": AGENT, **changes}
    first = server(A, weight=4, max_connections=settings.pop("limit", 0))
    return configuration(
        service(scheduler=Scheduler.WRR, when_all_down=when), pool(first, server(B, weight=4), **settings)
    )


def asked(address: str = A) -> ProbeTarget:
    return ProbeTarget(endpoint(f"{address.partition(':')[0]}:9999"), AGENT)


def after(*reports: AgentReport, runtime: Runtime | None = None) -> Runtime:
    found = runtime or Runtime(health={ProbeTarget(endpoint(it), TCP_MONITOR): UP for it in (A, B)})
    for report in reports:
        found = derive.heard(found, asked(), report)
    return found


def status(runtime: Runtime, of: Configuration | None = None) -> ServerStatus:
    return derive.desired(of or site(), runtime, 100.0).servers[f"web/{A}"]


def live(runtime: Runtime, of: Configuration | None = None) -> set[str]:
    derived = derive.desired(of or site(), runtime, 100.0)
    return {key.removeprefix("web/") for table in derived.state.tables.values() if table for key in table.live}


def test_agents_are_asked_beside_the_probes() -> None:
    assert set(derive.targets(site(), Runtime())) == {
        *(ProbeTarget(endpoint(it), TCP_MONITOR) for it in (A, B)),
        asked(A),
        asked(B),
    }


def test_a_share_of_the_weight() -> None:
    found = status(after(AgentReport(share=75)))
    assert (found.effective_weight, found.share, found.share_reason) == (3, 75, ShareReason.AGENT)
    (table,) = derive.desired(site(), after(AgentReport(share=75)), 1.0).state.tables.values()
    assert table is not None
    assert [it.weight for it in table.members] == [3, 4]


@pytest.mark.parametrize(
    "report", [AgentReport(admin=DRAIN), AgentReport(admin=MAINT), AgentReport(up=False), AgentReport(share=0)]
)
def test_words_that_want_no_new_flows_and_end_none(report: AgentReport) -> None:
    runtime = after(report)
    found = status(runtime)
    assert live(runtime) == {B}
    assert (found.idle_reason, found.effective_weight, found.drain_deadline) == (IdleReason.AGENT, 0, None)
    spec = derive.desired(site(), runtime, 1e6).state.servers[f"web/{A}"]
    assert spec.flows is FlowTreatment.KEEP


def test_what_an_answer_does_not_mention_stays() -> None:
    runtime = after(AgentReport(admin=DRAIN), AgentReport(share=50), AgentReport(up=True))
    assert status(runtime).idle_reason is IdleReason.AGENT
    assert status(after(AgentReport(admin=READY), runtime=runtime)).share == 50
    assert derive.heard(runtime, asked(), AgentReport(share=50)) is runtime


@pytest.mark.parametrize("state", [DRAIN, MAINT])
def test_the_operator_has_the_last_word(state: AdminState) -> None:
    runtime = derive.set_admin(site(), after(), f"web/{A}", state, 1.0)
    found = status(after(AgentReport(100, READY, True), runtime=runtime))
    assert (found.admin, found.idle_reason) == (state, IdleReason(state.value))


def test_an_agent_cannot_lift_a_server_that_is_down() -> None:
    runtime = Runtime(health={ProbeTarget(endpoint(A), TCP_MONITOR): DOWN})
    assert status(after(AgentReport(up=True), runtime=runtime)).idle_reason is IdleReason.DOWN


@pytest.mark.parametrize(("limit", "said", "used"), [(0, 30, 30), (10, 30, 10), (50, 30, 30), (50, 0, 50)])
def test_the_lower_limit_of_connections_counts(limit: int, said: int, used: int) -> None:
    of = site(limit=limit)
    runtime = after(AgentReport(max_connections=said))
    assert status(runtime, of).max_connections == used
    assert derive.desired(of, runtime, 1.0).state.servers[f"web/{A}"].max_connections == used


def test_failing_open_looks_past_down_but_not_past_drain() -> None:
    of = site(WhenAllDown.USE_ALL, monitors=())
    everybody = derive.heard(after(AgentReport(up=False)), asked(B), AgentReport(admin=DRAIN))
    assert live(everybody, of) == {A}


def test_it_survives_a_reload_until_nobody_asks_any_more() -> None:
    runtime = after(AgentReport(share=50))
    assert status(derive.transition(site(), site(drain_timeout_s=1.0), runtime, 1.0)).share == 50
    silenced = derive.transition(site(), site(agent=None), runtime, 1.0)
    assert silenced.advice == {}
    assert status(silenced, site(agent=None)).advice is None


def test_a_server_whose_agent_takes_it_back_starts_slowly_with_its_share() -> None:
    of = site(slow_start_s=20.0)
    runtime = derive.noted(of, after(AgentReport(up=False)), 10.0)
    runtime = derive.noted(of, after(AgentReport(up=True, share=50), runtime=runtime), 100.0)
    found = status(runtime, of)
    assert (found.share, found.share_reason, found.effective_weight) == (5, ShareReason.SLOW_START, 1)


def test_an_agent_that_does_not_answer_changes_nothing() -> None:
    runtime = after(AgentReport(share=50))
    assert status(replace(runtime, health={**runtime.health, asked(): DOWN})).share == 50

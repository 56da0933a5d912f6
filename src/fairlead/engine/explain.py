# SPDX-License-Identifier: Apache-2.0
"""Where a flow goes and why: what the data plane says, or else the decision it was given, and what-if."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from fairlead.dataplane.base import DataPlane
from fairlead.engine.changes import unknown
from fairlead.engine.present import Present
from fairlead.errors import Conflict, NotFound
from fairlead.model.net import Endpoint, FlowQuestion, Protocol
from fairlead.model.pool import AdminState
from fairlead.model.state import ForwardingState, Listener, ServiceSpec
from fairlead.model.views import ExplainStep, ExplainView
from fairlead.policy import derive, tables, trace
from fairlead.policy.derive import Derived
from fairlead.policy.status import ServerStatus

MANY = 20  # servers that are told about one by one


async def explain(
    present: Present, dataplane: DataPlane, question: FlowQuestion, without: str | None, now: float
) -> ExplainView:
    """The answer to ``fairlead explain``.

    Raises:
        NotFound: No service is there, or ``without`` is no server.
        Conflict: ``without`` is no server of the service.
        DataPlaneError: The data plane did not answer.
    """
    derived = present.decide()
    listener = _listener(derived.state, question.protocol, question.vip)
    if listener is None:
        raise NotFound(_nothing_there(derived.state, question))
    spec = derived.state.services[listener.service]
    live = await dataplane.explain(question)
    if live is not None and live.service == spec.name:
        steps, server = list(live.steps), live.server
    else:
        steps, server = await asyncio.to_thread(_decision, derived, spec, listener, question)
    pool = present.configuration.services[spec.name].pool
    steps += _others(derived, pool, server)
    instead = None
    if without is not None:
        thought = _without(present, spec, without, now)
        instead, step = await asyncio.to_thread(_instead, thought.state, spec.name, question, without)
        steps.append(step)
    return ExplainView(
        str(question.client), str(question.vip), question.protocol, spec.name, server, tuple(steps), without, instead
    )


def _listener(state: ForwardingState, protocol: Protocol, vip: Endpoint) -> Listener | None:
    for listener in state.listeners:
        listen = listener.listen
        if (listener.protocol, listen.address) == (protocol, vip.address) and listen.first <= vip.port <= listen.last:
            return listener
    return None


def _nothing_there(state: ForwardingState, question: FlowQuestion) -> str:
    there = sorted(f"{it.listen}/{it.protocol}" for it in state.listeners if it.listen.address == question.vip.address)
    hint = f"; at that address: {', '.join(there[:5])}" if there else ""
    return f"no service at {question.vip}/{question.protocol}: packets are left to the host{hint}"


def _decision(
    derived: Derived, spec: ServiceSpec, listener: Listener, question: FlowQuestion
) -> tuple[list[ExplainStep], str | None]:
    """From the tables that the workers were given."""
    says = f"{listener.listen}/{spec.protocol} is service {spec.name}, forwarding {spec.forwarding}"
    steps = [ExplainStep("service", says)]
    if spec.table is None:
        steps.append(ExplainStep("mode", f"no server may take it: new flows meet {spec.mode.name.lower()}"))
        return steps, None
    if not trace.admitted(spec, question.client):
        steps.append(ExplainStep("access", f"{question.client.address} may not connect (allow, deny)"))
        return steps, None
    steps.append(ExplainStep("access", f"{question.client.address} may connect"))
    if spec.persistence is not None:
        says = "a client that was here lately goes to the server it had; what follows is for one that was not"
        steps.append(ExplainStep("persistence", says))
    choice = _choice(derived.state, spec, question)
    steps.append(ExplainStep("slot", choice.says))
    steps.append(ExplainStep("rewriting", "a worker accepts the connection and makes another one to the server"))
    return steps, choice.server


def _choice(state: ForwardingState, spec: ServiceSpec, question: FlowQuestion) -> trace.Choice:
    table = state.tables[spec.table or ""]
    assert table is not None
    return trace.choice(spec, table, tables.build(table), question.client, question.vip)


def _others(derived: Derived, pool: str, chosen: str | None) -> Iterator[ExplainStep]:
    """Why not another one."""
    statuses = [it for it in derived.ordered if it.pool == pool and it.key != chosen]
    for status in statuses[:MANY]:
        yield ExplainStep("not", f"{status.key}: {_why_not(status)}")
    if len(statuses) > MANY:
        yield ExplainStep("not", f"and {len(statuses) - MANY} more servers")


def _why_not(status: ServerStatus) -> str:
    if status.idle_reason is None:
        return "takes other flows"
    return f"takes no new flows ({status.idle_reason}){f': {status.detail}' if status.detail else ''}"


def _without(present: Present, spec: ServiceSpec, without: str, now: float) -> Derived:
    """The decision if this server took no new flows."""
    configuration, runtime = present.configuration, present.runtime()
    servers = present.decide().servers
    if without not in servers:
        raise NotFound(unknown("server", without, servers))
    if servers[without].pool != configuration.services[spec.name].pool:
        raise Conflict(f"{without} is no server of service {spec.name}")
    runtime = derive.set_admin(configuration, runtime, without, AdminState.DRAIN, now)
    return derive.desired(configuration, runtime, now, present.decide())


def _instead(
    state: ForwardingState, service: str, question: FlowQuestion, without: str
) -> tuple[str | None, ExplainStep]:
    """Who would take the flow then, and why."""
    spec = state.services[service]
    if spec.table is None:
        says = f"without {without} nobody could take new flows: {spec.mode.name.lower()}"
        return None, ExplainStep("without", says)
    choice = _choice(state, spec, question)
    return choice.server, ExplainStep("without", f"without {without}, a new flow: {choice.says}")

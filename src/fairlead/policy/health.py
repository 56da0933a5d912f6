# SPDX-License-Identifier: Apache-2.0
"""The rise/fall filter: what the results of probes add up to.

Invariants: the first result that counts decides alone, then ``rise`` passes in a row bring a target up and ``fall``
failures in a row bring it down; a probe that this node could not send says nothing about the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead.model.health import HealthState, ProbeResult, ProbeTarget, Verdict
from fairlead.model.net import Endpoint
from fairlead.model.pool import HealthMonitor, RealServer
from fairlead.model.reasons import DownReason


@dataclass(frozen=True, slots=True)
class Transition:
    """A verdict was reached: the first one, or one that contradicts the last.

    Attributes:
        verdict: The new verdict.
        reason: Why it is down, or None.
        detail: One line about the result that decided.
        first: No result had counted before.
    """

    verdict: Verdict
    reason: DownReason | None
    detail: str
    first: bool


def step(state: HealthState, result: ProbeResult, *, rise: int, fall: int) -> tuple[HealthState, Transition | None]:
    """Take one result into account.

    Args:
        state: What earlier results added up to.
        result: How the probe ended; with reason LOCAL_ERROR it changes nothing but ``detail``.
        rise: Passes in a row, at least 1, that bring a target up.
        fall: Failures in a row, at least 1, that bring it down.
    """
    if result.reason is DownReason.LOCAL_ERROR:
        return replace(state, detail=f"not probed, this node failed: {result.detail}"), None
    said = Verdict.UP if result.passed else Verdict.DOWN
    if state.checked and said is state.verdict:
        return HealthState(said, 0, True, result.reason, result.detail), None
    streak = state.streak + 1
    needed = rise if result.passed else fall
    if state.checked and streak < needed:
        return replace(state, streak=streak, detail=f"{result.detail} ({streak} of {needed} to be {said})"), None
    decided = HealthState(said, 0, True, result.reason, result.detail)
    return decided, Transition(said, result.reason, result.detail, first=not state.checked)


def combine(states: Sequence[HealthState]) -> HealthState:
    """The state of a server with several monitors: all must pass; the first that does not gives the reason.

    ``states`` must not be empty.
    """
    for state in states:
        if state.verdict is Verdict.DOWN:
            return state
    return states[0]


def target_key(server: RealServer, monitor: HealthMonitor) -> ProbeTarget:
    """What to probe for ``server``: its own endpoint unless the monitor names another address or port.

    A probe that takes a service's way goes to the service's port.
    """
    if monitor.through is not None:
        return ProbeTarget(Endpoint(server.endpoint.address, monitor.through.vip.port), monitor)
    address = server.endpoint.address if monitor.address is None else monitor.address
    port = server.endpoint.port if monitor.port is None else monitor.port
    return ProbeTarget(Endpoint(address, port), monitor)

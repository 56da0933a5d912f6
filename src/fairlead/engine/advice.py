# SPDX-License-Identifier: Apache-2.0
"""Hears what the agents on servers say, and tells when one says something new. What follows, ``policy`` decides."""

from __future__ import annotations

from collections.abc import Callable

from fairlead.engine.events import Events
from fairlead.engine.present import Present
from fairlead.model.health import AgentAdvice, AgentReport, ProbeTarget
from fairlead.model.pool import AdminState
from fairlead.policy import derive


class Advice:
    """The answers of all agents.

    Args:
        present: What holds now; advice goes into its runtime.
        events: Where it is told.
        on_change: Told when a decision has to be made anew.
    """

    def __init__(self, present: Present, events: Events, on_change: Callable[[], None]) -> None:
        self._present = present
        self._events = events
        self._on_change = on_change

    def hear(self, target: ProbeTarget, report: AgentReport) -> None:
        """An agent answered."""
        before = self._present.runtime()
        after = derive.heard(before, target, report)
        if after is before:
            return
        self._present.take(after)
        self._events.record("agent_advice", str(target.endpoint), describe(after.advice[target]))
        self._on_change()


def describe(advice: AgentAdvice) -> str:
    """``75%, maxconn 30, drain``; ``ready`` when the server wants all it can get."""
    said = [
        f"{advice.share}%" * (advice.share != AgentAdvice().share),
        f"maxconn {advice.max_connections}" * bool(advice.max_connections),
        advice.admin.value * (advice.admin is not AdminState.READY),
        "" if advice.up else f"down{advice.reason and f' ({advice.reason})'}",
    ]
    return ", ".join(filter(None, said)) or "ready"

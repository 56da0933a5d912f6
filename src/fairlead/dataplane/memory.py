# SPDX-License-Identifier: Apache-2.0
"""A data plane that only remembers: for dry runs, and for tests of everything above it, with faults on order.

Invariant: it refuses exactly what ``policy.plan.apply_op`` refuses, and forwards nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from fairlead.dataplane.base import Counters, Explanation, FlowFilter
from fairlead.errors import ContractViolation, DataPlaneError, UnsupportedFeature
from fairlead.model.health import Way
from fairlead.model.net import FlowQuestion
from fairlead.model.state import ForwardingState, ObservedState, Op, Plan
from fairlead.model.views import FlowPage, FlowView
from fairlead.model.vip import Vip
from fairlead.policy.plan import apply_op, describe


class MemoryDataPlane:
    """Holds a ForwardingState and gives it back.

    Attributes:
        state: What it holds.
        applied: Every Op that was carried out, in order.
        totals: What ``counters`` returns.
        connections: What ``flows`` lists.
        ailment: What ``trouble`` returns.
        look_s: How long ``look`` takes.
        drained_s: What ``stop`` was given.
        running: Between ``start`` and ``stop`` or ``detach``.
        ways: What ``set_ways`` was given.
        looks: For each ``observe`` whether it was to be thorough.
    """

    def __init__(self, state: ForwardingState | None = None) -> None:
        self.state = state or ForwardingState()
        self.applied: list[Op] = []
        self.totals = Counters()
        self.connections: list[FlowView] = []
        self.running = False
        self.ways: frozenset[Way] = frozenset()
        self.looks: list[bool] = []
        self.look_s = 0.0
        self.ailment: str | None = None
        self.drained_s: float | None = None
        self._faults: deque[tuple[int, str]] = deque()
        self._seen = 0

    def fail(self, nth: int = 0) -> None:
        """The ``nth`` Op from now (0: the next) is refused, once."""
        self._order(nth, "fail")

    def cut(self, after: int = 0) -> None:
        """``after`` Ops from now the plan is cut, as if the agent or the data plane had died there."""
        self._order(after, "cut")

    def lose(self, nth: int = 0) -> None:
        """The ``nth`` Op from now is reported as done, but is not."""
        self._order(nth, "lose")

    def drift(self, ops: Iterable[Op]) -> None:
        """Something else changes the data plane behind everybody's back."""
        for op in ops:
            self.state = apply_op(self.state, op)

    def set_vips(self, vips: frozenset[Vip]) -> None:
        """Every address will do here."""

    async def set_ways(self, ways: frozenset[Way]) -> None:
        """Remember them."""
        self.ways = ways

    def mark_of(self, way: Way) -> int:
        """Raise UnsupportedFeature: nothing is sent here."""
        raise UnsupportedFeature(f"probing through {way.passage.vip}", "this data plane forwards nothing")

    def packets_of(self, way: Way) -> int:  # noqa: ARG002
        """None."""
        return 0

    def trouble(self) -> str | None:
        """Nothing, or what a test says."""
        return self.ailment

    async def start(self) -> None:
        """Begin; what was held before is still held, as with workers that outlive the agent."""
        self.running = True

    async def look(self) -> None:
        """Take as long as a test says."""
        await asyncio.sleep(self.look_s)

    async def observe(self, *, thorough: bool = True) -> ObservedState:
        """What it holds."""
        self.looks.append(thorough)
        return self.state

    async def apply(self, plan: Plan) -> None:
        """Carry out a plan.

        Raises:
            DataPlaneError: An Op cannot be done, or a fault was ordered.
        """
        for op in plan.ops:
            fault = self._next_fault()
            if fault == "cut":
                raise DataPlaneError(f"the data plane went away before: {describe(op)}")
            if fault == "fail":
                raise DataPlaneError(f"{describe(op)}: refused, as ordered", op)
            if fault == "lose":
                continue
            try:
                self.state = apply_op(self.state, op)
            except ContractViolation as error:
                raise DataPlaneError(str(error), op) from error
            self.applied.append(op)

    async def counters(self, *, brief: bool = False) -> Counters:  # noqa: ARG002 - it costs nothing
        """``totals``."""
        return self.totals

    async def flows(self, which: FlowFilter, cursor: str | None, limit: int) -> FlowPage:
        """``connections``, a page at a time; the cursor is an index.

        Raises:
            DataPlaneError: The cursor is none of ours.
        """
        if cursor is not None and not cursor.isdecimal():
            raise DataPlaneError(f"{cursor!r} is not a cursor of a list of connections; start again without one")
        found = [
            flow
            for flow in self.connections
            if which.service in {None, flow.service} and which.server in {None, flow.server}
        ]
        start = int(cursor or 0)
        end = start + limit
        return FlowPage(tuple(found[start:end]), str(end) if end < len(found) else None)

    async def explain(self, question: FlowQuestion) -> Explanation | None:  # noqa: ARG002  # policy knows as much
        """It holds nothing that the desired state does not say."""
        return None

    async def stop(self, *, drain_s: float) -> None:
        """Forget everything."""
        self.drained_s = drain_s
        self.state = ForwardingState()
        self.running = False

    async def detach(self) -> None:
        """Keep everything for the next ``start``."""
        self.running = False

    def _order(self, nth: int, what: str) -> None:
        self._faults.append((self._seen + nth, what))

    def _next_fault(self) -> str | None:
        now, self._seen = self._seen, self._seen + 1
        for fault in self._faults:
            if fault[0] == now:
                self._faults.remove(fault)
                return fault[1]
        return None

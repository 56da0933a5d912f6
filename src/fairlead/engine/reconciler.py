# SPDX-License-Identifier: Apache-2.0
"""Brings one data plane to the desired state and keeps it there: observe, plan, apply, verify.

Invariant: this module decides nothing. What should be comes from a callable, what to do from ``policy.plan``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from fairlead.dataplane.base import DataPlane
from fairlead.engine.events import Events
from fairlead.errors import DataPlaneError
from fairlead.model.state import DesiredState, ObservedState, OpenListener, Plan
from fairlead.policy.plan import describe, plan

VERIFY_INTERVAL_S = 5.0  # F48: drift is repaired within 10 s
CALM_S = 0.5
POSTPONED_S = 4.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class Convergence:
    """Whether the data plane holds what it should, and if not, why."""

    converged: bool
    error: str | None
    drift_repairs: int


class Reconciler:
    """The loop around one data plane.

    Args:
        dataplane: What is to be brought to the desired state.
        desired: Returns the desired state now, and the monotonic moment at which it changes by itself (or None).
        events: Where repairs and failures are told.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        desired: Callable[[], tuple[DesiredState, float | None]],
        events: Events,
        clock: Callable[[], float],
    ) -> None:
        self._dataplane = dataplane
        self._desired = desired
        self._events = events
        self._clock = clock
        self._changed = asyncio.Event()
        self._pass_lock = asyncio.Lock()
        self._observed: ObservedState | None = None
        self._known: tuple[DesiredState, ObservedState] | None = None  # a pair between which there was nothing to do
        self._error: str | None = None
        self._converged = False
        self._drift_repairs = 0
        self._look = False
        self._look_at = clock() + VERIFY_INTERVAL_S
        self._applied_at = -math.inf

    @property
    def convergence(self) -> Convergence:
        """The outcome of the last pass."""
        return Convergence(self._converged, self._error, self._drift_repairs)

    def wake(self, *, thorough: bool = True) -> None:
        """Something changed: reconcile soon; ``thorough``: it may be the data plane itself."""
        self._look = self._look or thorough
        self._changed.set()

    def preview(self, desired: DesiredState) -> Plan:
        """What reaching ``desired`` would take from what was last observed."""
        return plan(desired, self._observed or ObservedState(), self._known)

    async def reconcile(self, *, thorough: bool = True) -> Convergence:
        """One pass, now: apply what is missing, read back, compare.

        Unless ``thorough``, what nothing was applied to is taken to be as it was when it was last looked at.
        """
        failure = await self._looked() if thorough else None
        return await self._in_turn(thorough=thorough, failure=failure)

    async def _looked(self) -> str | None:
        """Have everything looked at, for which changes need not wait; why that failed."""
        self._look = False
        try:
            await self._dataplane.look()
        except DataPlaneError as error:
            return str(error)
        return None

    async def _in_turn(self, *, thorough: bool, failure: str | None = None) -> Convergence:
        """A pass, after those that were begun before; ``failure``: of the look before it."""
        async with self._pass_lock:
            self._changed.clear()
            if thorough:
                self._look_at = self._clock() + VERIFY_INTERVAL_S
            try:
                await self._pass(thorough=thorough)
            except DataPlaneError as error:
                failure = str(error)
            if failure is not None:
                self._fail(failure)
            return self.convergence

    async def run(self) -> None:
        """Reconcile on every wake, at every deadline and, against drift, every few seconds. Never returns."""
        retry_s = FIRST_RETRY_S
        while True:
            _, next_at = self._desired()
            wait_s = 0.0 if self._look else max(0.0, self._due_at() - self._clock())
            if next_at is not None:
                wait_s = min(wait_s, max(0.0, next_at - self._clock()))
            if self._error is not None:
                wait_s = min(wait_s, retry_s)
                retry_s = min(retry_s * 2, LAST_RETRY_S)
            else:
                retry_s = FIRST_RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            if self._look or self._error is not None or self._clock() >= self._due_at():
                failure = await self._following(asyncio.create_task(self._looked(), name="look"))
                await self._in_turn(thorough=True, failure=failure)
            else:
                await self._in_turn(thorough=False)

    async def _following(self, look: asyncio.Task[str | None]) -> str | None:
        """The outcome of a look; what changes meanwhile is acted on."""
        try:
            while not look.done():
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait((look, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if not look.done():
                    await self._in_turn(thorough=False)
            return look.result()
        finally:
            look.cancel()
            await asyncio.wait((look,))

    def _due_at(self) -> float:
        """When everything is looked at again: while changes are being made a little later, for it takes time."""
        return max(self._look_at, min(self._applied_at + CALM_S, self._look_at + POSTPONED_S))

    async def _pass(self, *, thorough: bool) -> None:
        expected = self._observed
        observed = await self._dataplane.observe(thorough=thorough)
        if expected is not None and (drift := plan(expected, observed)):
            self._drift_repairs += 1
            self._events.record(
                "drift", "data plane", f"differs from what was applied: {_summary(drift)}", level="warning"
            )
        desired, _ = self._desired()
        todo = plan(desired, observed, self._known)
        failures: list[str] = []
        if todo:
            self._applied_at = self._clock()
            failures = await self._apply(todo)
            observed = await self._dataplane.observe(thorough=False)
        left = plan(desired, observed, self._known) if todo else todo
        self._observed = observed
        if not left:
            self._known = (desired, observed)
        if failures or left:
            self._fail("; ".join(failures) or f"read back after applying, still to do: {_summary(left)}")
            return
        if self._error is not None:
            self._events.record("converged", "data plane", "holds what it should again")
        self._error, self._converged = None, True

    async def _apply(self, todo: Plan) -> list[str]:
        """Apply; a listener that cannot be opened must not keep the others closed. Returns what failed."""
        failures: list[str] = []
        while todo:
            try:
                await self._dataplane.apply(todo)
            except DataPlaneError as error:
                if not isinstance(error.op, OpenListener):
                    raise
                failures.append(str(error))
                todo = Plan(todo.ops[todo.ops.index(error.op) + 1 :])
            else:
                break
        return failures

    def _fail(self, error: str) -> None:
        if error != self._error:
            self._events.record("apply_failed", "data plane", error, level="error")
        self._error, self._converged = error, False


def _summary(todo: Plan) -> str:
    shown = ", ".join(describe(op) for op in todo.ops[:3])
    return shown if len(todo.ops) <= 3 else f"{shown} and {len(todo.ops) - 3} more"

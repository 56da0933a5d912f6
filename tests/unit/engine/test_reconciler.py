# SPDX-License-Identifier: Apache-2.0
"""Whatever fails or drifts, the data plane ends up with what it should hold, and it is said why it does not yet."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from fairlead.dataplane.memory import MemoryDataPlane
from fairlead.engine import logs
from fairlead.engine.events import Events
from fairlead.engine.reconciler import VERIFY_INTERVAL_S, Reconciler
from fairlead.model.state import DeleteServer, DesiredState, ForwardingState, OpenListener, PutServer
from fairlead.policy import derive
from support.models import configuration, pool, server, server_spec, service
from support.virtual import run_virtually


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logs.configure(timestamps=False, out=io.StringIO())


def state(*addresses: str) -> DesiredState:
    wanted = configuration(service(), pool(*(server(address) for address in addresses)))
    return derive.desired(wanted, derive.Runtime(), 0.0).state


class Bench:
    """A reconciler in virtual time with a desired state that tests change."""

    def __init__(self) -> None:
        self.plane = MemoryDataPlane()
        self.wanted = state("10.0.0.1:80")
        self.next_at: float | None = None
        loop = asyncio.get_running_loop()
        self.events = Events(loop.time)
        self.clock = loop.time
        self.reconciler = Reconciler(self.plane, self.desired, self.events, loop.time)

    def desired(self) -> tuple[DesiredState, float | None]:
        ahead = self.next_at is not None and self.next_at > self.clock()
        return self.wanted, self.next_at if ahead else None

    def listener_op(self) -> int:
        """Where in the plan the first listener opens."""
        kinds = [type(op) for op in self.reconciler.preview(self.wanted).ops]
        return kinds.index(OpenListener)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events.after(0, 100)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reconciler.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def test_a_pass_reaches_the_desired_state() -> None:
    async def run() -> None:
        bench = Bench()
        convergence = await bench.reconciler.reconcile()
        assert bench.plane.state == bench.wanted
        assert (convergence.converged, convergence.error) == (True, None)
        applied = len(bench.plane.applied)
        await bench.reconciler.reconcile()
        assert len(bench.plane.applied) == applied, "nothing to do is nothing done"

    run_virtually(run())


@pytest.mark.parametrize("cut", range(5))
def test_a_cut_pass_is_finished_by_the_next(cut: int) -> None:
    async def run() -> None:
        bench = Bench()
        bench.plane.cut(cut)
        first = await bench.reconciler.reconcile()
        if bench.plane.state == bench.wanted:
            return  # the plan was shorter
        assert not first.converged
        assert "went away" in (first.error or "")
        async with bench.running():
            await asyncio.sleep(1.1)
        assert bench.plane.state == bench.wanted
        assert bench.reconciler.convergence.error is None
        assert bench.kinds() == ["apply_failed", "converged"]

    run_virtually(run())


def test_an_op_that_was_not_done_although_it_was_answered_is_noticed() -> None:
    async def run() -> None:
        bench = Bench()
        bench.plane.lose(bench.listener_op())
        convergence = await bench.reconciler.reconcile()
        assert not convergence.converged
        assert "still to do: open 192.0.2.10:80/tcp" in (convergence.error or "")

    run_virtually(run())


def test_a_listener_that_cannot_open_keeps_no_other_one_closed() -> None:
    async def run() -> None:
        bench = Bench()
        bench.wanted = derive.desired(
            configuration(
                service("192.0.2.1:80", name="a"), service("192.0.2.2:80", name="b"), pool(server("10.0.0.1:80"))
            ),
            derive.Runtime(),
            0.0,
        ).state
        bench.plane.fail(bench.listener_op())
        convergence = await bench.reconciler.reconcile()
        assert not convergence.converged
        assert len(bench.plane.state.listeners) == 1
        await bench.reconciler.reconcile()
        assert bench.plane.state == bench.wanted

    run_virtually(run())


def test_f48_drift_is_repaired_within_ten_seconds_and_told() -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.running():
            bench.reconciler.wake()
            await asyncio.sleep(1)
            bench.plane.drift([PutServer(server_spec("web/10.0.0.1:80", "10.0.0.1:80", weight=9))])
            await asyncio.sleep(VERIFY_INTERVAL_S + 1)
        assert bench.plane.state == bench.wanted
        assert bench.kinds() == ["drift"]
        assert bench.reconciler.convergence.drift_repairs == 1

    run_virtually(run())


def test_a_change_is_made_without_a_look_at_everything() -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.running():
            bench.reconciler.wake()
            await asyncio.sleep(0.1)
            assert bench.plane.looks == [True, False]  # of which the second reads back what was applied
            bench.wanted = state("10.0.0.1:80", "10.0.0.2:80")
            bench.reconciler.wake(thorough=False)
            await asyncio.sleep(0.1)
            assert bench.plane.state == bench.wanted
            assert bench.plane.looks == [True, False, False, False]

    run_virtually(run())


def test_f48_everything_is_looked_at_within_ten_seconds_of_changes_without_end() -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.running():
            bench.reconciler.wake()
            await asyncio.sleep(0.1)
            looked = len([it for it in bench.plane.looks if it])
            for number in range(49):
                bench.wanted = state("10.0.0.1:80", f"10.0.1.{number}:80")
                bench.reconciler.wake(thorough=False)
                await asyncio.sleep(0.2)
            assert len([it for it in bench.plane.looks if it]) > looked

    run_virtually(run())


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_change_does_not_wait_for_a_look_at_everything(by_hand: bool) -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.running():
            bench.reconciler.wake()
            await asyncio.sleep(0.1)
            bench.plane.look_s = 3.0
            bench.reconciler.wake()
            await asyncio.sleep(0.1)
            bench.wanted = state("10.0.0.1:80", "10.0.0.2:80")
            if by_hand:
                await bench.reconciler.reconcile(thorough=False)
            else:
                bench.reconciler.wake(thorough=False)
                await asyncio.sleep(0.1)
            assert bench.plane.state == bench.wanted
            assert bench.plane.looks.count(True) == 1
            await asyncio.sleep(3.0)
            assert bench.plane.looks.count(True) == 2

    run_virtually(run())


def test_a_look_that_is_asked_for_during_another_one_is_taken_after_it() -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.running():
            bench.plane.look_s = 1.0
            bench.reconciler.wake()
            await asyncio.sleep(0.1)
            bench.reconciler.wake()
            await asyncio.sleep(2.1)
            assert bench.plane.looks.count(True) == 2

    run_virtually(run())


def test_it_acts_at_the_moment_the_decision_changes_by_itself() -> None:
    async def run() -> None:
        bench = Bench()
        async with bench.running():
            bench.reconciler.wake()
            await asyncio.sleep(0.1)
            bench.next_at = 2.0
            bench.reconciler.wake()
            await asyncio.sleep(0.1)
            bench.wanted = state("10.0.0.1:80", "10.0.0.2:80")
            await asyncio.sleep(1.7)
            assert len(bench.plane.state.servers) == 1
            await asyncio.sleep(0.2)
            assert len(bench.plane.state.servers) == 2

    run_virtually(run())


def test_a_failure_is_tried_again_ever_more_slowly() -> None:
    async def run() -> None:
        bench = Bench()
        for nth in range(4):
            bench.plane.cut(nth)
        async with bench.running():
            bench.reconciler.wake()
            await asyncio.sleep(0.4)
            assert bench.plane.state == ForwardingState()
            await asyncio.sleep(30)
        assert bench.plane.state == bench.wanted
        assert bench.kinds()[-1] == "converged"

    run_virtually(run())


def test_what_nobody_wants_is_removed() -> None:
    async def run() -> None:
        bench = Bench()
        bench.wanted = state("10.0.0.1:80", "10.0.0.2:80")
        await bench.reconciler.reconcile()
        bench.wanted = state("10.0.0.2:80")
        await bench.reconciler.reconcile()
        assert bench.plane.state == bench.wanted
        assert DeleteServer("web/10.0.0.1:80") in bench.plane.applied

    run_virtually(run())

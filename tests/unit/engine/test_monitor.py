# SPDX-License-Identifier: Apache-2.0
"""The monitor in virtual time, with probes that end as the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import pytest

from fairlead.engine.monitor import BURST, FIRST_SPREAD, Monitor
from fairlead.model.health import HealthState, ProbeResult, ProbeTarget, Verdict
from fairlead.model.net import Endpoint
from fairlead.model.pool import HealthMonitor, MonitorType
from fairlead.model.reasons import DownReason
from fairlead.policy.health import Transition
from support.virtual import run_virtually

SPEC = HealthMonitor(MonitorType.TCP, interval_s=2.0, down_interval_s=2.0, timeout_s=1.0, rise=2, fall=3, jitter=0.0)
PASSED = ProbeResult(True, None, "connected", 0.0)
REFUSED = ProbeResult(False, DownReason.REFUSED, "connect: connection refused", 0.0)
NO_DESCRIPTORS = ProbeResult(False, DownReason.LOCAL_ERROR, "this node: too many open files", 0.0)
UP = HealthState(Verdict.UP, 0, True, None, "connected")
DOWN = HealthState(Verdict.DOWN, 0, True, DownReason.REFUSED, "connect: connection refused")
POOL = frozenset({"web"})


def target(number: int = 0, spec: HealthMonitor = SPEC) -> ProbeTarget:
    return ProbeTarget(Endpoint(IPv4Address(0x0A000000 + number), 80), spec)


@dataclass
class Bench:
    """A monitor, its controllable probe, and what happened when."""

    results: dict[ProbeTarget, ProbeResult] = field(default_factory=lambda: defaultdict(lambda: PASSED))
    lasts_s: dict[ProbeTarget, float] = field(default_factory=lambda: defaultdict(float))
    starts: dict[ProbeTarget, list[float]] = field(default_factory=lambda: defaultdict(list))
    cancelled: list[ProbeTarget] = field(default_factory=list)
    transitions: list[tuple[float, ProbeTarget, frozenset[str], Transition]] = field(default_factory=list)
    told: list[tuple[ProbeTarget, ProbeResult]] = field(default_factory=list)
    under_way: set[ProbeTarget] = field(default_factory=set)
    most_under_way: int = 0
    on_cancel: ProbeResult | None = None
    random: Callable[[], float] = lambda: 0.0
    concurrency: int = 8192
    wall_offset_s: float = 1000.0

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.monitor = Monitor(
            self.probe,
            clock=self.loop.time,
            wall_clock=lambda: self.loop.time() + self.wall_offset_s,
            random=self.random,
            on_transition=self.note_transition,
            on_result=lambda t, r: self.told.append((t, r)),
            concurrency=self.concurrency,
        )

    def note_transition(self, to: ProbeTarget, pools: frozenset[str], transition: Transition) -> None:
        assert self.monitor.states()[to].verdict is transition.verdict
        self.transitions.append((self.loop.time(), to, pools, transition))

    async def probe(self, to: ProbeTarget) -> ProbeResult:
        assert to not in self.under_way, "two attempts at one target at once"
        self.under_way.add(to)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        self.starts[to].append(self.loop.time())
        try:
            if self.lasts_s[to]:
                await asyncio.sleep(self.lasts_s[to])
            return self.results[to]
        except asyncio.CancelledError:
            self.cancelled.append(to)
            if self.on_cancel is not None:
                return self.on_cancel
            raise
        finally:
            self.under_way.discard(to)

    def verdict_times(self) -> list[tuple[float, Verdict]]:
        return [(moment, transition.verdict) for moment, _, _, transition in self.transitions]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Monitor]:
        task = asyncio.create_task(self.monitor.run())
        try:
            yield self.monitor
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def test_a_new_target_is_probed_at_once_and_its_first_result_decides() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running() as monitor:
            await asyncio.sleep(10)
            monitor.set_targets({target(): POOL}, {})
            assert monitor.states()[target()] == HealthState()
            await asyncio.sleep(0.001)
            assert bench.starts[target()] == [10.0]
            assert monitor.states()[target()].verdict is Verdict.UP
            assert bench.transitions[0][2:] == (POOL, Transition(Verdict.UP, None, "connected", first=True))

    run_virtually(main())


def test_targets_set_before_it_runs_are_probed_when_it_runs() -> None:
    async def main() -> None:
        bench = Bench()
        bench.monitor.set_targets({target(): POOL}, {})
        await asyncio.sleep(5)
        assert not bench.starts
        async with bench.running():
            await asyncio.sleep(3)
        assert bench.starts[target()] == [5.0, 7.0]

    run_virtually(main())


def test_a_death_is_noticed_in_fall_times_the_interval_and_a_return_in_rise_times() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            await asyncio.sleep(4.001)  # dies just after a probe: the worst case
            bench.results[target()] = REFUSED
            await asyncio.sleep(8)  # t = 12.001
            bench.results[target()] = PASSED
            await asyncio.sleep(8)
        assert bench.verdict_times() == [(0.0, Verdict.UP), (10.0, Verdict.DOWN), (16.0, Verdict.UP)]
        assert bench.starts[target()] == pytest.approx([2.0 * n for n in range(11)])
        assert bench.transitions[1][3].reason is DownReason.REFUSED

    run_virtually(main())


def test_a_target_that_is_down_is_probed_at_its_down_interval() -> None:
    async def main() -> None:
        bench = Bench()
        spec = replace(SPEC, down_interval_s=0.5, fall=2)
        bench.results[target(0, spec)] = REFUSED
        async with bench.running() as monitor:
            monitor.set_targets({target(0, spec): POOL}, {target(0, spec): UP})
            await asyncio.sleep(3.2)
        assert bench.starts[target(0, spec)] == pytest.approx([0.0, 2.0, 2.5, 3.0])

    run_virtually(main())


def test_the_interval_is_from_start_to_start() -> None:
    async def main() -> None:
        bench = Bench()
        bench.lasts_s[target()] = 0.7
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            await asyncio.sleep(6.5)
        assert bench.starts[target()] == pytest.approx([0.0, 2.0, 4.0, 6.0])

    run_virtually(main())


def test_an_attempt_longer_than_the_interval_is_followed_at_once_and_never_overlaps() -> None:
    async def main() -> None:
        bench = Bench()
        bench.lasts_s[target()] = 3.0
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            await asyncio.sleep(9.5)
        assert bench.starts[target()] == pytest.approx([0.0, 3.0, 6.0, 9.0])

    run_virtually(main())


def test_slow_targets_delay_no_other() -> None:
    async def main() -> None:
        bench = Bench()
        slow, quick = [target(n) for n in range(50)], [target(n) for n in range(50, 100)]
        bench.lasts_s.update(dict.fromkeys(slow, 1.0))
        async with bench.running() as monitor:
            monitor.set_targets(dict.fromkeys([*slow, *quick], POOL), {})
            await asyncio.sleep(4.5)
        assert all(bench.starts[t] == pytest.approx([0.0, 2.0, 4.0]) for t in quick)

    run_virtually(main())


@pytest.mark.parametrize(("random", "first_s", "later_s"), [(0.0, 2.0, 2.0), (1.0, 1.0, 1.8), (0.5, 1.5, 1.9)])
def test_jitter_only_shortens_and_spreads_new_targets_further(random: float, first_s: float, later_s: float) -> None:
    async def main() -> None:
        bench = Bench(random=lambda: random)
        spec = replace(SPEC, jitter=0.1)
        async with bench.running() as monitor:
            monitor.set_targets({target(0, spec): POOL}, {})
            await asyncio.sleep(first_s + 2 * later_s + 0.01)
        assert bench.starts[target(0, spec)] == pytest.approx([0, first_s, first_s + later_s, first_s + 2 * later_s])
        assert pytest.approx(2.0 * (1 - FIRST_SPREAD * random)) == first_s

    run_virtually(main())


def test_setting_the_same_targets_again_changes_neither_schedule_nor_verdict() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            for _ in range(7):
                await asyncio.sleep(0.9)
                monitor.set_targets({target(): POOL | {"mail"}}, {target(): DOWN})
                assert monitor.states()[target()].verdict is Verdict.UP
            assert monitor.views()[0].pools == ("mail", "web")
        assert bench.starts[target()] == pytest.approx([0.0, 2.0, 4.0, 6.0])
        assert len(bench.transitions) == 1

    run_virtually(main())


def test_setting_the_same_targets_leaves_an_attempt_alone() -> None:
    async def main() -> None:
        bench = Bench()
        bench.lasts_s[target()] = 1.0
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            await asyncio.sleep(0.5)
            monitor.set_targets({target(): POOL}, {})
            await asyncio.sleep(1.0)
            assert not bench.cancelled
            assert monitor.states()[target()].verdict is Verdict.UP

    run_virtually(main())


def test_a_removed_target_is_cancelled_and_never_probed_again() -> None:
    async def main() -> None:
        bench = Bench(concurrency=2)
        busy, waiting, stays = target(1), target(2), target(3)
        bench.lasts_s[busy] = 1.0
        async with bench.running() as monitor:
            monitor.set_targets(dict.fromkeys([busy, waiting, stays], POOL), {})
            await asyncio.sleep(0.5)
            monitor.set_targets({stays: POOL}, {})
            assert set(monitor.states()) == {stays}
            await asyncio.sleep(0.001)
            assert bench.cancelled == [busy]
            await asyncio.sleep(5)
            assert bench.starts[busy] == bench.starts[waiting] == [0.0]
            assert bench.starts[stays] == pytest.approx([0.0, 2.0, 4.0])
            assert not any(t == busy for t, _ in bench.told)

    run_virtually(main())


def test_cancelled_attempts_give_their_place_back() -> None:
    async def main() -> None:
        bench = Bench(concurrency=1)
        async with bench.running() as monitor:
            for number in range(5):
                bench.lasts_s[target(number)] = 100.0
                monitor.set_targets({target(number): POOL}, {})
                await asyncio.sleep(0.1)
            assert [bench.starts[target(n)] for n in range(5)] == [pytest.approx([n / 10]) for n in range(5)]

    run_virtually(main())


def test_a_target_that_returns_starts_from_the_state_it_is_given() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            await asyncio.sleep(1)
            monitor.set_targets({}, {})
            bench.results[target()] = REFUSED
            monitor.set_targets({target(): POOL}, {target(): UP})
            await asyncio.sleep(0.001)
            assert monitor.states()[target()].verdict is Verdict.UP
            assert monitor.states()[target()].streak == 1

    run_virtually(main())


def test_verdicts_survive_a_restart() -> None:
    """A kept verdict needs rise or fall results to change, not one."""

    async def main() -> None:
        bench = Bench()
        up, down = target(1), target(2)
        bench.results[up] = REFUSED
        async with bench.running() as monitor:
            monitor.set_targets({up: POOL, down: POOL}, {up: UP, down: DOWN})
            await asyncio.sleep(10)
        assert [(moment, t) for moment, t, _, _ in bench.transitions] == [(2.0, down), (4.0, up)]

    run_virtually(main())


def test_an_error_of_this_node_is_not_counted() -> None:
    async def main() -> None:
        bench = Bench()
        bench.results[target()] = NO_DESCRIPTORS
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {target(): UP})
            await monitor.all_checked()
            await asyncio.sleep(20.1)
            state = monitor.states()[target()]
            assert (state.verdict, state.streak) == (Verdict.UP, 0)
            assert not bench.transitions
            assert len(bench.told) == 11

    run_virtually(main())


def test_a_target_that_this_node_cannot_probe_does_not_hold_up_all_checked() -> None:
    async def main() -> None:
        bench = Bench()
        bench.results[target()] = NO_DESCRIPTORS
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            await asyncio.wait_for(monitor.all_checked(), 1)
            assert not monitor.states()[target()].checked

    run_virtually(main())


def test_a_result_that_comes_as_its_target_leaves_is_forgotten() -> None:
    async def main() -> None:
        bench = Bench(concurrency=1)
        bench.lasts_s[target()] = 0.5
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            bench.on_cancel = PASSED
            await asyncio.sleep(0.1)
            monitor.set_targets({}, {})
            await asyncio.sleep(1)
            assert bench.cancelled == [target()]
            assert not bench.told
            assert not monitor.states()
            monitor.set_targets({target(1): POOL}, {})
            await asyncio.sleep(0.1)
            assert monitor.states()[target(1)].verdict is Verdict.UP

    run_virtually(main())


def test_all_checked_waits_for_the_first_result_of_every_target() -> None:
    async def main() -> None:
        bench = Bench()
        bench.lasts_s.update({target(1): 0.3, target(2): 0.8})
        async with bench.running() as monitor:
            await monitor.all_checked()  # nothing to wait for
            monitor.set_targets({target(1): POOL, target(2): POOL}, {target(2): UP})
            await monitor.all_checked()
            assert asyncio.get_running_loop().time() == pytest.approx(0.8)
            bench.lasts_s[target(3)] = 60.0
            monitor.set_targets({target(1): POOL, target(3): POOL}, {})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(monitor.all_checked(), 5)
            monitor.set_targets({target(1): POOL}, {})
            await asyncio.wait_for(monitor.all_checked(), 0.001)

    run_virtually(main())


def test_attempts_are_bounded_and_those_beyond_take_their_turn() -> None:
    async def main() -> None:
        bench = Bench(concurrency=3)
        targets = [target(n) for n in range(9)]
        bench.lasts_s.update(dict.fromkeys(targets, 0.5))
        async with bench.running() as monitor:
            monitor.set_targets(dict.fromkeys(targets, POOL), {})
            await monitor.all_checked()
        assert bench.most_under_way == 3
        assert [bench.starts[t][0] for t in targets] == pytest.approx([0.0] * 3 + [0.5] * 3 + [1.0] * 3)

    run_virtually(main())


def test_many_targets_do_not_begin_in_one_turn_of_the_loop() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running() as monitor:
            monitor.set_targets({target(n): POOL for n in range(10 * BURST)}, {})
            begun = 0
            while begun < 10 * BURST:
                await asyncio.sleep(0)
                assert len(bench.starts) - begun <= BURST
                begun = len(bench.starts)
            await monitor.all_checked()

    run_virtually(main())


def test_views_tell_what_happened() -> None:
    async def main() -> None:
        bench = Bench()
        bench.results[target()] = REFUSED
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {target(): UP})
            await asyncio.sleep(7)
            (view,) = monitor.views()
        assert (view.address, view.type, view.pools) == ("10.0.0.0:80", "tcp", ("web",))
        assert (view.verdict, view.reason, view.detail) == ("down", "refused", "connect: connection refused")
        assert (view.probes_total, view.failures_total) == (4, 4)
        assert [view.since_at, view.last_probe_at] == pytest.approx([1004.0, 1006.0])
        assert view.last_duration_s == 0.0

    run_virtually(main())


def test_a_bug_in_a_callback_ends_run_instead_of_the_schedule() -> None:
    async def main() -> None:
        bench = Bench()

        def broken(*_: object) -> None:
            raise RuntimeError("broken callback")

        bench.monitor = Monitor(
            bench.probe,
            clock=bench.loop.time,
            wall_clock=bench.loop.time,
            random=lambda: 0.0,
            on_transition=broken,
        )
        bench.monitor.set_targets({target(): POOL}, {})
        with pytest.raises(RuntimeError, match="broken callback"):
            await bench.monitor.run()

    run_virtually(main())


def test_ending_it_cancels_what_is_under_way() -> None:
    async def main() -> None:
        bench = Bench()
        bench.lasts_s[target()] = 100.0
        async with bench.running() as monitor:
            monitor.set_targets({target(): POOL}, {})
            await asyncio.sleep(1)
        assert bench.cancelled == [target()]
        assert not bench.under_way

    run_virtually(main())

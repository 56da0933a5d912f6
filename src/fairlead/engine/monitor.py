# SPDX-License-Identifier: Apache-2.0
"""Schedules the probes of all targets and keeps their verdicts: one heap and one timer, no task that sleeps.

Invariants: never two attempts at one target at once; a slow target delays no other one; every gap from start to start
is at most the interval, so that ``rise`` and ``fall`` times the interval are upper bounds; what results add up to is
decided by ``policy.health``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count

from fairlead.model.health import HealthState, ProbeResult, ProbeTarget, Verdict
from fairlead.model.shared import Shared
from fairlead.model.views import HealthView
from fairlead.policy.health import Transition, step

BURST = 64  # attempts begun in one turn of the event loop: about 3 ms
FIRST_SPREAD = 0.5  # of the interval: targets that are new together do not stay in step

OnResult = Callable[[ProbeTarget, ProbeResult], None]
OnTransition = Callable[[ProbeTarget, frozenset[str], Transition], None]


class _Entry:
    """One target: its verdict, its figures and its attempt."""

    __slots__ = (
        "certificate_until",
        "failures",
        "gone",
        "last_at",
        "last_duration_s",
        "pools",
        "probes",
        "since_at",
        "started",
        "state",
        "target",
        "task",
    )

    def __init__(
        self, target: ProbeTarget, pools: frozenset[str], state: HealthState, now: float, now_at: float
    ) -> None:
        self.target = target
        self.pools = pools
        self.state = state
        self.started = now
        self.since_at = now_at
        self.last_at: float | None = None
        self.last_duration_s: float | None = None
        self.certificate_until: float | None = None
        self.probes = self.failures = 0
        self.task: asyncio.Task[None] | None = None
        self.gone = False


class Monitor:
    """Probes a set of targets for as long as ``run`` runs. To be used on the event loop only.

    Args:
        probe: Makes one attempt and returns how it ended.
        clock: Monotonic seconds.
        wall_clock: Seconds since the Unix epoch, for the views.
        random: Numbers from 0 to 1, for jitter.
        on_result: Told about every result.
        on_transition: Told when a verdict changes, after ``states`` shows it, and the pools that use the target.
        concurrency: Attempts under way at most; those beyond wait their turn in order of their time. Each takes a
            descriptor, and each server that is silent holds one for its timeout.
    """

    def __init__(
        self,
        probe: Callable[[ProbeTarget], Awaitable[ProbeResult]],
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        random: Callable[[], float],
        on_transition: OnTransition,
        on_result: OnResult | None = None,
        concurrency: int = 8192,
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._wall_clock = wall_clock
        self._random = random
        self._on_transition = on_transition
        self._on_result = on_result
        self._concurrency = concurrency
        self._entries: dict[ProbeTarget, _Entry] = {}
        self._states: Shared[ProbeTarget, HealthState] = Shared()
        self._heap: list[tuple[float, int, _Entry]] = []
        self._numbers = count()  # targets due at one moment go in order of their turn
        self._unprobed: set[ProbeTarget] = set()
        self._all_checked = asyncio.Event()
        self._all_checked.set()
        self._ending: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._broken: asyncio.Future[None] | None = None

    def set_targets(
        self, wanted: Mapping[ProbeTarget, frozenset[str]], initial: Mapping[ProbeTarget, HealthState]
    ) -> None:
        """Probe exactly ``wanted``, which names the pools that use each target.

        Targets that stay keep their schedule and their verdict; new ones are probed at once and start from their state
        in ``initial``, else down; attempts at targets that left are cancelled.
        """
        if left := self._entries.keys() - wanted.keys():
            for target in left:
                self._remove(target)
            self._heap = [item for item in self._heap if not item[2].gone]
            heapify(self._heap)
        now, now_at = self._clock(), self._wall_clock()
        fresh: dict[ProbeTarget, HealthState] = {}
        for target, pools in wanted.items():
            entry = self._entries.get(target)
            if entry is not None:
                entry.pools = pools
                continue
            entry = _Entry(target, pools, initial.get(target, HealthState()), now, now_at)
            self._entries[target] = entry
            fresh[target] = entry.state
            self._unprobed.add(target)
            heappush(self._heap, (now, next(self._numbers), entry))
        self._states = self._states.changed(fresh, left)
        self._note_checked()
        self._arm()

    def states(self) -> Shared[ProbeTarget, HealthState]:
        """The state of every target now."""
        return self._states

    def views(self) -> tuple[HealthView, ...]:
        """Every target for people."""
        return tuple(_view(entry) for entry in self._entries.values())

    async def all_checked(self) -> None:
        """Return when every present target has had a result since it was set."""
        await self._all_checked.wait()

    async def run(self) -> None:
        """Probe until cancelled, then end what is under way. To be run once.

        Raises:
            Exception: What a callback or the probe raised: a bug.
        """
        self._broken = asyncio.get_running_loop().create_future()
        try:
            self._arm()
            await self._broken
        finally:
            self._broken = None
            if self._timer is not None:
                self._timer.cancel()
            tasks = [*self._ending, *(entry.task for entry in self._entries.values() if entry.task is not None)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _remove(self, target: ProbeTarget) -> None:
        entry = self._entries.pop(target)
        entry.gone = True
        self._unprobed.discard(target)
        if entry.task is not None:
            self._ending.add(entry.task)
            entry.task.add_done_callback(self._ended)
            entry.task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """An attempt at a target that left is over."""
        self._ending.discard(task)
        self._under_way -= 1
        self._arm()

    def _arm(self) -> None:
        """Set the one timer for the first target that is due."""
        if self._broken is None or not self._heap or self._under_way >= self._concurrency:
            return
        due = self._heap[0][0]
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer_due = due
        self._timer = loop.call_later(max(0.0, due - self._clock()), self._begin_due)

    def _begin_due(self) -> None:
        self._timer = None
        now, heap, loop = self._clock(), self._heap, asyncio.get_running_loop()
        room = min(BURST, self._concurrency - self._under_way)
        while room > 0 and heap and heap[0][0] <= now:
            entry = heappop(heap)[2]
            entry.started = now
            entry.last_at = self._wall_clock()
            entry.task = loop.create_task(self._attempt(entry))
            self._under_way += 1
            room -= 1
        self._arm()

    async def _attempt(self, entry: _Entry) -> None:
        try:
            result = await self._probe(entry.target)
            if not entry.gone:  # else _ended does the rest
                self._finish(entry, result)
        except Exception as error:  # noqa: BLE001 - handed to run(), which must not hang on a dead schedule
            if self._broken is not None and not self._broken.done():
                self._broken.set_exception(error)

    def _finish(self, entry: _Entry, result: ProbeResult) -> None:
        target, monitor = entry.target, entry.target.monitor
        entry.task = None
        entry.probes += 1
        entry.failures += not result.passed
        entry.last_duration_s = result.duration_s
        if result.certificate_until is not None:
            entry.certificate_until = result.certificate_until
        state, transition = step(entry.state, result, rise=monitor.rise, fall=monitor.fall)
        if state != entry.state:
            entry.state = state
            self._states = self._states.changed({target: state})
        heappush(self._heap, (entry.started + self._gap_s(entry), next(self._numbers), entry))
        self._under_way -= 1
        self._arm()
        if entry.probes == 1:
            self._unprobed.discard(target)
            self._note_checked()
        if self._on_result is not None:
            self._on_result(target, result)
        if transition is not None:
            entry.since_at = self._wall_clock()
            self._on_transition(target, entry.pools, transition)

    def _gap_s(self, entry: _Entry) -> float:
        """Seconds from the start of this attempt to the start of the next; jitter only shortens it."""
        monitor = entry.target.monitor
        interval_s = monitor.interval_s if entry.state.verdict is Verdict.UP else monitor.down_interval_s
        if not monitor.jitter:
            return interval_s
        share = max(monitor.jitter, FIRST_SPREAD) if entry.probes == 1 else monitor.jitter
        return interval_s * (1 - share * self._random())

    def _note_checked(self) -> None:
        if self._unprobed:
            self._all_checked.clear()
        else:
            self._all_checked.set()


def _view(entry: _Entry) -> HealthView:
    state = entry.state
    return HealthView(
        address=str(entry.target.endpoint),
        through=None if entry.target.monitor.through is None else str(entry.target.monitor.through.vip),
        type=entry.target.monitor.type,
        pools=tuple(sorted(entry.pools)),
        verdict=state.verdict,
        streak=state.streak,
        reason=state.reason,
        detail=state.detail,
        since_at=entry.since_at,
        last_probe_at=entry.last_at,
        last_duration_s=entry.last_duration_s,
        probes_total=entry.probes,
        failures_total=entry.failures,
        certificate_until_at=entry.certificate_until,
    )

# SPDX-License-Identifier: Apache-2.0
"""The set of workers: who serves which slot, who drains, and the replacement of those that die.

Invariant: a new worker is fed by the owner's ``feed`` before it becomes one of ``live``; after that every change
reaches it like all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fairlead.dataplane.proxy import abi, codec, workers
from fairlead.dataplane.proxy.control import Message, WorkerLost
from fairlead.dataplane.proxy.shm import SharedMemory
from fairlead.dataplane.proxy.workers import Worker
from fairlead.errors import DataPlaneError

BACK_OFF_S = (0.0, 0.1, 0.5, 2.0, 5.0, 10.0)  # before the next start, by deaths in a row
STEADY_S = 60.0  # a worker that lived this long begins a new row
GIVE_UP_DEATHS = 4  # then connections should not wait for this slot any longer
QUIT_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the fleet asks of its owner.

    Attributes:
        feed: Brings a worker, given with the deaths of its slot in a row, to the present state.
        starving: The slot keeps dying: no connection should wait for it.
        changed: A worker was replaced: look again.
        event: Kind, subject and message of something people should know.
    """

    feed: Callable[[Worker], Awaitable[None]]
    starving: Callable[[int], None]
    changed: Callable[[], None]
    event: Callable[[str, str, str], None]


class Fleet:
    """Workers of one runtime directory."""

    def __init__(self, directory: Path, binary: Path, hooks: Hooks) -> None:
        self.response_timeout_s = workers.RESPONSE_TIMEOUT_S
        self.live: dict[int, Worker] = {}
        self.draining: list[Worker] = []  # they count in the same shared memory
        self.old: list[Worker] = []  # of another ABI, or holding other ids: nothing is shared with them
        self.last_death = "none was started"
        self._directory = directory
        self._binary = binary
        self._hooks = hooks
        self._memory: SharedMemory | None = None
        self._newborn: set[Worker] = set()
        self._deaths: dict[int, int] = {}
        self._born: dict[int, float] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._closing = False
        self._came = asyncio.Event()

    async def find(self) -> list[Worker]:
        """All workers that run in the directory."""
        return await workers.find(self._directory, self.response_timeout_s)

    def use(self, memory: SharedMemory) -> None:
        """The memory that new workers attach to."""
        self._memory = memory

    def all(self) -> list[Worker]:
        """Everybody."""
        return [*self.live.values(), *self.draining, *self.old, *self._newborn]

    def sharing(self) -> list[Worker]:
        """Those that count in the shared memory, by slot."""
        return sorted((*self.live.values(), *self.draining), key=lambda it: it.slot)

    def admit(self, worker: Worker) -> None:
        """``worker`` holds what it should and takes part from now on.

        Raises:
            WorkerLost: It ended meanwhile.
        """
        self._newborn.discard(worker)
        if worker.ended.is_set():
            raise WorkerLost("it ended while it was told what to hold")
        self.live[worker.slot] = worker
        self._born[worker.slot] = asyncio.get_running_loop().time()
        self._came.set()

    def retire(self, worker: Worker, into: list[Worker]) -> None:
        """``worker`` takes part no longer; it ends on its own."""
        self.live.pop(worker.slot, None)
        into.append(worker)

    def changed(self) -> None:
        """Somebody should look at what the workers hold."""
        self._hooks.changed()

    def free_slots(self) -> Iterable[int]:
        """Slots that nobody has."""
        taken = {it.slot for it in self.sharing()}
        return (slot for slot in range(abi.MAX_WORKERS) if slot not in taken)

    async def start(self, slot: int) -> Worker:
        """Start a worker and give it the shared memory and row ``slot``, which it repairs.

        Raises:
            DataPlaneError: It does not come up.
        """
        assert self._memory is not None
        worker = await workers.start(self._binary, self._directory, slot, self.response_timeout_s)
        if worker.hello.abi != abi.ABI_VERSION:
            worker.watch(lambda *_: None)
            await worker.quit(QUIT_WAIT_S)
            raise DataPlaneError(
                f"the proxy worker {self._binary} is of another version "
                f"(ABI {worker.hello.abi}, this agent speaks {abi.ABI_VERSION}); reinstall fairlead"
            )
        self._newborn.add(worker)
        worker.watch(self.ended, self.changed)
        self._memory.use_row(slot)
        if (former := self._memory.worker(slot).pid) and workers.is_dead(former):
            self._memory.bury(slot)
        message = Message(abi.Type.ATTACH, codec.encode_attach(slot), (self._memory.fd,))
        try:
            reply = await worker.control.request(message)
        except WorkerLost as error:
            raise DataPlaneError(f"worker {slot} ended while it was started: {error}") from error
        if reply.done.error:
            await worker.quit(QUIT_WAIT_S)
            raise DataPlaneError(f"worker {slot} refuses its shared memory: {reply.done.message}")
        return worker

    async def repair(self, slot: int) -> None:
        """Take what a dead worker still holds out of the totals: a worker does that when it attaches."""
        with contextlib.suppress(DataPlaneError):
            worker = await self.start(slot)
            await worker.quit(QUIT_WAIT_S)

    async def someone(self, wait_s: float) -> None:
        """Wait until there is a live worker.

        Raises:
            DataPlaneError: There is none within ``wait_s``.
        """
        if self.live:
            return
        self._came.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._came.wait()
        if not self.live:
            raise DataPlaneError(f"no proxy worker runs; the last one: {self.last_death}")

    def ended(self, worker: Worker, reason: str) -> None:
        """A process is gone: replace it unless it was meant to end."""
        self._newborn.discard(worker)
        for group in (self.old, self.draining):
            if worker in group:
                group.remove(worker)
        worker.path.unlink(missing_ok=True)
        was_live = self.live.get(worker.slot) is worker
        if was_live:
            del self.live[worker.slot]
        head = self._memory.worker(worker.slot) if self._memory and not self._closing else None
        if worker.draining:
            if head is not None and head.pid == worker.pid:  # it did not give its row back
                self._spawn(worker.slot, self.repair(worker.slot))
            return
        last = workers.last_line(self._directory / f"worker-{worker.slot}.log")
        self.last_death = f"worker {worker.slot} (process {worker.pid}): {reason}" + (f"; {last}" if last else "")
        if was_live and not self._closing:
            self._hooks.event("worker_died", f"worker {worker.slot}", f"process {worker.pid}: {reason}")
            self._spawn(worker.slot, self._replace(worker.slot))

    async def stop(self, drain_s: float) -> None:
        """End all workers, those with flows after ``drain_s`` at the latest."""
        self._begin_closing()
        everyone = self.all()
        for worker in everyone:
            worker.draining = True
        if drain_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s + QUIT_WAIT_S):
                    await asyncio.gather(*(worker.drain(drain_s) for worker in everyone))
                    await asyncio.gather(*(worker.ended.wait() for worker in everyone))
        await asyncio.gather(*(worker.quit(QUIT_WAIT_S) for worker in everyone if not worker.ended.is_set()))

    def detach(self) -> None:
        """Leave all workers running."""
        self._begin_closing()
        for worker in self.all():
            worker.close()
        self.live.clear()
        self.draining.clear()
        self.old.clear()
        self._newborn.clear()

    def _begin_closing(self) -> None:
        self._closing = True
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def _spawn(self, slot: int, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks[slot] = task
        task.add_done_callback(lambda done: self._tasks.pop(slot, None) if self._tasks.get(slot) is done else None)

    async def _replace(self, slot: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            deaths = self._deaths.get(slot, 0)
            if loop.time() - self._born.get(slot, loop.time()) > STEADY_S:
                deaths = 0
            self._deaths[slot] = deaths + 1
            if deaths + 1 == GIVE_UP_DEATHS and self.live:
                self._hooks.starving(slot)
            await asyncio.sleep(BACK_OFF_S[min(deaths, len(BACK_OFF_S) - 1)])
            worker: Worker | None = None
            try:
                worker = await self.start(slot)
                await self._hooks.feed(worker)
            except (DataPlaneError, WorkerLost, OSError) as error:
                if worker is not None:
                    await worker.quit(QUIT_WAIT_S)
                self.last_death = str(error)
                self._born.pop(slot, None)
                self._hooks.event("worker_failed", f"worker {slot}", str(error))
                continue
            self._hooks.event("worker_started", f"worker {slot}", f"process {worker.pid} took its place")
            self._hooks.changed()
            return


def descriptor_limit() -> None:
    """Raise the soft limit of file descriptors to the hard one: listeners cost one each in the agent and a worker."""
    import resource  # noqa: PLC0415  # only here

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpus() -> int:
    """CPUs this process may use."""
    return min(len(os.sched_getaffinity(0)), abi.MAX_WORKERS)

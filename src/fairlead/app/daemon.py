# SPDX-License-Identifier: Apache-2.0
"""The composition root: builds the daemon from its parts and ties it to signals and the service manager. No logic.

Signals: HUP reads the configuration again; TERM drains and ends, a second TERM ends now; INT ends now; USR1 prints
the state as JSON; USR2 ends the agent alone and leaves the workers forwarding, for the next agent to adopt.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fairlead.announce.base import Event
from fairlead.announce.client import VrrpProcess
from fairlead.api.server import ApiServer
from fairlead.config.load import Loaded
from fairlead.dataplane import native
from fairlead.dataplane.combined import CombinedDataPlane
from fairlead.dataplane.proxy.driver import ProxyDataPlane
from fairlead.dataplane.xdp.driver import XdpDataPlane
from fairlead.dataplane.xdp.programs import Programs
from fairlead.engine.agent import Agent, Parts
from fairlead.engine.dump import dump
from fairlead.engine.events import Events
from fairlead.engine.files import Lock, prepare_directory
from fairlead.engine.monitor import Monitor
from fairlead.engine.notify import ServiceManager
from fairlead.engine.store import Store
from fairlead.errors import FairleadError
from fairlead.model.health import ProbeResult, ProbeTarget
from fairlead.model.paths import runtime_directory
from fairlead.policy import tables
from fairlead.policy.health import Transition
from fairlead.probes.registry import probe

Beside = Callable[[Agent], Coroutine[Any, Any, None]]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NATIVE = Path(__file__).parent.parent / "_native"
WORKER = NATIVE / "fairlead-worker"
LIBRARY = NATIVE / "maglev.so"
PROGRAMS = Programs.found(lambda name: NATIVE / f"{name}.bpf.o")

MOST_PROBES = 8192  # under way at once; each takes a descriptor


def _raise_descriptor_limit() -> int:
    """As many descriptors as the service manager allows; the agent holds one per listener and worker."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@dataclass(frozen=True, slots=True)
class Daemon:
    """What one daemon is started with.

    Attributes:
        loaded: The configuration to begin with.
        read: Reads it again, or None when it does not come from a file.
        file: What the user called it.
        socket: Of the API.
    """

    loaded: Loaded
    read: Callable[[], Awaitable[Loaded]] | None
    file: str | None
    socket: Path


async def serve(daemon: Daemon, beside: Beside | None = None) -> int:
    """Run the daemon until a signal ends it; the exit code.

    Args:
        daemon: What to run.
        beside: Runs beside it, once it is ready; when it returns the daemon ends.

    Raises:
        FairleadError: It could not start.
    """
    directory = runtime_directory(daemon.socket)
    prepare_directory(directory)
    lock = Lock(directory / "lock")
    lock.acquire()
    try:
        return await _Run(daemon, directory).run(beside)
    finally:
        lock.release()


class _Run:
    """The parts of one daemon while it runs."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self._daemon = daemon
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._manager = ServiceManager(os.environ.get("NOTIFY_SOCKET"))
        self._events = Events(time.time)
        for warning in daemon.loaded.warnings:
            self._events.record("configuration_warning", warning.path, str(warning), level="warning")
        build_table = partial(tables.build, filling=native.filling(LIBRARY))
        proxy = ProxyDataPlane(
            runtime_dir=directory,
            workers=daemon.loaded.configuration.workers,
            worker_path=WORKER,
            build_table=build_table,
            on_change=self._dataplane_changed,
            on_event=self._dataplane_event,
        )
        packets = XdpDataPlane(
            settings=daemon.loaded.configuration.xdp,
            programs=PROGRAMS,
            build_table=build_table,
            on_event=self._dataplane_event,
        )
        dataplane = CombinedDataPlane(proxy, packets)
        monitor = Monitor(
            lambda target: probe(target, dataplane),
            concurrency=min(MOST_PROBES, _raise_descriptor_limit() // 2),
            clock=time.monotonic,
            wall_clock=time.time,
            random=random.random,
            on_transition=self._health_changed,
            on_result=self._probed,
        )
        store = Store(directory / "state.json", BOOT_ID.read_text().strip())
        announcer = VrrpProcess(directory, self._announced)
        parts = Parts(dataplane, monitor, self._events, store, daemon.read, time.monotonic, time.time, announcer)
        self._agent = Agent(parts, daemon.loaded.configuration, daemon.file)
        self._api = ApiServer(self._agent, daemon.socket)

    def _dataplane_changed(self) -> None:
        self._agent.dataplane_changed()

    def _dataplane_event(self, kind: str, subject: str, message: str) -> None:
        self._events.record(kind, subject, message, level="warning")

    def _announced(self, event: Event) -> None:
        self._agent.announced(event)

    def _health_changed(self, target: ProbeTarget, pools: frozenset[str], transition: Transition) -> None:
        self._agent.health_changed(target, pools, transition)

    def _probed(self, target: ProbeTarget, result: ProbeResult) -> None:
        self._agent.probed(target, result)

    async def run(self, beside: Beside | None) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        try:
            await self._agent.start()
            await self._api.start()
        except BaseException:
            await self._agent.abandon()
            raise
        # What was made so far stays: looking for garbage in it would stall the loop for a second with 10,000 services.
        # And what a change of one server leaves refers to thousands of things that no cache holds: looked at after
        # every 700 new objects that was 1 to 7 ms of one change in 28.
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()
        self._manager.send("READY=1", f"STATUS=serving, configuration {self._daemon.file or 'from options'}")
        loops = asyncio.create_task(self._agent.watch())
        companion = None if beside is None else asyncio.create_task(beside(self._agent))
        others = {task for task in (loops, companion) if task is not None}
        try:
            return await self._until_ended(loops, companion)
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._api.stop()

    async def _until_ended(self, loops: asyncio.Task[None], companion: asyncio.Task[None] | None) -> int:
        others: set[asyncio.Task[Any]] = {loops} if companion is None else {loops, companion}
        while True:
            turn = asyncio.create_task(self._signals.get())
            done, _ = await asyncio.wait({turn, *others}, return_when=asyncio.FIRST_COMPLETED)
            if turn not in done:
                turn.cancel()
                return await self._end_with(loops)
            match turn.result():
                case signal.SIGHUP if companion is None:
                    await self._reload()
                case signal.SIGUSR1:
                    await self._dump()
                case signal.SIGUSR2:
                    await self._agent.detach()
                    return 0
                case signal.SIGTERM:
                    await self._drain()
                    return 0
                case _:
                    await self._stop(0.0)
                    return 0

    async def _end_with(self, loops: asyncio.Task[None]) -> int:
        """A loop of the agent failed: leave the workers to its successor. Or the companion ended: so does all."""
        if loops.done() and (error := loops.exception()) is not None:
            self._events.record("loop_failed", "agent", repr(error), level="critical")
            await self._agent.detach()
            return 1
        await self._stop(0.0)
        return 0

    async def _dump(self) -> None:
        text = await dump(self._agent)
        with contextlib.suppress(OSError):  # nobody reads standard output any more: no reason to end
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    async def _reload(self) -> None:
        self._manager.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        with contextlib.suppress(FairleadError):  # it is an event, and in the status
            await self._agent.reload(dry_run=False)
        self._manager.send("READY=1")

    async def _drain(self) -> None:
        """Until the flows have ended or a second signal comes."""
        drained = asyncio.create_task(self._stop(self._agent.longest_drain_s))
        again = asyncio.create_task(self._told_to_end())
        either: set[asyncio.Task[Any]] = {drained, again}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not drained.done():
            drained.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drained
            await self._stop(0.0)
        else:
            drained.result()

    async def _told_to_end(self) -> None:
        while await self._signals.get() not in {signal.SIGTERM, signal.SIGINT}:
            pass

    async def _stop(self, drain_s: float) -> None:
        self._manager.send("STOPPING=1")
        await self._agent.stop(drain_s=drain_s)

# SPDX-License-Identifier: Apache-2.0
"""Thousands of servers probed every second over real sockets: the cost, and how soon a death is noticed."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest

from fairlead.engine.monitor import Monitor
from fairlead.model.health import ProbeTarget, Verdict
from fairlead.model.net import Endpoint
from fairlead.model.pool import HealthMonitor, MonitorType
from fairlead.policy.health import Transition
from fairlead.probes.registry import probe
from support.wait import until_later
from support.yardstick import slowness, within

pytestmark = pytest.mark.serial

SPEC = HealthMonitor(MonitorType.TCP, interval_s=1.0, down_interval_s=1.0, timeout_s=0.5, rise=2, fall=3)

# Accepts and closes: one socket stands for all of 127.0.0.0/8.
ACCEPT = """
import socket
with socket.create_server(("", 0), backlog=4096) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        listener.accept()[0].close()
"""


@contextmanager
def accepting() -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen([sys.executable, "-c", ACCEPT], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@dataclass
class Watch:
    """A running monitor of many targets, and what it told."""

    monitor: Monitor
    results: int = 0
    noticed: list[float] = field(default_factory=list)


@asynccontextmanager
async def watching(targets: int, port: int) -> AsyncIterator[Watch]:
    loop = asyncio.get_running_loop()

    def count(*_: object) -> None:
        watch.results += 1

    def note(_: ProbeTarget, __: frozenset[str], transition: Transition) -> None:
        if transition.verdict is Verdict.DOWN:
            watch.noticed.append(loop.time())

    monitor = Monitor(
        probe, clock=loop.time, wall_clock=time.time, random=random.random, on_transition=note, on_result=count
    )
    watch = Watch(monitor)
    addresses = (IPv4Address(0x7F010001 + number) for number in range(targets))
    monitor.set_targets({ProbeTarget(Endpoint(a, port), SPEC): frozenset({"all"}) for a in addresses}, {})
    running = asyncio.create_task(monitor.run())
    try:
        await monitor.all_checked()
        assert all(state.verdict is Verdict.UP for state in monitor.states().values())
        yield watch
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_ten_thousand_servers_a_second_cost_less_than_one_core() -> None:
    async def main() -> None:
        with accepting() as (_, port):
            async with watching(10_000, port) as watch:
                slow = slowness()
                watch.results, used_s = 0, time.process_time()
                await asyncio.sleep(3)
                cost_s = (time.process_time() - used_s) / watch.results
                slow = max(slow, slowness())
        assert cost_s * 10_000 < slow, f"{cost_s * 1e6:.0f} us of CPU per probe, on a machine {slow:.1f} x as slow"

    asyncio.run(main())


def test_the_death_of_many_servers_is_noticed_in_interval_times_fall_plus_timeout() -> None:
    async def main() -> None:
        with accepting() as (server, port):
            async with watching(2_000, port) as watch:
                await asyncio.sleep(1)
                server.kill()
                server.wait()
                died_s = asyncio.get_running_loop().time()
                await until_later(lambda: len(watch.noticed) == 2_000, 30, "every death is noticed")
        assert within(max(watch.noticed) - died_s, SPEC.interval_s * SPEC.fall + SPEC.timeout_s)

    asyncio.run(main())

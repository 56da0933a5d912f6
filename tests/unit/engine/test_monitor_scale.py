# SPDX-License-Identifier: Apache-2.0
"""Ten thousand servers probed every second over real sockets: the cost, and how soon a death is noticed."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from fairlead.engine.monitor import Monitor
from fairlead.model.health import ProbeTarget, Verdict
from fairlead.model.net import Endpoint
from fairlead.model.pool import HealthMonitor, MonitorType
from fairlead.policy.health import Transition
from fairlead.probes.registry import probe
from support.wait import until_later

pytestmark = pytest.mark.serial

TARGETS = 10_000
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


def test_ten_thousand_servers_cost_less_than_a_core_and_their_death_is_noticed_in_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = 0
        noticed: list[float] = []

        def count(*_: object) -> None:
            nonlocal results
            results += 1

        def note(_: ProbeTarget, __: frozenset[str], transition: Transition) -> None:
            if transition.verdict is Verdict.DOWN:
                noticed.append(loop.time())

        monitor = Monitor(
            probe,
            clock=loop.time,
            wall_clock=time.time,
            random=random.random,
            on_transition=note,
            on_result=count,
        )
        with accepting() as (server, port):
            addresses = (IPv4Address(0x7F010001 + number) for number in range(TARGETS))
            monitor.set_targets({ProbeTarget(Endpoint(a, port), SPEC): frozenset({"all"}) for a in addresses}, {})
            running = asyncio.create_task(monitor.run())
            await monitor.all_checked()
            results, used_s = 0, time.process_time()
            await asyncio.sleep(3)
            used_s = time.process_time() - used_s
            assert all(state.verdict is Verdict.UP for state in monitor.states().values())
            cost_s = used_s / results
            assert cost_s * TARGETS / SPEC.interval_s < 1.0, f"{cost_s * 1e6:.0f} us of CPU per probe"
            server.kill()
            server.wait()
            died_s = loop.time()
        await until_later(lambda: len(noticed) == TARGETS, 30, "every death is noticed")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        slowest_s = max(noticed) - died_s
        assert slowest_s < SPEC.interval_s * SPEC.fall + SPEC.timeout_s

    asyncio.run(main())

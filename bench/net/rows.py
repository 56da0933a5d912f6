# SPDX-License-Identifier: Apache-2.0
"""Measurements between namespaces that the others do not need; see ``bench/rows.py``."""

from __future__ import annotations

import json
import subprocess

from bench.machine import children_seconds, cpu_seconds, kernel_threads
from bench.net.contenders import Entrant
from bench.net.course import enter
from bench.rows import CONCURRENCY, Failed, Tools, connect, requests

WINDOW = 192  # frames under way; the queue of a veth holds 256
KEY = bytes(4)


class Spent:
    """CPU time of clients, servers, balancer and the kernel's part between them, from now on."""

    def __init__(self, entrant: Entrant, server: int) -> None:
        # What is sent is received within the same system call; what is left over falls to these threads.
        self._pids = [server, *entrant.contender.pids(), *kernel_threads("ksoftirqd/")]
        self._before = self._now()

    def _now(self) -> float:
        return cpu_seconds(self._pids) + children_seconds()

    def us_each(self, count: float) -> float:
        """Microseconds for each of ``count``."""
        return (self._now() - self._before) * 1e6 / count


def connections(tools: Tools, entrant: Entrant, server: int, seconds: float) -> dict[str, float]:
    """New connections per second, how long the slowest hundredth takes, and what one costs everybody."""
    spent = Spent(entrant, server)
    result = tools.run(entrant.contender, "connect", seconds, CONCURRENCY)
    rate = result["done"] / result["seconds"]
    return {"conn_rate": rate, "conn_p99_us": result["p99_us"], "conn_all_us": spent.us_each(result["done"])}


def asked(
    tools: Tools, entrant: Entrant, server: int, seconds: float, *, body: int, connections: int
) -> dict[str, float]:
    """Requests per second, and what one costs everybody."""
    spent = Spent(entrant, server)
    result = tools.run(entrant.contender, "requests", seconds, connections, body)
    row = f"requests_{body}_{connections}"
    return {row: result["done"] / result["seconds"], f"{row}_all_us": spent.us_each(result["done"])}


def forward(tools: Tools, entrant: Entrant, seconds: float, flows: int) -> tuple[float, float]:
    """Frames forwarded per second, and CPU time of the balancer per frame in ns.

    Raises:
        Failed: Frames were lost, or none arrived.
    """
    lane, name = entrant.lane, entrant.contender.name
    assert lane.machines is not None
    lane.machines.maps["template"].put(KEY, entrant.frame())
    program, counters = lane.machines.programs["make_frame"].descriptor, lane.machines.maps["counters"].descriptor
    words = [program, counters, lane.index["c"], f"{seconds:g}", flows, WINDOW]
    command = tools.command(*enter(lane.clients, str(tools.load), "frames", *map(str, words)))
    pids = entrant.contender.pids()
    before = cpu_seconds(pids)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, pass_fds=(program, counters)
    )
    if done.returncode:
        raise Failed(f"{name}: frames: {done.stderr.strip()}")
    result: dict[str, float] = json.loads(done.stdout)
    used = cpu_seconds(pids) - before
    if result["lost"] or not result["done"]:
        raise Failed(f"{name}: frames: {result['lost']:.0f} lost, {result['done']:.0f} arrived")
    return result["done"] / result["seconds"], used * 1e9 / result["done"]


def cpu(tools: Tools, entrant: Entrant, seconds: float) -> dict[str, float]:
    """CPU time of the balancer per connection and per request."""
    return {
        "conn_cpu_us": connect(tools, entrant.contender, seconds)["conn_cpu_us"],
        "request_cpu_us": requests(tools, entrant.contender, seconds, CONCURRENCY, 64)["request_cpu_us"],
    }

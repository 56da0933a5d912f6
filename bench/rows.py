# SPDX-License-Identifier: Apache-2.0
"""One function per kind of measurement: puts load on one contender for a moment and returns figures by row name."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Contender
from bench.machine import Cpus, busy, cpu_seconds, pss_bytes

CONCURRENCY = 64
STREAMS = 4
WINDOW = 8  # datagrams of one client that are under way


class Failed(Exception):
    """A measurement brought errors, so it is no result."""


class Starved(Failed):
    """Nothing went wrong and nothing came to its end: nobody had the CPU."""


@dataclass(frozen=True)
class Tools:
    """What the measurements need: the compiled load generator, and where it runs."""

    load: Path
    cpus: Cpus

    def command(self, *arguments: str) -> list[str]:
        """A command on the CPUs of the load."""
        return ["taskset", "-c", ",".join(map(str, sorted(self.cpus.load))), *arguments]

    def words(self, contender: Contender, mode: str, *arguments: float) -> list[str]:
        """The command that runs one mode of the load generator against ``contender``, where its clients are."""
        place = contender.place
        words = [str(self.load), mode, place.host, str(place.port), *(f"{argument:g}" for argument in arguments)]
        return self.command(*place.clients, *words)

    def run(self, contender: Contender, mode: str, *arguments: float) -> dict[str, float]:
        """Run one mode of the load generator against ``contender``.

        Raises:
            Failed: A request failed, or none succeeded.
        """
        words = self.words(contender, mode, *arguments)
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            raise Failed(f"{contender.name}: {done.stderr.strip()}")
        result: dict[str, float] = json.loads(done.stdout)
        if result["errors"] or not result["done"]:
            kind = Failed if result["errors"] else Starved
            raise kind(f"{contender.name}: {mode}: {result['errors']:.0f} errors, {result['done']:.0f} good")
        return result


@dataclass
class Watched:
    """CPU time of a contender, and how free the machine was, between ``__init__`` and ``figures``."""

    contender: Contender
    cpus: Cpus

    def __post_init__(self) -> None:
        self._pids = self.contender.pids()
        self._before = busy(self.cpus.load), busy(self.cpus.balancer), cpu_seconds(self._pids)

    def figures(self) -> dict[str, float]:
        """CPU seconds of the contender, idle share of the load's CPUs, share that was stolen or used by others."""
        load, balancer, own = self._before
        load_now, balancer_now = busy(self.cpus.load), busy(self.cpus.balancer)
        cpu_s = cpu_seconds(self._pids) - own
        span = max(balancer_now.total - balancer.total, 1e-9)
        used = span - (balancer_now.idle - balancer.idle)
        return {
            "cpu_s": cpu_s,
            "load_idle": (load_now.idle - load.idle) / max(load_now.total - load.total, 1e-9),
            "foreign": max(0.0, used - cpu_s) / span,
            "steal": (load_now.steal - load.steal + balancer_now.steal - balancer.steal) / span,
        }


def connect(tools: Tools, contender: Contender, seconds: float) -> dict[str, float]:
    """New connections per second: connect, one request, close."""
    watched = Watched(contender, tools.cpus)
    result = tools.run(contender, "connect", seconds, CONCURRENCY)
    figures = watched.figures()
    return {
        "conn_rate": result["done"] / result["seconds"],
        "conn_cpu_us": figures["cpu_s"] * 1e6 / result["done"],
        "conn_p99_us": result["p99_us"],
        **{f"_{name}": value for name, value in figures.items()},
    }


def keepalive(tools: Tools, contender: Contender, seconds: float) -> dict[str, float]:
    """Requests per second on open connections, by wrk."""
    watched = Watched(contender, tools.cpus)
    url = f"http://{contender.place.listen}/"
    command = tools.command("wrk", "-t1", f"-c{CONCURRENCY}", f"-d{max(1, round(seconds))}s", url)
    report = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout
    figures = watched.figures()
    requests = re.search(r"(\d+) requests in ([\d.]+)(m?s)", report)
    if not requests or "Socket errors" in report or "Non-2xx" in report:
        raise Failed(f"{contender.name}: wrk: {report.strip()[-200:]}")
    count = int(requests[1])
    rate = re.search(r"Requests/sec: +([\d.]+)", report)
    assert rate is not None
    return {
        "request_rate": float(rate[1]),
        "request_cpu_us": figures["cpu_s"] * 1e6 / max(count, 1),
        **{f"_{name}": value for name, value in figures.items()},
    }


def requests(tools: Tools, contender: Contender, seconds: float, connections: int, body: int) -> dict[str, float]:
    """Requests per second on open connections, each sent when the reply to the one before is whole."""
    watched = Watched(contender, tools.cpus)
    result = tools.run(contender, "requests", seconds, connections, body)
    figures = watched.figures()
    return {
        "request_rate": result["done"] / result["seconds"],
        "request_cpu_us": figures["cpu_s"] * 1e6 / result["done"],
        **{f"_{name}": value for name, value in figures.items()},
    }


def latency(tools: Tools, contender: Contender, seconds: float, per_second: float) -> dict[str, float]:
    """Latency of requests sent at a fixed rate, from the moment each was due."""
    watched = Watched(contender, tools.cpus)
    result = tools.run(contender, "rate", seconds, CONCURRENCY, per_second)
    return {
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "p999_us": result["p999_us"],
        **{f"_{name}": value for name, value in watched.figures().items()},
    }


def bulk(tools: Tools, contender: Contender, seconds: float) -> dict[str, float]:
    """Bytes per second from server to client over a few streams."""
    watched = Watched(contender, tools.cpus)
    result = tools.run(contender, "bulk", seconds, STREAMS)
    figures = watched.figures()
    return {
        "bulk_rate": result["done"] / result["seconds"] / 1e6,
        "bulk_cpu_us": figures["cpu_s"] * 1e6 / (result["done"] / 1e6),
        **{f"_{name}": value for name, value in figures.items()},
    }


def storm(tools: Tools, contender: Contender, connections: int) -> dict[str, float]:
    """Many clients that connect in the same moment: how long until the last one has its answer."""
    watched = Watched(contender, tools.cpus)
    result = tools.run(contender, "storm", connections)
    return {
        "storm_ms": result["seconds"] * 1e3,
        **{f"_{name}": value for name, value in watched.figures().items()},
    }


def datagrams(tools: Tools, contender: Contender, seconds: float) -> dict[str, float]:
    """UDP questions answered per second, and the share of those that nobody answered."""
    watched = Watched(contender, tools.cpus)
    result = tools.run(contender, "datagrams", seconds, CONCURRENCY, WINDOW)
    figures = watched.figures()
    return {
        "datagram_rate": result["done"] / result["seconds"],
        "datagram_cpu_us": figures["cpu_s"] * 1e6 / result["done"],
        "datagram_loss": 1e6 * result["lost"] / (result["done"] + result["lost"]),
        **{f"_{name}": value for name, value in figures.items()},
    }


def memory(tools: Tools, contender: Contender, connections: int) -> dict[str, float]:
    """Memory per connection that made one request and is idle."""
    before = pss_bytes(contender.pids())
    words = tools.words(contender, "hold", connections)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        ready = holder.stdout.readline()
        time.sleep(0.5)  # what is freed when a connection becomes idle is freed by now
        used = pss_bytes(contender.pids()) - before
        _, errors = holder.communicate()
    if not ready:
        raise Failed(f"{contender.name}: hold {connections}: {errors.decode().strip()}")
    return {"idle_bytes": used / connections}


def system_calls(tools: Tools, contender: Contender, seconds: float) -> dict[str, float]:
    """System calls of the contender per connection and per request, counted by the kernel's tracepoint."""
    pids = ",".join(map(str, contender.pids()))
    counted = {}
    loads = {
        "conn_calls": tools.words(contender, "connect", seconds, CONCURRENCY),
        "request_calls": tools.words(contender, "rate", seconds, CONCURRENCY, 4000),
    }
    for row, load in loads.items():
        perf = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", pids, "--"]
        done = subprocess.run([*perf, *load], capture_output=True, text=True, check=False, timeout=120)
        calls = re.search(r"^(\d+),,raw_syscalls:sys_enter", done.stderr, re.MULTILINE)
        if done.returncode != 0 or calls is None:
            raise Failed(f"{contender.name}: perf stat: {done.stderr.strip()[-200:]}")
        counted[row] = int(calls[1]) / json.loads(done.stdout)["done"]
    return counted

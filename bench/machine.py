# SPDX-License-Identifier: Apache-2.0
"""What the benchmark reads from the kernel about processes and CPUs, and how it says what machine this is."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpus:
    """Which CPUs carry the load (clients and real servers) and which the load balancer."""

    load: frozenset[int]
    balancer: frozenset[int]


def split_cpus(workers: int) -> Cpus:
    """Give the balancer its own ``workers`` CPUs where there are more than one; all share the only one otherwise."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) <= workers:
        return Cpus(frozenset(usable), frozenset(usable))
    return Cpus(frozenset(usable[:-workers]), frozenset(usable[-workers:]))


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time used so far by processes and all their threads, to the nanosecond."""
    total = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(path.read_text().split()[0])
    return total / 1e9


def kernel_threads(name: str) -> list[int]:
    """Process ids of the kernel's threads whose name begins with ``name``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(name):
                found.append(int(path.parent.name))
    return found


def children_seconds() -> float:
    """CPU time of all children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory of processes, with shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


@dataclass(frozen=True)
class Busy:
    """Seconds that CPUs have spent since boot."""

    total: float
    idle: float
    steal: float


def busy(cpus: Iterable[int]) -> Busy:
    """Read what ``cpus`` have done so far."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    total = idle = steal = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in wanted:
            values = [int(tick) * TICK_S for tick in ticks[:8]]
            total += sum(values)
            idle += values[3] + values[4]
            steal += values[7]
    return Busy(total, idle, steal)


def _output(*command: str) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip().partition("\n")[0]
    return "not installed"


def describe() -> dict[str, str]:
    """Versions and hardware, for the report."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": f"{os.cpu_count()} x {cpu.partition(':')[2].strip()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "haproxy": _output("haproxy", "-v"),
        "nginx": _output("nginx", "-v"),
        "nft": _output("nft", "--version"),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
    }

# SPDX-License-Identifier: Apache-2.0
"""What the benchmark reads from the kernel about processes and CPUs, and how it says what machine this is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.quiet import Moment, Process

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SPIN = bytes(1 << 18)  # to be hashed in some tenths of a millisecond
SPINS = 5
OF_KERNEL = 0x00200000  # PF_KTHREAD, in the flags of proc(5)


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
    return sum(_run_s(pid) for pid in pids)


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


def moment(cpus: Cpus) -> Moment:
    """The machine now, for the decision whether a block was disturbed."""
    spin_s = spin(cpus)
    return Moment(time.monotonic(), busy(cpus.load | cpus.balancer).steal, processes(), spin_s)


def spin(cpus: Cpus) -> float:
    """Seconds that a fixed piece of work takes on a CPU of the load."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus.load)})
    try:
        return median(_timed_work() for _ in range(SPINS))
    finally:
        os.sched_setaffinity(0, usual)


def _timed_work() -> float:
    start = time.perf_counter()
    hashlib.sha1(SPIN, usedforsecurity=False).digest()
    return time.perf_counter() - start


def processes() -> dict[int, Process]:
    """All processes, without the threads of the kernel."""
    found = {}
    for pid in _numbers("/proc"):
        with contextlib.suppress(OSError):
            fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
            if not int(fields[6]) & OF_KERNEL:
                found[pid] = Process(int(fields[1]), _run_s(pid), (int(fields[13]) + int(fields[14])) * TICK_S)
    return found


def _run_s(pid: int) -> float:
    total = 0
    with contextlib.suppress(OSError):
        for thread in _numbers(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                total += int(_text(f"/proc/{pid}/task/{thread}/schedstat").split()[0])
    return total / 1e9


def _numbers(path: str) -> list[int]:
    # Neither pathlib here nor in _text: this is done between any two blocks, and takes a quarter of the time so.
    return [int(name) for name in os.listdir(path) if name.isdecimal()]  # noqa: PTH208


def _text(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 4096).decode(errors="replace")
    finally:
        os.close(descriptor)


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

# SPDX-License-Identifier: Apache-2.0
"""Which blocks were disturbed: told by what else the machine did meanwhile, never by their result. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FOREIGN = 0.02  # of one CPU's time
STOLEN = 0.02
SLOW = 1.25  # the clock of a virtual CPU wanders by a tenth; what is beyond has somebody else on the same core


@dataclass(frozen=True)
class Process:
    """CPU time of one process.

    Attributes:
        parent: Its parent's id.
        run_s: Of its own threads, to the nanosecond.
        children_s: Of its children that have ended, and theirs, in hundredths of a second.
    """

    parent: int
    run_s: float
    children_s: float


@dataclass(frozen=True)
class Moment:
    """The machine at one end of a block.

    Attributes:
        at_s: When.
        stolen_s: Time that the hypervisor has kept from the CPUs, since boot.
        processes: All there are, by id, without the threads of the kernel.
        spin_s: How long a fixed piece of work took on the CPU of the load.
    """

    at_s: float
    stolen_s: float
    processes: Mapping[int, Process]
    spin_s: float


@dataclass(frozen=True)
class Signs:
    """What else happened during a block: shares of one CPU's time, and the fixed work as a multiple of the usual."""

    foreign: float
    stolen: float
    slow: float

    @property
    def reason(self) -> str | None:
        """The name of what disturbed the block; None when nothing did."""
        if self.stolen > STOLEN:
            return "steal"
        if self.foreign > FOREIGN:
            return "foreign"
        return "slow" if self.slow > SLOW else None


def usual(spins_s: Sequence[float]) -> float:
    """How long the fixed work takes when nothing is in its way: the lower quartile of all that were timed."""
    return sorted(spins_s)[len(spins_s) // 4]


def signs(before: Moment, after: Moment, bench: int, usual_spin_s: float) -> Signs:
    """What happened between two moments that the benchmark, process ``bench``, did not do."""
    span = max(after.at_s - before.at_s, 1e-9)
    return Signs(
        _foreign_s(before.processes, after.processes, bench) / span,
        (after.stolen_s - before.stolen_s) / span,
        max(before.spin_s, after.spin_s) / usual_spin_s,
    )


def _foreign_s(before: Mapping[int, Process], after: Mapping[int, Process], bench: int) -> float:
    """CPU time of everybody else. What ended meanwhile is found again in its parent's ``children_s``."""
    running = ended = 0.0
    for pid in _others(after, bench):
        was = before.get(pid, Process(0, 0.0, 0.0))
        running += max(0.0, after[pid].run_s - was.run_s)
        ended += max(0.0, after[pid].children_s - was.children_s)
    for pid in _others(before, bench):
        if pid not in after:
            ended -= before[pid].run_s + before[pid].children_s
    # A parent that does not wait for its children is never charged with them: that must not hide what others did.
    return running + max(0.0, ended)


def _others(processes: Mapping[int, Process], bench: int) -> Iterable[int]:
    return (pid for pid in processes if bench not in _ancestry(processes, pid))


def _ancestry(processes: Mapping[int, Process], pid: int) -> set[int]:
    """A process and all it descends from."""
    line: set[int] = set()
    while pid in processes and pid not in line:
        line.add(pid)
        pid = processes[pid].parent
    return line

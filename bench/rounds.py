# SPDX-License-Identifier: Apache-2.0
"""Rounds: everybody is measured one after the other, in another order each time; what was disturbed does not count."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from bench.contenders import Contender
from bench.machine import Cpus, moment, spin
from bench.quiet import Signs, signs, usual
from bench.results import Block, Results
from bench.rows import Failed, Starved

Measure = Callable[[Contender], dict[str, float]]
CALIBRATION = 40  # spins


@dataclass(frozen=True)
class Schedule:
    """How many rounds there are, and who takes part in which.

    Attributes:
        wanted: Rounds in which nobody of the core was disturbed.
        most: Rounds at most, however many were disturbed.
        core: Those whose ratio is judged: measured in every round, next to each other.
        every: The others take part in every so many-th round, and in the mirrored one that follows it.
    """

    wanted: int
    most: int
    core: Collection[str] = ()
    every: int = 1

    def order(self, number: int, names: Sequence[str], before: Sequence[str]) -> list[str]:
        """Who is measured in round ``number``: shuffled, or as ``before`` mirrored, so that drift favours nobody."""
        if number % 2:
            return list(reversed(before))
        core = [name for name in names if name in self.core]
        others = [name for name in names if name not in self.core] if number // 2 % self.every == 0 else []
        random.shuffle(core)
        random.shuffle(others)
        place = random.randint(0, len(others))
        return others[:place] + core + others[place:]


class Watch:
    """Tells of each block what else the machine did meanwhile."""

    def __init__(self, cpus: Cpus) -> None:
        self._cpus = cpus
        self._spins_s = [spin(cpus) for _ in range(CALIBRATION)]
        self._before = moment(cpus)

    def signs(self) -> Signs:
        """What happened since the last time."""
        now = moment(self._cpus)
        self._spins_s.append(now.spin_s)
        seen = signs(self._before, now, os.getpid(), usual(self._spins_s))
        self._before = now
        return seen


def rounds(
    results: Results, what: str, who: Sequence[Contender], schedule: Schedule, measure: Measure, *, cpus: Cpus | None
) -> None:
    """Measure everybody by ``schedule``; a contender that fails in a round is told and left out of that round.

    Without ``cpus`` every block counts: what is counted there is the same however long it takes.
    """
    by_name = {contender.name: contender for contender in who}
    core = {name for name in by_name if name in schedule.core} or set(by_name)
    watch = Watch(cpus) if cpus is not None else None
    order: list[str] = []
    whole = number = 0
    while whole < schedule.wanted and number < schedule.most:
        order = schedule.order(number, list(by_name), order)
        number += 1
        found: dict[str, dict[str, float]] = {}
        for name in order:
            figures: dict[str, float] = {}
            failed: Failed | None = None
            try:
                figures = measure(by_name[name])
            except Failed as error:
                failed = error
            block = Block(what, number, name, figures, watch.signs() if watch is not None else None)
            if failed is not None and not (isinstance(failed, Starved) and block.disturbed):
                results.failures.append(f"{what}, round {number}: {failed}")
            elif results.keep(block):
                found[name] = figures
        results.add(found)
        whole += core <= set(found)
        sys.stderr.write(f"\r{what}: {whole} of {schedule.wanted} rounds undisturbed, {number} measured ")
        sys.stderr.flush()
    sys.stderr.write("\n")

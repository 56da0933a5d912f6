# SPDX-License-Identifier: Apache-2.0
"""Rounds: everybody is measured one after the other, in another order each time."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence

from bench.contenders import Contender
from bench.report import Results
from bench.rows import Failed

Measure = Callable[[Contender], dict[str, float]]


def rounds(results: Results, what: str, who: Sequence[Contender], count: int, measure: Measure) -> None:
    """Measure everybody ``count`` times; a contender that fails in a round is told and left out of that round."""
    order = list(who)
    for number in range(count):
        if number % 2 == 0:
            random.shuffle(order)
        else:
            order.reverse()  # what drifts with time then favours nobody
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for contender in order:
            try:
                found[contender.name] = measure(contender)
            except Failed as error:
                results.failures.append(f"{what}, round {number + 1}: {error}")
        results.add(found)
        sys.stderr.write(f"\r{what}: round {number + 1} of {count} ")
        sys.stderr.flush()
    sys.stderr.write("\n")

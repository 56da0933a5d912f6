# SPDX-License-Identifier: Apache-2.0
"""Weighted turns, evenly spread: the sequence of ``wrr`` and the order in which Maglev's members claim slots.

Invariant: after any number of turns, each has had its exact share rounded up or down, never further away.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import gcd


def reduced(weights: Sequence[int], limit: int) -> list[int]:
    """Turns of each in one period: ``weights`` (all above 0) over their common divisor.

    Where that is more than ``limit`` turns, weights are rounded to shares of it, and none falls below one turn;
    the period is then at most ``limit`` and one turn for each.
    """
    total = sum(weights)
    turns = list(weights)
    if total // gcd(*weights) > limit:
        turns = [max(1, (2 * weight * limit // total + 1) // 2) for weight in weights]
    divisor = gcd(*turns)
    return [turn // divisor for turn in turns]


def spread(turns: Sequence[int]) -> list[int]:
    """One period of turns, as indexes into ``turns``.

    The k-th turn of a member may be taken from its exact share k on and must be before k + 1; the earliest deadline
    goes first. For one resource such a schedule always exists (Tijdeman, "The chairman assignment problem", 1980).
    """
    period, count = sum(turns), len(turns)
    if max(turns) == 1:
        return list(range(count))
    due: list[list[int]] = [[] for _ in range(period)]
    due[0] = list(range(count))
    taken = [0] * count
    ready: list[int] = []  # deadline * count + index: plain integers compare faster than tuples
    order = []
    for now in range(period):
        for index in due[now]:
            deadline = -(-(taken[index] + 1) * period // turns[index])
            heappush(ready, deadline * count + index)
        index = heappop(ready) % count
        order.append(index)
        taken[index] += 1
        if taken[index] < turns[index]:
            release = taken[index] * period // turns[index]
            # A turn that was taken at its release may free the next one only for a later moment.
            due[max(release, now + 1)].append(index)
    return order

# SPDX-License-Identifier: Apache-2.0
"""In which order tests run beside each other: the long ones begin first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def dealt(long: Sequence[T], others: Sequence[T], workers: int) -> list[T]:
    """All of them, so that every worker begins with long ones.

    A long one that comes last runs while the other workers have nothing left to do. With ``--dist worksteal`` each
    worker gets one of ``workers`` equal, continuous parts of the list, and takes from others what they did not begin.
    """
    rest = iter(others)
    made: list[T] = []
    for worker in range(workers):
        size = (len(long) + len(others) - len(made)) // (workers - worker)
        mine = long[worker::workers]
        made += [*mine, *islice(rest, max(0, size - len(mine)))]
    return [*made, *rest]

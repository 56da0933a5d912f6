# SPDX-License-Identifier: Apache-2.0
"""How fast this machine is at the moment: for bars in seconds that were set on a quiet one.

A virtual machine may be half as fast from one minute to the next, by processor time as well; and by the clock, a
machine that others use is slower still.
"""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET_S = 0.05  # of CPU, for the work below, where the bars were set


def slowness(clock: Callable[[], float] = time.process_time) -> float:
    """How many times longer a fixed piece of Python takes than where the bars were set; 1 where it is faster.

    For bars in seconds that pass, ``clock`` is ``time.monotonic``: then what others take of the processor counts, too.
    """
    kept: dict[int, tuple[int, str]] = {}
    began = clock()
    for number in range(300_000):
        kept[number & 1023] = (number, str(number))
    return max(1.0, (clock() - began) / QUIET_S)


def within(took_s: float, limit_s: float) -> bool:
    """Whether what took so long by the clock would have been done in ``limit_s`` on a quiet machine."""
    return took_s < limit_s or took_s < limit_s * slowness(time.monotonic)

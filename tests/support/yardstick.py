# SPDX-License-Identifier: Apache-2.0
"""How fast this machine is at the moment: for bars in seconds that were set on a quiet one.

A virtual machine may be half as fast from one minute to the next, by processor time as well.
"""

from __future__ import annotations

import time

QUIET_S = 0.05  # of CPU, for the work below, where the bars were set


def slowness() -> float:
    """How many times longer a fixed piece of Python takes than where the bars were set; 1 where it is faster."""
    kept: dict[int, tuple[int, str]] = {}
    began = time.process_time()
    for number in range(300_000):
        kept[number & 1023] = (number, str(number))
    return max(1.0, (time.process_time() - began) / QUIET_S)

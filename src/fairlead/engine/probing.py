# SPDX-License-Identifier: Apache-2.0
"""What is probed, and when enough is known of it to go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from fairlead.dataplane.base import DataPlane
from fairlead.engine.monitor import Monitor
from fairlead.engine.present import Present
from fairlead.model.health import HealthState, ProbeTarget

SLACK_S = 0.5  # beyond the longest probe timeout: when probes of many targets queue up


class Probing:
    """Tells the monitor what to probe.

    Args:
        monitor: Probes it.
        dataplane: Has the ways that probes take.
        present: Learns that verdicts may have changed.
    """

    def __init__(self, monitor: Monitor, dataplane: DataPlane, present: Present) -> None:
        self._monitor = monitor
        self._dataplane = dataplane
        self._present = present

    async def set(self, wanted: Mapping[ProbeTarget, frozenset[str]], known: Mapping[ProbeTarget, HealthState]) -> None:
        """Have ``wanted`` probed, by ways that are there before; new targets start from their ``known`` state."""
        await self._dataplane.set_ways(frozenset(target.way for target in wanted if target.way is not None))
        self._monitor.set_targets(wanted, known)
        self._present.outdate()

    async def first_results(
        self, wanted: Mapping[ProbeTarget, frozenset[str]], known: Mapping[ProbeTarget, HealthState]
    ) -> None:
        """Likewise, and wait until each target had a result, or could have had one."""
        await self.set(wanted, known)
        longest_s = max((target.monitor.timeout_s for target in wanted), default=0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s + SLACK_S):
                await self._monitor.all_checked()
        self._present.outdate()

# SPDX-License-Identifier: Apache-2.0
"""Nouns of health checking: the result of one probe, and the verdict that results add up to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fairlead.model.net import Endpoint
from fairlead.model.pool import HealthMonitor
from fairlead.model.reasons import DownReason


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """One thing to probe: shared by every pool that checks this endpoint in this way."""

    endpoint: Endpoint
    monitor: HealthMonitor


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How one probe ended.

    Attributes:
        passed: Whether the server did as expected.
        reason: None exactly when it passed.
        detail: One line for people.
        duration_s: Seconds it took.
        certificate_until: End of the server's certificate, in seconds since the Unix epoch; None: not seen.
    """

    passed: bool
    reason: DownReason | None
    detail: str
    duration_s: float
    certificate_until: float | None = None


class Verdict(StrEnum):
    """What the probes of a target add up to."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class HealthState:
    """State of the rise/fall filter of one target.

    Attributes:
        verdict: Starts DOWN; the first result decides, then ``rise`` and ``fall`` count.
        streak: Consecutive results that contradict ``verdict``.
        checked: False until a first result came.
        reason: Why it is down, or None.
        detail: One line about the last result that mattered.
    """

    verdict: Verdict = Verdict.DOWN
    streak: int = 0
    checked: bool = False
    reason: DownReason | None = DownReason.UNCHECKED
    detail: str = "no probe has finished yet"

# SPDX-License-Identifier: Apache-2.0
"""Paired ratios: the median over rounds, and a bootstrap interval of it. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

RESAMPLES = 4000


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios and its 95 % confidence interval."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio | None:
    """Compare two series that were measured round by round; None without a usable round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True) if a > 0 and b > 0]
    if not ratios:
        return None
    chance = random.Random(len(ratios))
    medians = sorted(median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return Ratio(median(ratios), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)], len(ratios))

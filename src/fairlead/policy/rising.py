# SPDX-License-Identifier: Apache-2.0
"""Slow start: which servers came up lately, and the share of their weight that they have so far.

Invariants: a share grows from 10 % to 100 % in STEPS steps and never falls; all servers of a pool change at the same
moments, so that a pool changes at most STEPS times within its slow start however many of its servers come up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fairlead.model.pool import Pool

STEPS = 10
FULL = 100  # per cent
_MS = 1000


def note(
    seen: Iterable[tuple[str, Pool, bool | None]], resting: frozenset[str], rising: Mapping[str, float], now: float
) -> tuple[frozenset[str], dict[str, float]]:
    """Go on from who rested and who rose before.

    Args:
        seen: Key and pool of each server, and whether it may take new flows; None: that is not known yet.
        resting: Keys of those that were seen unable to.
        rising: Since when those rise that came up, in monotonic seconds.
        now: Monotonic seconds.
    """
    still: set[str] = set()
    up: dict[str, float] = {}
    for key, pool, able in seen:
        if not pool.slow_start_s:
            continue
        if able is None:
            still.update({key} & resting)
        elif not able:
            still.add(key)
        elif key in resting:
            up[key] = now
        elif key in rising and share(rising[key], pool.slow_start_s, now) < FULL:
            up[key] = rising[key]
    return frozenset(still), up


def share(since: float, slow_start_s: float, now: float) -> int:
    """Per cent of its weight that a server has which came up at ``since``; it is whole after the slow start."""
    length = _step_ms(slow_start_s)
    begun = _step(since, length)
    begun += _moment(begun, length) < since
    return FULL * min(max(_step(now, length) - begun, 1), STEPS) // STEPS


def next_step_at(slow_start_s: float, now: float) -> float:
    """The next moment at which shares grow."""
    length = _step_ms(slow_start_s)
    return _moment(_step(now, length) + 1, length)


def _step_ms(slow_start_s: float) -> int:
    return max(1, round(slow_start_s * _MS / STEPS))


def _moment(step: int, length_ms: int) -> float:
    return step * length_ms / _MS


def _step(now: float, length_ms: int) -> int:
    """The step that ``now`` is in; compared with the moments themselves, so that rounding cannot part the two."""
    step = int(now * _MS) // length_ms
    while _moment(step + 1, length_ms) <= now:
        step += 1
    while _moment(step, length_ms) > now:
        step -= 1
    return step

# SPDX-License-Identifier: Apache-2.0
"""What happened, newest last: a bounded ring that the API reads and waits on, and the log in one place.

Invariant: every event is logged once with the same word that the API shows as ``kind``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from fairlead.model.views import EventView

KEPT_EVENTS = 2000


class Events:
    """Records events and wakes those who wait for them. To be used on the event loop only."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._ring: deque[EventView] = deque(maxlen=KEPT_EVENTS)
        self._next_id = 1
        self._waiters: set[asyncio.Future[None]] = set()
        self._log = structlog.get_logger("fairlead")

    def record(self, kind: str, subject: str, message: str, *, level: str = "info", **fields: Any) -> None:
        """Add one event and log it with ``fields``."""
        self._ring.append(EventView(self._next_id, self._wall_clock(), kind, subject, message))
        self._next_id += 1
        getattr(self._log, level)(kind, subject=subject, message=message, **fields)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def after(self, event_id: int, limit: int) -> tuple[EventView, ...]:
        """The oldest ``limit`` events that came after ``event_id``."""
        newer = [event for event in self._ring if event.id > event_id]
        return tuple(newer[:limit])

    async def wait(self, after: int, timeout_s: float) -> None:
        """Return when an event newer than ``after`` exists, or when ``timeout_s`` has passed."""
        if self._next_id - 1 > after:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)

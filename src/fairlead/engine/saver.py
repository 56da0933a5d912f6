# SPDX-License-Identifier: Apache-2.0
"""When the state is written: at once where somebody waits for it, else a moment later, never twice at a time.

Invariant: what had happened when ``now`` was called is in the file when it returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fairlead.dataplane.threads import to_its_end
from fairlead.engine.events import Events
from fairlead.engine.store import Store
from fairlead.policy.derive import Runtime

DELAY_S = 0.2  # verdicts that change together are written together
SMALL = 1 << 18  # characters: less than the way to a thread and back


class Saver:
    """Writes what is to survive the agent.

    Args:
        store: Where it is written.
        runtime: Returns what has happened by now.
        events: Where it is told that it cannot be written.
    """

    def __init__(self, store: Store, runtime: Callable[[], Runtime], events: Events) -> None:
        self._store = store
        self._runtime = runtime
        self._events = events
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._later: asyncio.Task[None] | None = None

    def soon(self) -> None:
        """Write in a moment."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._later = asyncio.create_task(self.now(), name="saving")

    async def now(self) -> None:
        """Write, and return when it is written."""
        async with self._lock:
            texts = self._store.texts(self._runtime())
            try:
                if sum(map(len, texts)) <= SMALL:
                    self._store.write(texts)
                else:
                    await to_its_end(lambda: self._store.write(texts))
            except OSError as error:
                self._events.record(
                    "state_not_saved",
                    "runtime directory",
                    f"{error}; run-time states would not survive",
                    level="error",
                )

    async def close(self) -> None:
        """Write what still waits."""
        if self._later is not None:
            await self._later
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            await self.now()

# SPDX-License-Identifier: Apache-2.0
"""An event loop whose time jumps to the next timer when there is nothing else to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any


class _Jump(selectors.EpollSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "everything waits and no timer is set: it would wait for ever"
            self.now += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which starts at 0; it has no use for real sockets or threads."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Virtual seconds."""
        return self._jump.now


def run_virtually(main: Coroutine[Any, Any, None]) -> None:
    """Like ``asyncio.run``, in virtual time; what is left undone or unretrieved fails the test."""
    loop = VirtualLoop()
    complaints: list[Mapping[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        loop.run_until_complete(main)
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        assert not left, f"tasks left: {left}"
    finally:
        loop.close()
    assert not complaints, complaints

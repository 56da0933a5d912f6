# SPDX-License-Identifier: Apache-2.0
"""The one deadline of an attempt, and the one way an attempt waits for its socket.

A TCP probe by ``add_writer`` with a bare future costs 15 us more than a blocking connect; by ``loop.sock_connect``
within ``asyncio.timeout``, 27 us (CPython 3.11, loopback).
"""

from __future__ import annotations

import asyncio

from fairlead.model.reasons import DownReason
from fairlead.probes.outcome import ProbeFailed

STALL_S = 0.05


class Deadline:
    """Ends the attempt ``timeout_s`` seconds after it was made.

    Time in which this node stood still (a long step on the event loop) is not the server's: when the timer itself
    comes late, the attempt gets that time back, once.

    Attributes:
        doing: What the attempt does now, for the message when it takes too long.
    """

    __slots__ = ("_due", "_extended", "_handle", "_loop", "_passed", "_timeout_s", "_waiter", "doing")

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._due = self._loop.time() + timeout_s
        self._handle = self._loop.call_at(self._due, self._expire)
        self._extended = False
        self._passed = False
        self._waiter: asyncio.Future[bool] | None = None
        self.doing = "connect"

    def close(self) -> None:
        """Forget the timer."""
        self._handle.cancel()

    def left_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._due - self._loop.time())

    async def readable(self, fd: int) -> None:
        """Wait until ``fd`` can be read or has failed.

        Raises:
            ProbeFailed: TIMEOUT, the deadline has passed.
        """
        waiter = self._wait()
        self._loop.add_reader(fd, _wake, waiter)
        try:
            ready = await waiter
        finally:
            self._loop.remove_reader(fd)
        if not ready:
            raise self.failure()

    async def writable(self, fd: int) -> None:
        """Wait until ``fd`` can be written, is connected or has failed.

        Raises:
            ProbeFailed: TIMEOUT, the deadline has passed.
        """
        waiter = self._wait()
        self._loop.add_writer(fd, _wake, waiter)
        try:
            ready = await waiter
        finally:
            self._loop.remove_writer(fd)
        if not ready:
            raise self.failure()

    def _wait(self) -> asyncio.Future[bool]:
        if self._passed:
            raise self.failure()
        waiter = self._waiter = self._loop.create_future()
        return waiter

    def _expire(self) -> None:
        late_s = self._loop.time() - self._due
        if late_s > STALL_S and not self._extended:
            self._extended = True
            self._due = self._loop.time() + late_s
            self._handle = self._loop.call_at(self._due, self._expire)
            return
        self._passed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)

    def failure(self) -> ProbeFailed:
        """What to raise when the deadline has passed."""
        return ProbeFailed(DownReason.TIMEOUT, f"{self.doing} took longer than {self._timeout_s:g} s")


def _wake(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(True)

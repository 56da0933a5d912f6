# SPDX-License-Identifier: Apache-2.0
"""A client that asks a virtual service again and again, one request per connection, and counts who answered.

Invariant: a request counts once, as answered or as failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

TIMEOUT_S = 5.0
REQUEST = b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n"


class Traffic:
    """Steady requests; ``answered`` counts by the name in the answer.

    Args:
        host: Address of the service.
        port: Port of the service.
        per_second: Requests started each second, whether or not earlier ones have ended.
        failed: Called with one line per failed request.
    """

    def __init__(self, host: str, port: int, per_second: float, failed: Callable[[str], None]) -> None:
        self._host = host
        self._port = port
        self._interval_s = 1.0 / per_second
        self._tell_failed = failed
        self.answered: Counter[str] = Counter()
        self.failures = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._ask())
                await asyncio.sleep(self._interval_s)

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(REQUEST)
                    answer = await reader.read(65536)
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            self._fail(str(error) or "no answer in time")
            return
        if not answer.startswith(b"HTTP/1.1 200"):
            self._fail("the connection was closed without an answer")
            return
        self.answered[answer.rpartition(b"\r\n\r\n")[2].decode("utf-8", "replace").strip()] += 1

    def _fail(self, why: str) -> None:
        self.failures += 1
        self._tell_failed(why)

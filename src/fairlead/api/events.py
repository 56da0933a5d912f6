# SPDX-License-Identifier: Apache-2.0
"""Events over HTTP: a page, or a stream of server-sent events (WHATWG HTML section 9.2).

Invariant: nothing is queued for a stream. It reads the engine's bounded ring at its client's pace; what a slow
client missed shows as a gap in the ids. A client that ends its direction is treated as one that has gone, for most
have: its stream ends, after what is there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.responses import Response, StreamingResponse

from fairlead.api.codec import Parameter, encode
from fairlead.api.facade import Facade
from fairlead.api.problems import Reason, Refusal
from fairlead.model.views import EventView

EVENT_STREAM = "text/event-stream"
MAX_STREAMS = 32
BATCH = 100
KEEP_ALIVE_S = 15.0  # shorter than the idle timeouts of the HTTP proxies in use (60 s)
_LAST_ID = Parameter("Last-Event-ID", int, "")


def events_page(facade: Facade, after: int, limit: int) -> tuple[EventView, ...]:
    """Events after ``after``; ids start anew with the daemon, so one from its future belongs to an earlier run."""
    found = facade.events(after, limit)
    if found or after == 0 or after == newest(facade):
        return found
    return facade.events(0, limit)


def newest(facade: Facade) -> int:
    """Id of the newest event, 0 when nothing has happened yet."""
    kept = facade.events(0, 2**31)
    return kept[-1].id if kept else 0


class Streams:
    """The open streams: a bounded number, ended together."""

    def __init__(self, facade: Facade, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._facade = facade
        self._keep_alive_s = keep_alive_s
        self._open = 0
        self._closed = asyncio.Event()

    def open(self, last_event_id: str | None, after: int | None, ended: asyncio.Event) -> Response:
        """A stream of what comes after ``last_event_id``, else after ``after``, else from now on, until ``ended``.

        Raises:
            Refusal: 400 on a bad id, 503 when too many streams are open.
        """
        if last_event_id is not None:
            after = int(_LAST_ID.parse(last_event_id))
        if self._open >= MAX_STREAMS:
            detail = f"{MAX_STREAMS} event streams are open already; close one, or poll /v1/events"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, Reason.BUSY, detail, headers={"retry-after": "5"})
        last = newest(self._facade)
        start = last if after is None else after if after <= last else 0
        return StreamingResponse(self._follow(start, ended), 200, {"cache-control": "no-store"}, EVENT_STREAM)

    def close(self) -> None:
        """End all streams, and those opened from now on after what is there already."""
        self._closed.set()

    async def _follow(self, after: int, ended: asyncio.Event) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            yield b"retry: 2000\n\n"
            while True:
                events = self._facade.events(after, BATCH)
                if events:
                    after = events[-1].id
                    yield b"".join(map(_frame, events))
                    await asyncio.sleep(0)  # for the loop to notice a client that has gone
                if self._closed.is_set() or (ended.is_set() and len(events) < BATCH):
                    return
                if not events and not await self._wait(after, ended):
                    yield b": keep-alive\n\n"
        finally:
            self._open -= 1

    async def _wait(self, after: int, ended: asyncio.Event) -> bool:
        """Whether something came, or the stream ends, before a sign of life is due."""
        news = asyncio.ensure_future(self._facade.wait_event(after, self._keep_alive_s))
        ends = [asyncio.ensure_future(end.wait()) for end in (self._closed, ended)]
        try:
            await asyncio.wait({news, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                news.result()
        finally:
            news.cancel()
            for end in ends:
                end.cancel()
        return self._closed.is_set() or ended.is_set() or bool(self._facade.events(after, 1))


def _frame(event: EventView) -> bytes:
    kind = " ".join(event.kind.split())
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, kind.encode(errors="replace"), encode(EventView, event))

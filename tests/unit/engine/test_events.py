# SPDX-License-Identifier: Apache-2.0
"""Events are bounded, in order, wake those who wait, and are logged in one line."""

from __future__ import annotations

import asyncio
import contextlib
import io

from fairlead.engine import logs
from fairlead.engine.events import KEPT_EVENTS, Events


def test_the_oldest_go_first() -> None:
    logs.configure(timestamps=False, out=io.StringIO())
    events = Events(lambda: 5.0)
    for number in range(KEPT_EVENTS + 3):
        events.record("kind", str(number), "message")
    assert [event.subject for event in events.after(0, 2)] == ["3", "4"]
    assert events.after(KEPT_EVENTS + 2, 10)[0].subject == str(KEPT_EVENTS + 2)
    assert events.after(KEPT_EVENTS + 3, 10) == ()


def test_a_waiter_wakes_with_the_event() -> None:
    logs.configure(timestamps=False, out=io.StringIO())

    async def wait() -> int:
        events = Events(lambda: 5.0)
        waiting = asyncio.create_task(events.wait(0, 30))
        await asyncio.sleep(0)
        events.record("kind", "subject", "message")
        await waiting
        await events.wait(0, 30)
        await events.wait(1, 0)
        return len(events.after(0, 10))

    assert asyncio.run(asyncio.wait_for(wait(), 5)) == 1


def test_what_a_peer_says_cannot_break_a_line() -> None:
    out = io.StringIO()
    logs.configure(timestamps=False, out=out)
    Events(lambda: 5.0).record("health_down", "10.0.0.1:80", "said\nlevel=info event=forged\x1b[2J", level="warning")
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("level=warning event=health_down subject=10.0.0.1:80 message=")
    assert "\x1b" not in lines[0]


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        logs.configure(timestamps=False, out=full)
        events = Events(lambda: 5.0)
        events.record("kind", "subject", "message")
        events.record("kind", "subject", "message")
        assert len(events.after(0, 10)) == 2
        logs.configure(timestamps=False, out=io.StringIO())
        with contextlib.suppress(OSError):
            full.close()

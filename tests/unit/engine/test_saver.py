# SPDX-License-Identifier: Apache-2.0
"""The state is written beside the event loop, one file at a time, and what was asked for is in it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from fairlead.engine.events import Events
from fairlead.engine.saver import SMALL, Saver
from fairlead.engine.store import Store
from fairlead.policy.derive import Runtime

pytestmark = pytest.mark.anyio


class SlowStore(Store):
    """One whose disk waits until it is let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "boot")
        self.free = threading.Event()
        self.begun: list[str] = []
        self.written: list[str] = []

    def texts(self, runtime: Runtime) -> list[str]:
        return [*super().texts(runtime), " " * SMALL]

    def write(self, texts: Iterable[str]) -> None:
        text = "".join(texts)
        self.begun.append(text)
        assert self.free.wait(10)
        self.written.append(text)
        super().write([text])


@pytest.fixture
def store(tmp_path: Path) -> SlowStore:
    return SlowStore(tmp_path / "state.json")


async def test_the_loop_goes_on_and_the_next_write_waits_for_the_one_before(store: SlowStore) -> None:
    drained: dict[str, float] = {"web/a": 1.0}
    saver = Saver(store, lambda: Runtime(drain_since=dict(drained)), Events(time.time))
    first = asyncio.create_task(saver.now())
    while not store.begun:  # noqa: ASYNC110  # the loop turns although the disk does not
        await asyncio.sleep(0.001)
    drained["web/b"] = 2.0
    second = asyncio.create_task(saver.now())
    await asyncio.sleep(0.01)  # time to begin, if it did not wait
    assert len(store.begun) == 1
    assert not first.done()
    store.free.set()
    await asyncio.gather(first, second)
    assert ['"web/b"' in text for text in store.written] == [False, True]


async def test_who_goes_away_leaves_no_write_half_done(store: SlowStore) -> None:
    saver = Saver(store, Runtime, Events(time.time))
    first = asyncio.create_task(saver.now())
    while not store.begun:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    first.cancel()
    second = asyncio.create_task(saver.now())
    await asyncio.sleep(0.01)
    assert len(store.begun) == 1
    store.free.set()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(store.written) == 2


async def test_what_waits_is_written_at_the_end(store: SlowStore) -> None:
    store.free.set()
    saver = Saver(store, Runtime, Events(time.time))
    saver.soon()
    saver.soon()
    await saver.close()
    assert len(store.written) == 1
    await saver.close()
    assert len(store.written) == 1

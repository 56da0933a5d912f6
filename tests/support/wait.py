# SPDX-License-Identifier: Apache-2.0
"""The one way tests wait for something that another process or thread does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE_S = 0.005


def until(predicate: Callable[[], T], timeout_s: float, what: str) -> T:
    """Poll ``predicate`` until it is true and return its value; fail with ``what`` after ``timeout_s``.

    Many predicates run a program: who asks without a pause keeps a processor from what is waited for.
    """
    asked = time.monotonic()
    deadline = asked + timeout_s
    while not (value := predicate()):
        answered = time.monotonic()
        assert asked < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(max(PAUSE_S, answered - asked))
        asked = time.monotonic()
    return value


async def until_later(predicate: Callable[[], T], timeout_s: float, what: str) -> T:
    """Like ``until``, for tests that run on an event loop, which goes on meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(PAUSE_S)
    return value

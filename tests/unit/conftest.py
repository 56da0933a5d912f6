# SPDX-License-Identifier: Apache-2.0
"""Runs tests that are coroutines, and lets none leave a task, a descriptor or a complaint behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Coroutine
from typing import Any

import pytest

from support.servers import descriptors


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    _run_cleanly(pyfuncitem.obj(**arguments))
    return True


def _run_cleanly(test: Coroutine[Any, Any, None]) -> None:
    async def watched() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        before = descriptors()
        await test
        gc.collect()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert descriptors() <= before
        assert not complaints

    asyncio.run(watched())

# SPDX-License-Identifier: Apache-2.0
"""The proxy data plane keeps the contract, with real workers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fairlead.dataplane.base import DataPlane
from support.proxy import lab
from unit.dataplane.contract import Contract, Open


class TestProxy(Contract):
    @pytest.fixture
    def opened(self, runtime: Path, program: Path) -> Open:
        @contextlib.asynccontextmanager
        async def opening() -> AsyncIterator[DataPlane]:
            async with lab(runtime, program) as made:
                yield await made.plane(2)

        return opening

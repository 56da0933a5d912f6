# SPDX-License-Identifier: Apache-2.0
"""The XDP data plane keeps the contract, with maps and programs in the kernel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from fairlead.dataplane.base import DataPlane
from fairlead.model.service import Forwarding
from support.xdp import own_namespace
from support.xdp_plane import opened_plane
from unit.dataplane.contract import Contract, Open


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.mark.root
class TestXdp(Contract):
    forwarding = Forwarding.NAT

    @pytest.fixture
    def opened(self) -> Open:
        @contextlib.asynccontextmanager
        async def opening() -> AsyncIterator[DataPlane]:
            async with opened_plane() as plane:
                yield plane

        return opening

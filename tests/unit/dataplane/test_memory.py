# SPDX-License-Identifier: Apache-2.0
"""The data plane in memory: the contract, and faults on order."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from fairlead.dataplane.base import FlowFilter
from fairlead.dataplane.memory import MemoryDataPlane
from fairlead.errors import DataPlaneError
from fairlead.model.state import DeleteServer, Plan, PutServer
from fairlead.model.views import FlowView
from support.models import server_spec
from unit.dataplane.contract import Contract, Open, states

ONE, TWO, THREE = (PutServer(server_spec(f"web/{name}")) for name in "123")


@contextlib.asynccontextmanager
async def opening() -> AsyncIterator[MemoryDataPlane]:
    plane = MemoryDataPlane()
    await plane.start()
    yield plane
    await plane.stop(drain_s=0)


class TestMemory(Contract):
    @pytest.fixture
    def opened(self) -> Open:
        return opening


def keys(plane: MemoryDataPlane) -> set[str]:
    return set(plane.state.servers)


async def test_the_nth_op_fails_once() -> None:
    plane = MemoryDataPlane()
    plane.fail(1)
    with pytest.raises(DataPlaneError) as raised:
        await plane.apply(Plan((ONE, TWO, THREE)))
    assert raised.value.op == TWO
    assert keys(plane) == {"web/1"}
    await plane.apply(Plan((TWO, THREE)))
    assert keys(plane) == {"web/1", "web/2", "web/3"}
    assert plane.applied == [ONE, TWO, THREE]


async def test_a_plan_is_cut_and_nobody_is_to_blame() -> None:
    plane = MemoryDataPlane()
    plane.cut(2)
    with pytest.raises(DataPlaneError) as raised:
        await plane.apply(Plan((ONE, TWO, THREE)))
    assert raised.value.op is None
    assert keys(plane) == {"web/1", "web/2"}


async def test_an_op_is_lost_silently() -> None:
    plane = MemoryDataPlane()
    plane.lose()
    await plane.apply(Plan((ONE, TWO)))
    assert keys(plane) == {"web/2"}


async def test_faults_count_from_the_moment_they_are_ordered() -> None:
    plane = MemoryDataPlane()
    await plane.apply(Plan((ONE,)))
    plane.lose(1)
    await plane.apply(Plan((TWO, THREE)))
    assert keys(plane) == {"web/1", "web/2"}


async def test_the_state_drifts() -> None:
    plane = MemoryDataPlane()
    await plane.apply(Plan((ONE, TWO)))
    plane.drift([DeleteServer("web/1")])
    assert (await plane.observe()).servers.keys() == {"web/2"}


async def test_what_is_detached_is_found_again_and_what_is_stopped_is_gone() -> None:
    plane = MemoryDataPlane(states()["small"])
    await plane.start()
    assert plane.running
    await plane.detach()
    assert not plane.running
    await plane.start()
    assert await plane.observe() == states()["small"]
    await plane.stop(drain_s=0)
    assert not (await plane.observe()).servers


async def test_connections_come_in_pages() -> None:
    plane = MemoryDataPlane()
    for n in range(5):
        name = "a" if n % 2 else "b"
        plane.connections.append(FlowView(name, f"{name}/1", f"10.0.0.{n}:1", "v", "established", 0, 0, 0, 0, 0))
    first = await plane.flows(FlowFilter(service="b"), None, 2)
    second = await plane.flows(FlowFilter(service="b"), first.cursor, 2)
    assert [it.client for it in (*first.flows, *second.flows)] == ["10.0.0.0:1", "10.0.0.2:1", "10.0.0.4:1"]
    assert second.cursor is None
    assert not (await plane.flows(FlowFilter(server="c/1"), None, 2)).flows

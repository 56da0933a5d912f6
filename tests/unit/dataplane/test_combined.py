# SPDX-License-Identifier: Apache-2.0
"""Two data planes behind one keep the contract, and services move between them without a gap."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fairlead.dataplane.base import DataPlane
from fairlead.dataplane.combined import CombinedDataPlane
from fairlead.dataplane.memory import MemoryDataPlane
from fairlead.model.service import Forwarding
from fairlead.model.state import CloseListener, OpenListener, Plan, PutServer
from fairlead.policy import tables
from fairlead.policy.plan import plan
from support.models import forwarding_state, listener, server_spec, service_spec, table_spec
from unit.dataplane.contract import NOTHING, Contract, Open, bring, same


@pytest.mark.parametrize("forwarding", [Forwarding.PROXY, Forwarding.NAT])
class TestCombined(Contract):
    @pytest.fixture(autouse=True)
    def how(self, forwarding: Forwarding) -> None:
        self.forwarding = forwarding

    @pytest.fixture
    def opened(self) -> Open:
        @contextlib.asynccontextmanager
        async def opening() -> AsyncIterator[DataPlane]:
            yield CombinedDataPlane(MemoryDataPlane(), MemoryDataPlane())

        return opening


SERVERS = tuple(server_spec(f"web/10.0.0.{n}:80", f"10.0.0.{n}:80") for n in (1, 2))
TABLE = table_spec({"10.0.0.1:80": 1, "10.0.0.2:80": 1}, size=251)
OTHER = table_spec({"10.0.0.1:80": 1, "10.0.0.2:80": 1}, size=1021)
AT = listener("web", "192.0.2.10:80")
PROXIED = forwarding_state(SERVERS, (TABLE,), (service_spec("web", tables.digest(TABLE)),), (AT,))
NATTED = forwarding_state(
    SERVERS, (OTHER,), (service_spec("web", tables.digest(OTHER), forwarding=Forwarding.NAT),), (AT,)
)


async def test_a_service_that_changes_its_forwarding_moves_and_leaves_nothing_behind() -> None:
    proxy, packets = MemoryDataPlane(), MemoryDataPlane()
    both = CombinedDataPlane(proxy, packets)
    await bring(both, PROXIED)
    assert (proxy.state.listeners, packets.state.listeners) == (frozenset({AT}), frozenset())
    await bring(both, NATTED)
    assert same(await both.observe(), NATTED)
    assert (proxy.state.listeners, packets.state.listeners) == (frozenset(), frozenset({AT}))
    assert (proxy.state.services, packets.state.services) == ({}, NATTED.services)
    assert OpenListener(AT) in packets.applied
    assert CloseListener(AT) in proxy.applied
    await bring(both, PROXIED)
    assert same(await both.observe(), PROXIED)
    assert packets.state.listeners == frozenset()
    await bring(both, NOTHING)
    assert same(proxy.state, NOTHING)
    assert same(packets.state, NOTHING)


async def test_a_server_that_its_plane_lost_is_not_taken_for_one_that_waits() -> None:
    proxy, packets = MemoryDataPlane(), MemoryDataPlane()
    both = CombinedDataPlane(proxy, packets)
    await bring(both, NATTED)
    assert same(await both.observe(), NATTED)
    await both.apply(Plan((PutServer(SERVERS[0]._replace(weight=7)),)))
    assert packets.state.servers[SERVERS[0].key].weight == 7
    packets.state = replace(packets.state, servers={SERVERS[1].key: SERVERS[1]})
    assert SERVERS[0].key not in (await both.observe()).servers


async def test_a_move_that_was_cut_is_done_again() -> None:
    proxy, packets = MemoryDataPlane(PROXIED), MemoryDataPlane(NATTED)  # both hold the service
    both = CombinedDataPlane(proxy, packets)
    assert plan(NATTED, await both.observe())
    await bring(both, NATTED)
    assert proxy.state.services == {}
    assert same(await both.observe(), NATTED)


async def test_what_one_plane_refuses_does_not_keep_the_other_from_its_work() -> None:
    proxy, packets = MemoryDataPlane(), MemoryDataPlane()
    both = CombinedDataPlane(proxy, packets)
    goal = forwarding_state(
        SERVERS,
        (TABLE, OTHER),
        (
            service_spec("web", tables.digest(TABLE)),
            service_spec("dns", tables.digest(OTHER), forwarding=Forwarding.DSR),
        ),
        (AT, listener("dns", "192.0.2.10:53")),
    )
    proxy.fail(1)
    with pytest.raises(Exception, match="as ordered"):
        await bring(both, goal)
    assert packets.state.services.keys() == {"dns"}
    await bring(both, goal)
    assert same(await both.observe(), goal)


async def test_a_plane_that_was_told_nothing_is_asked_only_when_all_is_looked_at() -> None:
    proxy, packets = MemoryDataPlane(), MemoryDataPlane()
    both = CombinedDataPlane(proxy, packets)
    await bring(both, NATTED)
    await both.observe()
    proxy.looks, packets.looks = [], []
    await both.apply(plan(forwarding_state(SERVERS, (OTHER,), tuple(NATTED.services.values()), ()), NATTED))
    assert (await both.observe(thorough=False)).listeners == frozenset()
    assert (proxy.looks, packets.looks) == ([], [False])
    await both.observe()
    assert (proxy.looks, packets.looks) == ([True], [False, True])


async def test_what_no_plane_was_told_stays_the_same_object() -> None:
    both = CombinedDataPlane(MemoryDataPlane(), MemoryDataPlane())
    for state in (NATTED, PROXIED):
        await bring(both, state)
        before = await both.observe()
        after = await both.observe()
        assert after.services is before.services
        assert after.servers is before.servers

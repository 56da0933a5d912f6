# SPDX-License-Identifier: Apache-2.0
"""What every data plane does; each driver's test file derives from ``Contract`` and says how one is opened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import cache
from itertools import permutations

import pytest

from fairlead.dataplane.base import DataPlane, FlowFilter
from fairlead.errors import DataPlaneError, UnsupportedFeature
from fairlead.model.health import Way
from fairlead.model.net import AddressRange, Protocol
from fairlead.model.service import Forwarding, Passage, Persistence, ProxyHeader, Scheduler
from fairlead.model.state import (
    CloseListener,
    DeleteServer,
    DeleteService,
    DeleteTable,
    FlowTreatment,
    ForwardingState,
    Op,
    OpenListener,
    Plan,
    PutServer,
    PutService,
    PutTable,
    ServiceMode,
)
from fairlead.policy import tables
from fairlead.policy.plan import plan
from support.models import endpoint, forwarding_state, listener, server_spec, service_spec, table_spec
from support.processes import free_port

Open = Callable[[], AbstractAsyncContextManager[DataPlane]]
NOTHING = ForwardingState()


def same(one: ForwardingState, other: ForwardingState) -> bool:
    """Equal, tables by digest alone."""
    return (one.servers, one.tables.keys(), one.services, one.listeners) == (
        other.servers,
        other.tables.keys(),
        other.services,
        other.listeners,
    )


@cache
def states(forwarding: Forwarding = Forwarding.PROXY) -> dict[str, ForwardingState]:
    """States that differ in everything a state is made of; packets are not spread by the number of connections."""
    how = {"forwarding": forwarding}
    port, other, first = free_port(), free_port(), free_port()
    s1, s2, s3 = (server_spec(f"web/10.0.0.{n}:80", f"10.0.0.{n}:80") for n in (1, 2, 3))
    v6 = server_spec("six/[2001:db8::1]:0", "[2001:db8::1]:0", weight=7, max_connections=9)
    both = table_spec({"10.0.0.1:80": 1, "10.0.0.2:80": 2}, size=251)
    one = table_spec({"10.0.0.1:80": 1, "10.0.0.2:80": 2}, dead=frozenset({"10.0.0.2:80"}), size=251)
    turns = table_spec({"10.0.0.3:80": 1}, scheduler=Scheduler.RR, size=1)
    web = service_spec("web", tables.digest(both), **how)
    rich = service_spec(
        "rich",
        tables.digest(turns),
        scheduler=Scheduler.WLC if forwarding is Forwarding.PROXY else Scheduler.WRR,
        forwarding=forwarding,
        seed=bytes(range(16, 32)),
        idle_timeout_ms=0,
        retries=0,
        persistence=Persistence(0.25, 24, 64),
        max_connections=5,
        connections_per_source=6,
        new_per_source=7,
        source_prefix_v4=24,
        source_prefix_v6=48,
        queue=8,
        queue_timeout_ms=9,
        accept_proxy=True,
        send_proxy=ProxyHeader.V2,
        pool="six",
        allowed=(AddressRange(0xFFFF_0A00_0000, 0xFFFF_0AFF_FFFF), AddressRange(1 << 120, (1 << 121) - 1)),
    )
    closed = service_spec("web", mode=ServiceMode.DROP, allowed=(), **how)
    here, there, v6_here = (
        listener("web", f"127.0.0.1:{port}"),
        listener("web", f"127.0.0.1:{other}"),
        listener("rich", f"[::1]:{port}"),
    )
    return {
        "nothing": NOTHING,
        "small": forwarding_state((s1, s2), (both,), (web,), (here,)),
        "drained": forwarding_state((s1, s2._replace(flows=FlowTreatment.RESET)), (one,),
                                    (replace(web, table=tables.digest(one)),), (here,)),
        "large": forwarding_state((s1, s2, s3, v6), (both, turns), (web, rich), (here, there, v6_here)),
        "moved": forwarding_state((s3, s1._replace(weight=0)), (turns,), (rich, closed),
                                  (listener("rich", f"127.0.0.1:{port}"), there)),
        "range": forwarding_state((s1, s2), (both,), (web,), (listener("web", f"127.0.0.2:{first}-{first + 3}"),)),
        "longer": forwarding_state((s1, s2), (both,), (web,), (listener("web", f"127.0.0.2:{first + 1}-{first + 5}"),)),
    }  # fmt: skip


PAIRS = list(permutations(states(), 2))


async def bring(plane: DataPlane, state: ForwardingState) -> None:
    """Make the data plane hold ``state``."""
    await plane.apply(plan(state, await plane.observe()))


class Contract:
    """The tests; a driver's class has a fixture ``opened`` of type ``Open``."""

    forwarding = Forwarding.PROXY

    async def test_it_holds_nothing_at_first(self, opened: Open) -> None:
        async with opened() as plane:
            assert same(await plane.observe(), NOTHING)
            await plane.apply(Plan())
            assert (await plane.flows(FlowFilter(), None, 10)).flows == ()

    async def test_a_way_that_is_not_set_has_no_mark(self, opened: Open) -> None:
        passage = Passage(endpoint("192.0.2.10:80"), Protocol.TCP, Forwarding.DSR)
        async with opened() as plane:
            await plane.set_ways(frozenset())
            with pytest.raises(UnsupportedFeature) as caught:
                plane.mark_of(Way(passage.vip.address, passage))
            assert "192.0.2.10:80" in str(caught.value)
            assert plane.packets_of(Way(passage.vip.address, passage)) == 0

    async def test_any_state_can_follow_any_other(self, opened: Open) -> None:
        async with opened() as plane:
            for before, after in PAIRS:
                await bring(plane, states(self.forwarding)[before])
                await bring(plane, states(self.forwarding)[after])
                assert same(await plane.observe(), states(self.forwarding)[after]), (before, after)

    async def test_a_plan_that_is_cut_anywhere_is_planned_again_to_the_same_end(self, opened: Open) -> None:
        cuts = 0
        async with opened() as plane:
            for before, after in PAIRS:
                for cut in range(len(plan(states(self.forwarding)[after], states(self.forwarding)[before]).ops)):
                    await bring(plane, states(self.forwarding)[before])
                    todo = plan(states(self.forwarding)[after], await plane.observe())
                    await plane.apply(Plan(todo.ops[:cut]))
                    await bring(plane, states(self.forwarding)[after])
                    assert same(await plane.observe(), states(self.forwarding)[after]), (before, after, cut)
                    cuts += 1
        assert cuts > 200

    async def test_every_op_can_be_repeated(self, opened: Open) -> None:
        seen: set[type[Op]] = set()
        async with opened() as plane:
            for goal in (states(self.forwarding)["large"], NOTHING):
                for op in plan(goal, await plane.observe()).ops:
                    await plane.apply(Plan((op,)))
                    once = await plane.observe()
                    await plane.apply(Plan((op, op)))
                    assert same(await plane.observe(), once), op
                    seen.add(type(op))
        assert len(seen) == 8

    async def test_what_is_unknown_can_be_deleted(self, opened: Open) -> None:
        ops = (
            CloseListener(listener("nobody", "127.0.0.1:1")),
            DeleteService("nobody"),
            DeleteTable("00" * 16),
            DeleteServer("no/body"),
        )
        async with opened() as plane:
            await plane.apply(Plan(ops))
            assert same(await plane.observe(), NOTHING)

    @pytest.mark.parametrize(
        "op",
        [
            PutTable("00" * 16, table_spec({"10.9.9.9:1": 1}, size=251)),
            PutService(service_spec("web", "00" * 16)),
            OpenListener(listener("nobody", "127.0.0.1:1")),
        ],
        ids=lambda op: type(op).__name__,
    )
    async def test_an_op_that_names_something_unknown_is_refused_by_name(self, opened: Open, op: Op) -> None:
        async with opened() as plane:
            with pytest.raises(DataPlaneError) as raised:
                await plane.apply(Plan((op,)))
            assert raised.value.op == op
            assert same(await plane.observe(), NOTHING)

    async def test_what_is_in_use_stays(self, opened: Open) -> None:
        state = states(self.forwarding)["small"]
        in_use: tuple[Op, ...] = (
            DeleteServer("web/10.0.0.2:80"),
            DeleteTable(next(iter(state.tables))),
            DeleteService("web"),
        )
        async with opened() as plane:
            await bring(plane, state)
            for op in in_use:
                with pytest.raises(DataPlaneError) as raised:
                    await plane.apply(Plan((op,)))
                assert raised.value.op == op
            assert same(await plane.observe(), state)

    async def test_a_port_belongs_to_one_service(self, opened: Open) -> None:
        state = states(self.forwarding)["large"]
        taken = next(it for it in state.listeners if it.service == "web")
        op = OpenListener(replace(taken, service="rich"))
        async with opened() as plane:
            await bring(plane, state)
            with pytest.raises(DataPlaneError) as raised:
                await plane.apply(Plan((op,)))
            assert raised.value.op == op
            assert same(await plane.observe(), state)

    async def test_nothing_behind_a_failed_op_is_done(self, opened: Open) -> None:
        good, bad = PutServer(server_spec("web/1")), PutService(service_spec("web", "00" * 16))
        async with opened() as plane:
            with pytest.raises(DataPlaneError):
                await plane.apply(Plan((good, bad, DeleteServer("web/1"), OpenListener(listener("web")))))
            observed = await plane.observe()
            assert observed.servers.keys() == {"web/1"}
            assert not observed.listeners

    async def test_callers_may_come_at_once(self, opened: Open) -> None:
        async with opened() as plane:

            async def back_and_forth(name: str) -> None:
                one = PutServer(server_spec(f"web/{name}"))
                for _ in range(10):
                    await plane.apply(Plan((one,)))
                    assert f"web/{name}" in (await plane.observe()).servers
                    await plane.counters()
                    await plane.flows(FlowFilter(), None, 10)
                    await plane.apply(Plan((DeleteServer(f"web/{name}"),)))
                    assert f"web/{name}" not in (await plane.observe()).servers

            await asyncio.gather(*(back_and_forth(name) for name in "abcd"))
            assert same(await plane.observe(), NOTHING)

    async def test_a_foreign_cursor_is_refused(self, opened: Open) -> None:
        async with opened() as plane:
            with pytest.raises(DataPlaneError, match="cursor"):
                await plane.flows(FlowFilter(), "who knows", 10)

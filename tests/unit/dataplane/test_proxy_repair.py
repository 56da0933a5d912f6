# SPDX-License-Identifier: Apache-2.0
"""What the driver sees when workers differ from each other or from what they were told, and how that heals."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.dataplane.base import FlowFilter
from fairlead.dataplane.proxy import abi, codec, driver
from fairlead.dataplane.proxy.control import Message
from fairlead.dataplane.proxy.driver import ProxyDataPlane
from fairlead.dataplane.proxy.listeners import Port
from fairlead.errors import ContractViolation, DataPlaneError
from fairlead.model.net import Protocol
from fairlead.model.state import DeleteServer, OpenListener, Plan, PutServer, PutService, PutTable, TableSpec
from fairlead.policy import tables
from fairlead.policy.plan import plan
from support.models import endpoint, listener, server_spec, service_spec, table_spec
from support.processes import free_port
from support.proxy import bring, lab, one_service
from support.servers import descriptors


async def tell(plane: ProxyDataPlane, slot: int, kind: abi.Type, body: bytes, *fds: int) -> None:
    """Tell one worker something behind the driver's back."""
    reply = await plane._fleet.live[slot].control.request(Message(kind, body, fds))
    assert reply.done.error == 0, reply.done


def tcp(at: str) -> Port:
    """A port of a TCP listener."""
    return Port(Protocol.TCP, endpoint(at))


def number(plane: ProxyDataPlane, key: str) -> int:
    found = plane._registry.server_ids.get(key)
    assert found is not None
    return found


async def test_what_one_worker_lost_is_missed_and_put_again(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, at = one_service(server)
        await bring(plane, state)
        held = await made.client(at)
        assert await held.say() == server
        service = codec.encode_id(plane._registry.service_ids.get("web") or 0)
        listen = codec.encode_listen(plane._registry.service_ids.get("web") or 0, tcp(at))
        await tell(plane, 1, abi.Type.LISTEN_DEL, listen)
        todo = plan(state, await plane.observe())
        assert [type(op) for op in todo.ops] == [OpenListener]
        await plane.apply(todo)
        assert not plan(state, await plane.observe())
        await tell(plane, 0, abi.Type.LISTEN_DEL, listen)
        await tell(plane, 0, abi.Type.SERVICE_DEL, service)
        table = codec.encode_id(plane._registry.table_ids.get(next(iter(state.tables))) or 0)
        await tell(plane, 0, abi.Type.TABLE_DEL, table)
        todo = plan(state, await plane.observe())
        assert [type(op) for op in todo.ops] == [PutTable, PutService, OpenListener]
        await plane.apply(todo)
        assert not plan(state, await plane.observe())
        assert await held.say() == server
        for _ in range(20):
            assert await made.ask(at) == server


async def test_a_server_that_differs_in_one_worker_is_put_again(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, _ = one_service(server)
        await bring(plane, state)
        [spec] = state.servers.values()
        body = codec.encode_server(number(plane, spec.key), spec._replace(weight=200))
        await tell(plane, 1, abi.Type.SERVER_PUT, body)
        todo = plan(state, await plane.observe())
        assert todo.ops == (PutServer(spec),)
        await plane.apply(todo)
        assert not plan(state, await plane.observe())


async def test_slots_that_differ_in_one_worker_are_sent_again(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        one, two = await made.server(), await made.server()
        plane = await made.plane(2)
        state, at = one_service(one, two)
        await bring(plane, state)
        [(digest, spec)] = state.tables.items()
        assert spec is not None
        wrong = tables.build(spec)
        wrong[0] = 1 - wrong[0]
        ids = [number(plane, member.key) for member in spec.members]
        table = plane._registry.table_ids.get(digest) or 0
        await tell(plane, 1, abi.Type.TABLE_PUT, codec.encode_table(table, digest, spec, wrong, ids))
        todo = plan(state, await plane.observe())
        assert todo.ops == (PutTable(digest, spec),)
        await plane.apply(todo)
        assert not plan(state, await plane.observe())
        assert await made.ask(at) in {one, two}


async def test_slots_that_changed_in_all_workers_are_seen_too(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        one, two = await made.server(), await made.server()
        plane = await made.plane(1)
        state, _ = one_service(one, two)
        await bring(plane, state)
        [(digest, spec)] = state.tables.items()
        assert spec is not None
        wrong = tables.build(spec)
        wrong[0] = 1 - wrong[0]
        ids = [number(plane, member.key) for member in spec.members]
        table = plane._registry.table_ids.get(digest) or 0
        await tell(plane, 0, abi.Type.TABLE_PUT, codec.encode_table(table, digest, spec, wrong, ids))
        assert plan(state, await plane.observe()).ops == (PutTable(digest, spec),)


async def test_a_table_that_is_put_again_is_trusted_anew(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        one, two = await made.server(), await made.server()
        plane = await made.plane(1)
        state, _ = one_service(one, two)
        await plane.apply(plan(state, await plane.observe()))
        [(digest, spec)] = state.tables.items()
        assert spec is not None
        wrong = tables.build(spec)
        wrong[0] = 1 - wrong[0]
        ids = [number(plane, member.key) for member in spec.members]
        table = plane._registry.table_ids.get(digest) or 0
        await tell(plane, 0, abi.Type.TABLE_PUT, codec.encode_table(table, digest, spec, wrong, ids))
        await plane.observe()
        await plane.apply(Plan((PutTable(digest, spec),)))
        assert not plan(state, await plane.observe())


async def test_what_one_worker_holds_alone_goes_when_nobody_asks_for_it(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, _ = one_service(server)
        await bring(plane, state)
        before = await plane._dumps(plane._fleet.live.values())
        await tell(plane, 1, abi.Type.SERVER_PUT, codec.encode_server(900, server_spec("odd/one")))
        odd = table_spec({"x": 1}, size=3)
        table = codec.encode_table(900, tables.digest(odd), odd, tables.build(odd), [900])
        await tell(plane, 1, abi.Type.TABLE_PUT, table)
        await tell(plane, 1, abi.Type.SERVICE_PUT, codec.encode_service(900, 900, service_spec("odd", "x")))
        sock = plane._sockets
        at = f"127.0.0.1:{free_port()}"
        sock.ensure(tcp(at), (1,))
        await tell(plane, 1, abi.Type.LISTEN_PUT, codec.encode_listen(900, tcp(at)), sock.fileno(tcp(at), 1))
        sock.release(tcp(at))
        for _ in range(driver.STRAY_AGE + 1):
            assert not plan(state, await plane.observe())
        assert await plane._dumps(plane._fleet.live.values()) == before
        with pytest.raises(ConnectionRefusedError):
            await made.ask(at)


async def test_what_a_failing_plan_keeps_asking_for_is_not_removed(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        plane = await made.plane(2)
        wanted = PutServer(server_spec("odd/one"))
        impossible = PutTable("00" * 16, table_spec({"nowhere": 1}, size=3))
        await plane.apply(Plan((wanted,)))
        delete = codec.encode_id(number(plane, "odd/one"))
        await tell(plane, 0, abi.Type.SERVER_DEL, delete)
        for _ in range(driver.STRAY_AGE + 3):
            assert not (await plane.observe()).servers
            with pytest.raises(DataPlaneError):
                await plane.apply(Plan((impossible, wanted)))
        dumps = await plane._dumps(plane._fleet.live.values())
        assert [len(dump) for dump in dumps.values()] == [0, 1]
        await plane.apply(Plan((wanted,)))
        assert (await plane.observe()).servers.keys() == {"odd/one"}


async def test_a_table_that_cannot_be_filled_is_a_refusal_of_its_op(runtime: Path, program: Path) -> None:
    def broken(spec: TableSpec) -> None:
        raise ContractViolation("no member lives")

    async with lab(runtime, program) as made:
        plane = await made.plane(1)
        plane._build_table = broken  # type: ignore[assignment]
        put = PutTable("00" * 16, table_spec({"x": 1}, size=3))
        with pytest.raises(DataPlaneError, match="no member lives") as raised:
            await plane.apply(Plan((put,)))
        assert raised.value.op == put


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "n" * 64}, "at most 63"),
    ],
)
async def test_what_the_worker_cannot_do_is_said(
    runtime: Path, program: Path, change: dict[str, object], words: str
) -> None:
    async with lab(runtime, program) as made:
        plane = await made.plane(1)
        put = PutService(replace(service_spec("web"), **change))  # type: ignore[arg-type]
        with pytest.raises(DataPlaneError, match=words) as raised:
            await plane.apply(Plan((put,)))
        assert raised.value.op == put
        assert not (await plane.observe()).services


async def test_what_could_not_be_encoded_leaves_no_trace(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        plane = await made.plane(1)
        for op in (PutServer(server_spec("k" * 192)), PutService(service_spec("n" * 64))):
            with pytest.raises(DataPlaneError, match="at most"):
                await plane.apply(Plan((op,)))
        counters = await plane.counters()
        assert not counters.servers
        assert not counters.services


async def test_a_table_that_goes_while_a_plan_is_prepared_is_a_refusal(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        plane = await made.plane(1)
        state, _ = one_service("127.0.0.1:1")
        await bring(plane, replace(state, services={}, listeners=frozenset()))
        [(digest, spec)] = state.tables.items()
        assert spec is not None
        put = PutTable(digest, spec)
        async with plane._lock:  # the other one is past filling its tables, which was not needed
            other = asyncio.create_task(plane.apply(Plan((put,))))
            await asyncio.sleep(0.05)
            plane._registry.forget_table(digest)
        with pytest.raises(DataPlaneError, match="plan again") as raised:
            await other
        assert raised.value.op == put


async def test_200_changes_leave_no_descriptor_behind(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        states = [one_service(server)[0], one_service(server)[0]]
        await bring(plane, states[0])

        def workers() -> list[int]:
            return [len(os.listdir(f"/proc/{it.pid}/fd")) for it in plane._fleet.live.values()]  # noqa: PTH208

        ours, theirs = len(descriptors()), workers()
        for cycle in range(1, 201):
            await bring(plane, states[cycle % 2])
        assert len(descriptors()) == ours
        assert workers() == theirs
        assert not plane._sockets._by_port.keys() - {tcp(str(it.listen)) for it in states[0].listeners}


async def test_flows_come_in_pages_over_all_workers(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        one, two = await made.server(), await made.server()
        plane = await made.plane(2)
        state, at = one_service(one, two)
        await bring(plane, state)
        answers = [await made.ask(at) for _ in range(25)]
        seen: list[str] = []
        cursor, pages = None, 0
        while True:
            page = await plane.flows(FlowFilter(), cursor, 4)
            assert len(page.flows) <= 4
            seen += (flow.client for flow in page.flows)
            pages += 1
            if (cursor := page.cursor) is None:
                break
        assert pages >= 7
        assert len(seen) == len(set(seen)) == 25
        everything = (await plane.flows(FlowFilter(), None, 100)).flows
        assert {flow.worker for flow in everything} == {0, 1}
        assert {flow.vip for flow in everything} == {at}
        assert {flow.state for flow in everything} == {"established"}
        mine = (await plane.flows(FlowFilter(server=f"web/{one}"), None, 100)).flows
        assert len(mine) == answers.count(one)
        assert not (await plane.flows(FlowFilter(service="other"), None, 100)).flows


async def test_flows_of_a_deleted_service_keep_its_name(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(1)
        state, at = one_service(server)
        await bring(plane, state)
        assert await made.ask(at) == server
        await bring(plane, replace(state, services={}, tables={}, listeners=frozenset()))
        [flow] = (await plane.flows(FlowFilter(), None, 10)).flows
        assert (flow.service, flow.server) == ("web", f"web/{server}")
        await plane.apply(Plan((DeleteServer(f"web/{server}"),)))
        assert not (await plane.flows(FlowFilter(), None, 10)).flows


async def test_a_listener_that_workers_refuse_takes_no_clients(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, at = one_service(server)
        await bring(plane, replace(state, listeners=frozenset()))
        service = plane._registry.service_ids.get("web") or 0
        await tell(plane, 1, abi.Type.SERVICE_DEL, codec.encode_id(service))
        wanted = OpenListener(listener("web", at))
        with pytest.raises(DataPlaneError, match="no such service") as raised:
            await plane.apply(Plan((wanted,)))
        assert raised.value.op == wanted
        for _ in range(20):  # all of them at the worker that took it: the other socket is closed
            assert await made.ask(at) == server
        await bring(plane, state)
        for _ in range(20):
            assert await made.ask(at) == server

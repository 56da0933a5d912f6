# SPDX-License-Identifier: Apache-2.0
"""The control socket: every message is carried out or refused with a reason, and none does harm."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.peers import Server
from support.wait import until
from support.worker import SOURCES, Control, Refused, Worker
from support.worker_abi import Kind, Layouts, Memory, Mode, Scheduler, State, address, endpoint

TEXT = re.sub(r"/\*.*?\*/", "", (SOURCES / "abi.h").read_text(), flags=re.DOTALL)


def declared() -> Iterator[tuple[str, list[str]]]:
    """Structs of the header and their members, by a reading of its text."""
    for name, body in re.findall(r"struct (fl_\w+) \{(.*?)\n\};", TEXT, re.DOTALL):
        lists = [re.sub(r"^(struct \w+|\w+)\s+", "", line.strip()) for line in body.split(";") if line.strip()]
        yield name, [re.sub(r"\[.*", "", member).strip() for members in lists for member in members.split(",")]


def test_the_description_names_every_struct_and_member(layouts: Layouts) -> None:
    structs = {name: list(members) for name, members in declared()}
    assert {name: list(layouts.members(name)) for name in layouts.names()} == structs
    for name in structs:
        members = layouts.members(name).values()
        ends = [at + size for at, size in members]
        assert [at for at, _ in members] == [0, *ends[:-1]], f"{name} has padding without a name"
        assert ends[-1] == layouts.size(name.removeprefix("fl_"))


@pytest.mark.parametrize(
    ("enum", "ours"), [("type", Kind), ("scheduler", Scheduler), ("mode", Mode), ("flow_state", State)]
)
def test_numbers_of_the_header(enum: str, ours: type[Kind]) -> None:
    [body] = re.findall(rf"enum fl_{enum} \{{(.*?)\}}", TEXT, re.DOTALL)
    number, found = -1, {}
    for item in filter(None, (part.strip() for part in body.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        number = int(value) if value else number + 1
        found[name.removeprefix("FL_")] = number
    assert found == {member.name: member.value for member in ours}


def test_hello(worker: Worker) -> None:
    hello = worker.hello()
    assert hello["abi"] == worker.layouts.constants["FL_ABI_VERSION"]
    assert (hello["pid"], hello["slot"], hello["attached"]) == (worker.process.pid, 0, 1)
    assert (hello["draining"], hello["flows"]) == (0, 0)
    assert worker.memory.row()["pid"] == worker.process.pid


def test_what_was_put_is_dumped(worker: Worker, server: Server) -> None:
    worker.server(7, server.where, weight=3, max_connections=9)
    worker.server(9, ("2001:db8::1", 80))
    worker.table(5, [7, 9], [0, 1, 1])
    ranges = [("10.0.0.0", "10.255.255.255"), ("2001:db8::", "2001:db8::ffff")]
    worker.service(3, 5, ranges=ranges, flags=1, scheduler=Scheduler.WRR, persist_ms=5)
    where = worker.listen(3)
    held = worker.dump()
    assert held.servers[7]["weight"] == 3
    assert held.servers[7]["key"].rstrip(b"\0") == b"pool/7"
    assert held.servers[9]["address"] == address("2001:db8::1", 80)
    content = 0xCBF29CE484222325
    for byte in struct.pack("=3H", 0, 1, 1):
        content = (content ^ byte) * 0x100000001B3 & (1 << 64) - 1
    assert held.tables[5]["content"] == content
    assert (held.tables[5]["digest"], held.tables[5]["tail"]) == (b"\5" * 16, b"")
    assert held.services[3]["tail"] == b"".join(address(low, 0)[:16] + address(high, 0)[:16] for low, high in ranges)
    assert held.listeners == [(3, *where)]


def test_a_long_dump_waits_for_a_slow_agent_and_flows_go_on(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    for number in range(2, 3000):
        worker.server(number, server.where)
    worker.control.send(struct.pack("=HHI", Kind.DUMP, 0, 77))
    client, real = worker.pair(where, server)  # served while the dump waits
    client.sendall(b"x")
    assert real.recv(1) == b"x"
    kinds = []
    while True:
        record, _ = worker.control.receive()
        kinds.append(int.from_bytes(record[:2], "little"))
        if kinds[-1] == Kind.DONE:
            break
    assert kinds.count(Kind.SERVER_PUT) == 2999
    assert kinds[2999:] == [Kind.TABLE_PUT, Kind.SERVICE_PUT, Kind.LISTEN_PUT, Kind.DONE]
    assert worker.hello()["flows"] == 1


def test_an_agent_that_dies_in_the_middle_of_an_answer(worker: Worker, server: Server) -> None:
    for number in range(1, 3000):
        worker.server(number, server.where)
    worker.control.send(struct.pack("=HHI", Kind.DUMP, 0, 77))
    worker.control.receive()
    worker.control.socket.close()
    worker.control = worker.connect()
    assert len(worker.dump().servers) == 2999


def test_flows_come_in_pages(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    clients = {worker.dial(where).getsockname() for _ in range(25)}
    until(lambda: worker.hello()["flows"] == 25, 5, "all flows are there")
    seen, cursor, pages = [], 0, 0
    while pages == 0 or cursor:
        page = worker.flows(limit=10, cursor=cursor)
        seen += [flow.client for flow in page]
        cursor, pages = worker.control.cursor, pages + 1
    assert pages == 3
    assert len(seen) == 25
    assert set(seen) == clients


def test_a_long_list_of_flows_waits_for_a_slow_agent(worker: Worker) -> None:
    with Server(backlog=800) as server:
        where = worker.simple([server])
        clients = {worker.dial(where).getsockname() for _ in range(700)}
        until(lambda: worker.hello()["flows"] == 700, 5, "all flows are there")
        worker.control.post(Kind.FLOWS, "flows")
        last = worker.dial(where)
        last.sendall(b"x")
        last.close()
        until(lambda: worker.memory.service()["bytes_in"] == 1, 5, "flows go on while the answer waits")
        records = worker.control.collect()
        place, size = worker.layouts.place("flow", "client")
        assert [endpoint(record[place : place + size]) in clients for record, _ in records].count(True) == 700
        assert len({record[place : place + size] for record, _ in records}) == len(records)


def test_flows_are_filtered(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    worker.server(2, server.where)
    worker.table(2, [2])
    worker.service(2, 2)
    other = worker.listen(2)
    for at in (where, where, other):
        worker.pair(at, server)
    assert len(worker.flows(service=1)) == 2
    assert len(worker.flows(service=2)) == len(worker.flows(server=2)) == 1
    assert worker.flows(service=1, server=2) == []


def test_puts_are_idempotent(worker: Worker, server: Server) -> None:
    worker.simple([server])
    before = worker.dump()
    worker.server(1, server.where)
    worker.table(1, [1])
    worker.service()
    assert worker.dump() == before


def test_what_is_in_use_cannot_be_deleted(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    for delete in (worker.delete_server, worker.delete_table, worker.delete_service):
        assert refused(delete, 1) == errno.EBUSY
    worker.listen_delete(1, where)
    worker.delete_service(1)
    worker.delete_table(1)
    worker.delete_server(1)
    for delete in (worker.delete_server, worker.delete_table, worker.delete_service):
        assert refused(delete, 1) == errno.ENOENT
    held = worker.dump()
    assert (held.servers, held.tables, held.services, held.listeners) == ({}, {}, {}, [])


def test_a_changed_table_frees_what_the_old_one_named(worker: Worker, server: Server) -> None:
    worker.server(1, server.where)
    worker.server(2, server.where)
    worker.table(1, [1])
    worker.service()
    worker.table(1, [2])
    worker.delete_server(1)
    assert refused(worker.delete_server, 2) == errno.EBUSY


def test_flows_of_a_deleted_service_live_on(worker: Worker, server: Server) -> None:
    where = worker.simple([server], idle_ms=60_000)
    client, real = worker.pair(where, server)
    worker.listen_delete(1, where)
    worker.delete_service(1)
    client.sendall(b"x")
    assert real.recv(1) == b"x"
    assert worker.flows()[0].service == 1
    client.close()
    real.close()
    until(lambda: worker.hello()["flows"] == 0, 5, "the flow has ended")


def refused(action: Callable[..., object], *arguments: Any, **values: Any) -> int:
    with pytest.raises(Refused) as caught:
        action(*arguments, **values)
    assert str(caught.value)
    return caught.value.error


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"id": 0}, errno.EINVAL),
        ({"id": 16384}, errno.EINVAL),
        ({"protocol": 17}, errno.EBUSY),  # it has a TCP listener
        ({"protocol": 1}, errno.EPROTONOSUPPORT),
        ({"scheduler": 7}, errno.EINVAL),
        ({"mode": 3}, errno.EINVAL),
        ({"mode": Mode.REJECT}, errno.EINVAL),
        ({"table": 0, "mode": Mode.FORWARD}, errno.EINVAL),
        ({"table": 2}, errno.ENOENT),
        ({"table": 99999}, errno.ENOENT),
        ({"forwarding": 1}, errno.EINVAL),
        ({"persist_v4": 33}, errno.EINVAL),
        ({"persist_v6": 129}, errno.EINVAL),
        ({"name": b"x" * 64}, errno.EINVAL),
        ({"ranges": [("10.0.0.2", "10.0.0.1")]}, errno.EINVAL),
        ({"ranges": [("10.0.0.2", "10.0.0.3"), ("10.0.0.3", "10.0.0.4")]}, errno.EINVAL),
    ],
)
def test_a_wrong_service_is_refused_and_changes_nothing(
    worker: Worker, server: Server, values: dict[str, Any], error: int
) -> None:
    worker.simple([server])
    before = worker.dump()
    assert refused(worker.service, **values) == error
    assert worker.dump() == before


def test_wrong_servers_and_tables_are_refused(worker: Worker, server: Server) -> None:
    worker.server(1, server.where)
    for number in (0, 131072, 1 << 31):
        assert refused(worker.server, number, server.where) == errno.EINVAL
    ask = worker.control.ask
    for bad in (b"", address("127.0.0.1", 1)[:18] + b"\x06\0", address("::1", 1)[:18] + b"\x04\0"):
        assert refused(ask, Kind.SERVER_PUT, "server", id=2, address=bad) == errno.EINVAL
    good = address("127.0.0.1", 1)
    assert refused(ask, Kind.SERVER_PUT, "server", id=2, address=good, key=b"x" * 192) == errno.EINVAL
    for number, members, slots in ((0, [1], [0]), (16384, [1], [0]), (1, [], []), (1, [1], [1])):
        assert refused(worker.table, number, members, slots) == errno.EINVAL
    assert refused(worker.table, 1, [1, 2]) == errno.ENOENT
    for size, count in ((5, 1), (1, 5), (1 << 31, 1), (0xFFFFFFFF, 0xFFFFFFFF), (1, 1 << 30)):
        assert refused(ask, Kind.TABLE_PUT, "table", bytes(6), id=1, size=size, members=count) == errno.EINVAL


def test_wrong_listeners_are_refused(worker: Worker, server: Server, tmp_path: Path) -> None:
    worker.simple([server])

    def put(*descriptors: int, service: int = 1) -> object:
        return worker.control.ask(
            Kind.LISTEN_PUT, "listen", service=service, address=address("127.0.0.1", 1), descriptors=descriptors
        )

    count = worker.descriptors()
    assert refused(put) == errno.EBADF
    with (
        (tmp_path / "file").open("w") as file,
        socket.socket() as not_listening,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(tmp_path / "socket"))
        local.listen()
        for s in (file, not_listening, datagram, local):
            assert refused(put, s.fileno()) == errno.ENOTSOCK
        assert refused(put, listening.fileno(), service=9) == errno.ENOENT
        many = [listening.fileno()] * 10
        assert refused(put, *many) == errno.EMFILE
    assert refused(worker.listen_delete, 1, ("127.0.0.1", 1)) == errno.ENOENT
    assert refused(worker.listen_delete, 9, ("127.0.0.1", 1)) == errno.ENOENT
    assert worker.descriptors() == count, "descriptors leak"


def test_wrong_memory_is_refused(worker: Worker, layouts: Layouts) -> None:
    other = Memory(layouts)
    try:
        assert refused(attach, worker.control, 0, other.fd) == errno.EBUSY
        attach(worker.control, 0, worker.memory.fd)  # the same again is no error
        assert refused(attach, worker.control, 1, worker.memory.fd) == errno.EBUSY
        assert refused(worker.control.ask, Kind.ATTACH, "attach") == errno.EBADF
    finally:
        other.close()


def test_foreign_memory_is_refused(program: Path, runtime: Path, layouts: Layouts) -> None:
    memory = Memory(layouts)
    position, _ = layouts.place("shm", "abi")
    memory.map[position] = 99
    with pytest.raises(Refused, match="not a shared memory of this ABI"):
        Worker(program, runtime, memory=memory)
    memory.close()


def attach(control: Control, slot: int, fd: int) -> None:
    control.ask(Kind.ATTACH, "attach", slot=slot, descriptors=[fd])


@pytest.mark.parametrize("kind", [0, 6, 15, 24, 34, 64, 65, 65535])
def test_unknown_messages_are_refused(worker: Worker, kind: int) -> None:
    assert refused(worker.control.ask, kind) == errno.ENOSYS


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.FLOW, Kind.DONE)])
def test_messages_of_a_wrong_length_are_refused(worker: Worker, kind: Kind) -> None:
    for length in (8, 9, 11, 16, 20, 4096, 200_000):
        if kind == Kind.QUIT and length == 8:
            continue
        records, done = worker.control.raw(struct.pack("=HHI", kind, 0, 5).ljust(length, b"\0"))
        right = kind in (Kind.HELLO, Kind.HANDOVER, Kind.DUMP) and length == 8
        right = right or (kind == Kind.DRAIN and length == 16)
        assert (done["error"] == 0) == right, (length, records, done)
        if kind == Kind.DRAIN and length == 16:
            return


def test_messages_without_a_header_or_beyond_all_bounds_are_refused(worker: Worker) -> None:
    assert worker.control.raw(b"\1")[1]["error"] == errno.EINVAL
    assert worker.control.raw(b"\1\0\0\0\0\0\0")[1]["error"] == errno.EINVAL
    assert worker.control.raw(struct.pack("=HHI", Kind.HELLO, 0, 1) + bytes(300_000))[1]["error"] == errno.EMSGSIZE
    assert worker.hello()["flows"] == 0


@pytest.fixture(scope="module")
def lasting(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(program, tmp_path_factory.mktemp("w")) as worker:
        yield worker


KINDS = st.sampled_from([kind for kind in Kind if kind not in (Kind.QUIT, Kind.DRAIN)]) | st.integers(0, 65535).filter(
    lambda kind: kind not in (Kind.QUIT, Kind.DRAIN)
)
NAMES = {
    Kind.SERVER_PUT: "server",
    Kind.SERVER_DEL: "id",
    Kind.TABLE_PUT: "table",
    Kind.TABLE_DEL: "id",
    Kind.SERVICE_PUT: "service",
    Kind.SERVICE_DEL: "id",
    Kind.LISTEN_PUT: "listen",
    Kind.LISTEN_DEL: "listen",
    Kind.FLOWS: "flows",
    Kind.ATTACH: "attach",
}
SMALL = st.integers(0, 4) | st.integers(0, 0xFFFFFFFF)


@st.composite
def messages(draw: st.DrawFn, layouts: Layouts) -> bytes:
    """Any bytes, or a message of the right size whose numbers are mostly small, with any tail."""
    kind = draw(KINDS)
    header = struct.pack("=HHI", kind, 0, draw(st.integers(0, 0xFFFFFFFF)))
    if kind not in NAMES or draw(st.booleans()):
        return header[: draw(st.sampled_from([8, 8, 8, 4]))] + draw(st.binary(max_size=400))
    name = NAMES[Kind(kind)]
    values: dict[str, int | bytes] = {}
    for member, (_, size) in layouts.members(f"fl_{name}").items():
        if member == "address":
            values[member] = draw(st.just(address("127.0.0.1", 9)) | st.binary(min_size=20, max_size=20))
        elif member != "header" and size <= 4:
            values[member] = draw(SMALL) % (1 << 8 * size)
    return header + layouts.pack(name, **values)[8:] + draw(st.just(b"") | st.binary(max_size=64))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), descriptor=st.booleans())
def test_no_message_does_harm(lasting: Worker, data: st.DataObject, descriptor: bool) -> None:
    message = data.draw(messages(lasting.layouts))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        _, done = lasting.control.raw(message, [listening.fileno()] if descriptor else [])
    assert done["error"] >= 0
    assert bool(done["error"]) == bool(done["message"])
    assert lasting.process.poll() is None

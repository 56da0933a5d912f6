# SPDX-License-Identifier: Apache-2.0
"""Who may come in: address lists, limits of a service, limits of a source, persistence, modes."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from fairlead.model.reasons import RejectReason
from support.peers import Server, reset
from support.wait import until
from support.worker import Worker
from support.worker_abi import Mode, Scheduler


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server()) for _ in range(4)]


def test_only_listed_addresses_may_connect(worker: Worker, server: Server) -> None:
    ranges = [("127.0.0.1", "127.0.0.3"), ("127.0.0.9", "127.0.0.9"), ("127.0.1.0", "127.0.1.255")]
    where = worker.simple([server], flags=1, ranges=ranges)
    for host in ("127.0.0.1", "127.0.0.3", "127.0.0.9", "127.0.1.0", "127.0.1.255"):
        worker.dial(where, source=host)
        server.accept()
    for host in ("127.0.0.4", "127.0.0.8", "127.0.0.10", "127.0.2.0", "127.1.0.1"):
        assert worker.refuses(where, source=host)
    assert worker.rejected(RejectReason.DENIED) == 5
    worker.service(flags=1)
    assert worker.refuses(where)
    worker.service(flags=0)
    worker.pair(where, server)


def test_a_service_is_full_at_its_limit_over_all_workers(start: Callable[..., Worker], server: Server) -> None:
    first = start(slot=0)
    second = start(slot=1, memory=first.memory)
    wheres = [worker.simple([server], max_connections=3) for worker in (first, second)]
    kept = [first.pair(wheres[0], server), second.pair(wheres[1], server), first.pair(wheres[0], server)]
    assert first.refuses(wheres[0])
    assert second.refuses(wheres[1])
    assert [worker.rejected(RejectReason.SERVICE_FULL) for worker in (first, second)] == [1, 1]
    for s in kept[0]:
        reset(s)
    until(lambda: first.memory.item("service", "shared_service", 1)["active"] == 2, 5, "a place is free again")
    second.pair(wheres[1], server)


def test_a_server_is_full_at_its_limit_over_all_workers(start: Callable[..., Worker], server: Server) -> None:
    first = start(slot=0)
    second = start(slot=1, memory=first.memory)
    wheres = [worker.simple([server]) for worker in (first, second)]
    for worker in (first, second):
        worker.server(1, server.where, max_connections=2)
    first.pair(wheres[0], server)
    second.pair(wheres[1], server)
    assert first.refuses(wheres[0])
    assert second.refuses(wheres[1])
    assert first.memory.item("server", "shared_server", 1)["active"] == 2


def test_connections_of_a_source_are_limited_over_all_workers(start: Callable[..., Worker], server: Server) -> None:
    first = start(slot=0)
    second = start(slot=1, memory=first.memory)
    wheres = [worker.simple([server], connections_per_source=2) for worker in (first, second)]
    client, real = first.pair(wheres[0], server)
    second.pair(wheres[1], server)
    assert first.refuses(wheres[0])
    assert second.refuses(wheres[1])
    first.dial(wheres[0], source="127.0.0.2")  # another source has its own count
    server.accept()
    assert second.rejected(RejectReason.SOURCE_CONNECTIONS) == 1
    reset(client)
    real.close()
    until(lambda: first.active() == 1, 5, "the flow has ended")
    second.pair(wheres[1], server)


def test_new_connections_of_a_source_are_limited_per_second(worker: Worker, server: Server) -> None:
    where = worker.simple([server], new_per_source=5)

    def counts() -> tuple[int, int]:
        return worker.memory.service()["connections"], worker.rejected(RejectReason.SOURCE_RATE)

    def attempt(source: str = "127.0.0.1") -> None:
        before = counts()
        with contextlib.suppress(ConnectionResetError):
            worker.dial(where, source=source)
        until(lambda: counts() != before, 5, "admitted or refused")

    begin = time.monotonic()
    for _ in range(12):
        attempt()
    admitted, refused = counts()
    assert admitted + refused == 12
    assert 5 <= admitted <= 5 + 5 * (time.monotonic() - begin) + 1
    attempt("127.0.0.2")
    assert counts() == (admitted + 1, refused)  # another source has its own bucket

    def comes_in() -> bool:
        attempt()
        return counts()[0] > admitted + 1

    until(comes_in, 10, "tokens come back")


def test_a_full_source_table_fails_open_and_is_counted(worker: Worker, server: Server) -> None:
    where = worker.simple([server], connections_per_source=1)
    memory, size = worker.memory, worker.layouts.size("source")
    start_at = memory.at("source", "source", 0)
    row = worker.layouts.pack("source", service=9, held=b"\x01\0\0\0")
    memory.map[start_at : start_at + 65536 * size] = row * 65536
    worker.pair(where, server)
    worker.pair(where, server)
    assert worker.rejected(RejectReason.SOURCE_TABLE_FULL) == 2


def test_the_lock_of_a_dead_worker_is_taken_over(worker: Worker, server: Server) -> None:
    where = worker.simple([server], connections_per_source=1, persist_ms=60_000)
    memory = worker.memory
    for array in ("source", "sticky"):
        for index in range(0, 65536, 16):
            memory.put(memory.at(array, array, index), array, lock=31)
    worker.pair(where, server)
    assert worker.refuses(where)


def test_a_client_sticks_to_its_server(worker: Worker, servers: list[Server]) -> None:
    where = worker.simple(servers, scheduler=Scheduler.RR, persist_ms=60_000, persist_v4=32)
    first = [served_by(worker, where, f"127.0.3.{n}") for n in range(1, 8)]
    assert sorted(first) == [1, 1, 2, 2, 3, 3, 4]
    for _ in range(2):  # the turn of the next one is server 4
        assert [served_by(worker, where, f"127.0.3.{n}") for n in range(1, 8)] == first


def test_clients_of_one_prefix_stick_together(worker: Worker, servers: list[Server]) -> None:
    where = worker.simple(servers, scheduler=Scheduler.RR, persist_ms=60_000, persist_v4=20)
    assert len({served_by(worker, where, f"127.0.{16 + n}.{n}") for n in range(1, 9)}) == 1
    assert served_by(worker, where, "127.0.32.1") != served_by(worker, where, "127.0.16.1")


def test_persistence_ends_after_its_time(worker: Worker, servers: list[Server]) -> None:
    where = worker.simple(servers, scheduler=Scheduler.RR, persist_ms=300)
    assert served_by(worker, where) == served_by(worker, where) == 1
    begin = time.monotonic()
    until(lambda: served_by(worker, where, keep=0.4) != 1, 5, "the client is free again")
    assert time.monotonic() - begin >= 0.3


def test_the_time_of_persistence_starts_again_when_a_flow_ends(worker: Worker, servers: list[Server]) -> None:
    where = worker.simple(servers, scheduler=Scheduler.RR, persist_ms=400)
    client, real = worker.pair(where, servers[0])
    until(lambda: worker.flows()[0].age_ms > 450, 5, "the flow outlives the time")
    client.close()
    real.close()
    worker.settled()
    assert served_by(worker, where) == 1


def test_persistence_is_shared_by_all_workers(start: Callable[..., Worker], servers: list[Server]) -> None:
    first = start(slot=0)
    second = start(slot=1, memory=first.memory)
    wheres = [worker.simple(servers, scheduler=Scheduler.RR, persist_ms=60_000) for worker in (first, second)]
    assert served_by(first, wheres[0]) == served_by(second, wheres[1]) == served_by(first, wheres[0])


def test_persistence_gives_way_to_a_dead_full_or_removed_server(worker: Worker, servers: list[Server]) -> None:
    where = worker.simple(servers, scheduler=Scheduler.RR, persist_ms=60_000)
    assert served_by(worker, where) == 1
    servers[0].close()
    moved = served_by(worker, where)
    assert moved == 2
    assert served_by(worker, where) == moved
    worker.table(1, [1, 2, 3, 4], [2, 3])
    assert served_by(worker, where) in (3, 4)


def served_by(worker: Worker, where: tuple[str, int], source: str = "127.0.0.1", *, keep: float = 0.0) -> int:
    """The server that a connection from there is given to; waits ``keep`` seconds before."""
    if keep:
        with socket.socket() as nobody:
            nobody.settimeout(keep)
            nobody.bind(("127.0.0.1", 0))
            nobody.listen()
            with contextlib.suppress(TimeoutError):
                nobody.accept()
    client = worker.dial(where, source=source)
    name = client.getsockname()[:2]

    def number() -> int:
        return next((flow.server for flow in worker.flows() if flow.client == name and flow.state), 0)

    found = until(number, 5, "the flow is established")
    reset(client)
    until(lambda: not number(), 5, "the flow has ended")
    return found


def test_reject_resets_new_flows_and_keeps_the_others(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    client, real = worker.pair(where, server)
    worker.service(table=0, mode=Mode.REJECT)
    assert worker.refuses(where)
    assert worker.rejected(RejectReason.NO_SERVER) == 1
    client.sendall(b"still here")
    assert real.recv(100) == b"still here"
    worker.service()
    worker.pair(where, server)


def test_drop_lets_new_flows_vanish_and_keeps_the_others(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    client, real = worker.pair(where, server)
    worker.service(table=0, mode=Mode.DROP)
    with socket.socket() as vanished:
        vanished.settimeout(0.3)
        with pytest.raises(TimeoutError):
            vanished.connect(where)
        client.sendall(b"still here")
        assert real.recv(100) == b"still here"
    late = worker.listen()
    with socket.socket() as vanished:
        vanished.settimeout(0.3)
        with pytest.raises(TimeoutError):  # a listener that comes later drops too
            vanished.connect(late)
    worker.service()
    worker.pair(where, server)
    worker.pair(late, server)


def test_a_server_marked_reset_loses_its_flows_now_and_later(worker: Worker, servers: list[Server]) -> None:
    where = worker.simple(servers[:2], scheduler=Scheduler.RR)
    pairs = [worker.pair(where, servers[n % 2]) for n in range(4)]
    worker.server(1, servers[0].where, reset=True)
    for n, (client, real) in enumerate(pairs):
        if n % 2 == 0:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            with pytest.raises(ConnectionResetError):
                real.recv(1)
        else:
            client.sendall(b"unharmed")
            assert real.recv(100) == b"unharmed"
    assert worker.rejected(RejectReason.SERVER_RESET) == 2
    for _ in range(3):
        worker.pair(where, servers[1])  # the table still names server 1, but nothing new reaches it
    assert not servers[0].waiting()
    worker.server(1, servers[0].where)
    worker.pair(where, servers[0])


def test_a_flow_that_still_connects_to_a_server_marked_reset_goes_elsewhere(worker: Worker, server: Server) -> None:
    """That costs it none of its retries."""
    with Server(backlog=0) as full, Server() as refusing, socket.socket() as filler:
        filler.connect(full.where)
        worker.server(1, full.where)
        worker.server(2, refusing.where)
        worker.server(3, server.where)
        refusing.close()
        worker.table(1, [1, 2, 3])
        worker.service(scheduler=Scheduler.RR, retries=1)
        client = worker.dial(worker.listen())
        client.sendall(b"x")
        until(worker.flows, 5, "the flow connects")
        worker.server(1, full.where, reset=True)
        assert server.accept().recv(1) == b"x"
        assert worker.memory.server(2)["connect_failures"] == 1
        assert worker.rejected(RejectReason.SERVER_RESET) == 0


def test_a_deleted_server_loses_its_flows(worker: Worker, servers: list[Server]) -> None:
    where = worker.simple(servers[:2], scheduler=Scheduler.RR)
    client, real = worker.pair(where, servers[0])
    other, other_real = worker.pair(where, servers[1])
    worker.table(2, [2])
    worker.service(table=2)
    worker.delete_table(1)
    worker.delete_server(1)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        real.recv(1)
    other.sendall(b"unharmed")
    assert other_real.recv(100) == b"unharmed"
    assert list(worker.dump().servers) == [2]

# SPDX-License-Identifier: Apache-2.0
"""Finding a server that answers: retries, time limits, giving up."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from fairlead.model.reasons import RejectReason
from support.peers import Server, reset, was_reset
from support.processes import free_port
from support.wait import until
from support.worker import Worker
from support.worker_abi import Mode, Scheduler, State


@pytest.fixture
def black_hole() -> Iterator[tuple[str, int]]:
    """An address that answers no SYN: a listener whose queue is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(Server(backlog=0))
        for _ in range(3):
            s = stack.enter_context(socket.socket())
            s.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                s.connect(full.where)
        yield full.where


def refusing() -> tuple[str, int]:
    return "127.0.0.1", free_port()


def test_a_refused_connect_is_tried_on_another_server(worker: Worker, server: Server) -> None:
    worker.server(1, refusing())
    worker.server(2, server.where)
    worker.table(1, [1, 2])
    worker.service(scheduler=Scheduler.RR)
    where = worker.listen()
    for _ in range(4):
        client, real = worker.pair(where, server)
        client.sendall(b"x")
        assert real.recv(1) == b"x"
    dead = worker.memory.server(1)
    assert dead["connect_failures"] == dead["consecutive_failures"] >= 2
    assert (dead["connections"], dead["active"]) == (0, 0)
    assert worker.memory.server(2)["connections"] == 4


def test_success_ends_the_row_of_failures(worker: Worker) -> None:
    where = refusing()
    worker.server(1, where)
    worker.table(1, [1])
    worker.service(retries=0)
    vip = worker.listen()
    assert worker.refuses(vip)
    assert worker.memory.server()["consecutive_failures"] == 1
    with Server(port=where[1]) as server:
        client, real = worker.pair(vip, server)
        until(lambda: worker.memory.server()["connections"] == 1, 5, "connected")
        assert worker.memory.server()["consecutive_failures"] == 1, "a process that hangs accepts, too"
        real.sendall(b"x")
        assert client.recv(1) == b"x"
        assert worker.memory.server()["consecutive_failures"] == 0


def test_a_reset_instead_of_an_answer_is_a_failure_and_an_orderly_end_is_none(worker: Worker) -> None:
    with Server() as server:
        worker.server(1, server.where)
        worker.table(1, [1])
        worker.service()
        vip = worker.listen()
        for number in (1, 2):
            client, real = worker.pair(vip, server)
            reset(real)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert worker.memory.server()["consecutive_failures"] == number
        client, real = worker.pair(vip, server)
        client.shutdown(socket.SHUT_WR)
        assert real.recv(1) == b""
        real.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        until(lambda: worker.memory.server()["consecutive_failures"] == 0, 5, "the end was in order")
        client, real = worker.pair(vip, server)
        real.sendall(b"x")
        assert client.recv(1) == b"x"
        reset(real)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert worker.memory.server()["consecutive_failures"] == 0, "it had answered"


def test_retries_are_bounded_and_the_client_gets_a_reset(worker: Worker) -> None:
    for number in (1, 2, 3):
        worker.server(number, refusing())
    worker.table(1, [1, 2, 3])
    worker.service(retries=2)
    assert worker.refuses(worker.listen())
    assert [worker.memory.server(number)["connect_failures"] for number in (1, 2, 3)] == [1, 1, 1]
    assert worker.rejected(RejectReason.CONNECT_FAILED) == 1
    worker.settled()


def test_when_all_servers_failed_a_second_passes_before_the_next_round(worker: Worker) -> None:
    for number in (1, 2):
        worker.server(number, refusing())
    worker.table(1, [1, 2])
    worker.service(retries=2)
    vip = worker.listen()
    begin = time.monotonic()
    client = worker.dial(vip)
    until(lambda: worker.memory.server(1)["connect_failures"] + worker.memory.server(2)["connect_failures"] == 2, 5, "")
    assert worker.flows()[0].state == State.CONNECTING
    assert was_reset(client)
    assert 0.9 <= time.monotonic() - begin < 3
    assert worker.memory.server(1)["connect_failures"] + worker.memory.server(2)["connect_failures"] == 3


def test_a_server_that_restarts_loses_no_client(worker: Worker) -> None:
    where = refusing()
    worker.server(1, where)
    worker.table(1, [1])
    worker.service(retries=3)
    client = worker.dial(worker.listen())
    client.sendall(b"patience")
    until(lambda: worker.memory.server()["connect_failures"] == 1, 5, "the first try failed")
    with Server(port=where[1]) as server:
        assert server.accept().recv(100) == b"patience"


def test_a_connect_that_takes_too_long_is_tried_elsewhere(
    worker: Worker, server: Server, black_hole: tuple[str, int]
) -> None:
    worker.server(1, black_hole)
    worker.server(2, server.where)
    worker.table(1, [1, 2], [0, 0])
    worker.table(2, [1, 2], [0, 1])
    worker.service(table=1, connect_ms=200)
    begin = time.monotonic()
    client = worker.dial(worker.listen())
    worker.service(table=2, connect_ms=200, scheduler=Scheduler.RR)
    client.sendall(b"x")
    assert server.accept().recv(1) == b"x"
    assert time.monotonic() - begin >= 0.18
    assert worker.memory.server(1)["connect_failures"] == 1


def test_a_connect_timeout_without_retries_ends_the_flow(worker: Worker, black_hole: tuple[str, int]) -> None:
    worker.server(1, black_hole)
    worker.table(1, [1])
    worker.service(connect_ms=200, retries=0)
    begin = time.monotonic()
    assert worker.refuses(worker.listen())
    assert 0.18 <= time.monotonic() - begin < 2
    assert worker.rejected(RejectReason.CONNECT_FAILED) == 1
    worker.settled()


def test_a_client_that_gives_up_meanwhile_costs_nothing(worker: Worker, black_hole: tuple[str, int]) -> None:
    worker.server(1, black_hole)
    worker.table(1, [1])
    worker.service()
    client = worker.dial(worker.listen())
    until(worker.flows, 5, "the flow connects")
    reset(client)
    worker.settled()
    assert worker.memory.server()["connect_failures"] == 0
    assert worker.memory.item("server", "shared_server", 1)["active"] == 0


def test_a_service_that_turns_to_reject_ends_what_still_looks_for_a_server(worker: Worker) -> None:
    worker.server(1, refusing())
    worker.table(1, [1])
    worker.service(retries=100)
    client = worker.dial(worker.listen())
    until(lambda: worker.memory.server()["connect_failures"] == 1, 5, "the first try failed")
    worker.service(table=0, mode=Mode.REJECT)
    assert was_reset(client)
    assert worker.rejected(RejectReason.NO_SERVER) == 1


def test_a_deleted_service_ends_what_still_looks_for_a_server(worker: Worker) -> None:
    worker.server(1, refusing())
    worker.table(1, [1])
    worker.service(retries=100)
    vip = worker.listen()
    client = worker.dial(vip)
    until(lambda: worker.memory.server()["connect_failures"] == 1, 5, "the first try failed")
    worker.listen_delete(1, vip)
    worker.delete_service(1)
    assert was_reset(client)
    assert worker.dump().services == {}
    worker.delete_table(1)
    worker.delete_server(1)


def test_port_zero_means_the_port_the_client_used(worker: Worker, server: Server) -> None:
    port = server.where[1]
    with socket.socket() as wildcard:
        wildcard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wildcard.bind(("127.0.0.2", port))
        wildcard.listen()
        worker.server(1, ("127.0.0.1", 0))
        worker.table(1, [1])
        worker.service()
        worker.listen(at=wildcard)
        client, real = worker.pair(("127.0.0.2", port), server)
        client.sendall(b"x")
        assert real.recv(1) == b"x"


def test_a_wildcard_listener_knows_where_the_client_connected_to(worker: Worker, server: Server) -> None:
    worker.simple([server])
    with socket.socket() as wildcard:
        wildcard.bind(("0.0.0.0", 0))
        wildcard.listen()
        worker.listen(at=wildcard)
        port = wildcard.getsockname()[1]
    worker.pair(("127.0.0.5", port), server)
    [flow] = worker.flows()
    assert flow.vip == ("127.0.0.5", port)


def test_a_dual_stack_listener_sees_ipv4_clients_as_ipv4(worker: Worker, server: Server) -> None:
    worker.simple([server], ranges=[("127.0.0.1", "127.0.0.1")], flags=1)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        worker.listen(at=both)
        port = both.getsockname()[1]
    client, _ = worker.pair(("127.0.0.1", port), server)
    [flow] = worker.flows()
    assert flow.client == client.getsockname()
    assert flow.vip == ("127.0.0.1", port)

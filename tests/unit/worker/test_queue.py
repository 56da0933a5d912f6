# SPDX-License-Identifier: Apache-2.0
"""Connections that wait while every server is full; limits by network."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from fairlead.model.reasons import RejectReason
from fairlead.protocols.proxy_header import version_2
from support.models import endpoint
from support.peers import Server, reset, was_reset
from support.wait import until
from support.worker import Worker
from support.worker_abi import Kind, Mode


def full(worker: Worker, server: Server, **values: Any) -> tuple[tuple[str, int], socket.socket, socket.socket]:
    """A service whose one server takes one connection, and has it; where, client and server side."""
    where = worker.simple([server], **{"queue": 4, "queue_ms": 60_000, **values})
    worker.server(1, server.where, max_connections=1)
    client, other = worker.pair(where, server)
    client.sendall(b"busy")
    assert other.recv(4) == b"busy"
    return where, client, other


def queued(worker: Worker) -> int:
    return int(worker.memory.item("service", "shared_service", 1)["queued"])


def test_a_connection_waits_for_a_place_first_come_first_served(worker: Worker, server: Server) -> None:
    where, client, other = full(worker, server)
    waiting = []
    for number in range(4):
        waiting.append(worker.dial(where))
        waiting[-1].sendall(b"%d" % number)
        until(lambda n=number: queued(worker) == n + 1, 5, "it waits")  # type: ignore[misc]
    assert [flow.server for flow in worker.flows()].count(0) == 4
    for number in range(4):
        for s in (client, other):
            s.close()
        client, other = waiting[number], server.accept()
        assert other.recv(4) == b"%d" % number
        assert queued(worker) == 3 - number
    client.close()
    other.close()
    worker.settled()
    assert sum(worker.memory.service()["rejected"]) == 0


def test_a_full_queue_refuses(worker: Worker, server: Server) -> None:
    where, *_ = full(worker, server, queue=2)
    for _ in range(2):
        worker.dial(where)
    until(lambda: queued(worker) == 2, 5, "two wait")
    assert worker.refuses(where)
    assert worker.rejected(RejectReason.SERVERS_FULL) == 1


def test_without_a_queue_a_full_server_refuses(worker: Worker, server: Server) -> None:
    where, *_ = full(worker, server, queue=0)
    assert worker.refuses(where)


def test_waiting_ends(worker: Worker, server: Server) -> None:
    where, client, other = full(worker, server, queue_ms=300)
    begin = time.monotonic()
    assert was_reset(worker.dial(where))
    assert 0.25 < time.monotonic() - begin < 2
    assert worker.rejected(RejectReason.QUEUE_TIMEOUT) == 1
    assert queued(worker) == 0
    client.close()
    other.close()
    worker.settled()


def test_one_that_gives_up_makes_room(worker: Worker, server: Server) -> None:
    where, *_ = full(worker, server, queue=1)
    first = worker.dial(where)
    until(lambda: queued(worker) == 1, 5, "it waits")
    reset(first)
    until(lambda: queued(worker) == 0, 5, "it is gone")
    worker.dial(where)
    until(lambda: queued(worker) == 1, 5, "the next one waits")


def test_a_place_that_another_worker_gives_back_is_noticed(start: Callable[..., Worker], server: Server) -> None:
    first = start(slot=0)
    second = start(slot=1, memory=first.memory)
    _, client, other = full(first, server)
    there = second.simple([server], queue=1, queue_ms=60_000)
    second.server(1, server.where, max_connections=1)
    second.dial(there).sendall(b"me")
    until(lambda: queued(first) == 1, 5, "it waits")
    client.close()
    other.close()
    assert server.accept().recv(2) == b"me"


def test_the_queue_is_bounded_over_all_workers_and_survives_a_kill(
    start: Callable[..., Worker], server: Server
) -> None:
    first = start(slot=0)
    second = start(slot=1, memory=first.memory)
    here, *_ = full(first, server, queue=2)
    there = second.simple([server], queue=2, queue_ms=60_000)
    second.server(1, server.where, max_connections=1)
    first.dial(here)
    second.dial(there)
    until(lambda: queued(first) == 2, 5, "two wait")
    assert first.refuses(here)
    second.process.kill()
    second.process.wait()
    start(slot=1, memory=first.memory)
    assert queued(first) == 1


def test_a_service_that_goes_down_lets_nobody_wait(worker: Worker, server: Server) -> None:
    where, *_ = full(worker, server)
    waiting = worker.dial(where)
    until(lambda: queued(worker) == 1, 5, "it waits")
    worker.service(table=0, mode=Mode.REJECT, queue=4)
    assert was_reset(waiting)
    assert worker.rejected(RejectReason.NO_SERVER) == 1


def test_a_service_that_is_removed_lets_nobody_wait(worker: Worker, server: Server) -> None:
    where, *_ = full(worker, server)
    waiting = worker.dial(where)
    until(lambda: queued(worker) == 1, 5, "it waits")
    worker.listen_delete(1, where)
    worker.delete_service(1)
    assert was_reset(waiting)


def test_a_drain_waits_for_the_queue_and_its_deadline_ends_it(worker: Worker, server: Server) -> None:
    where, *_ = full(worker, server)
    waiting = worker.dial(where)
    until(lambda: queued(worker) == 1, 5, "it waits")
    worker.control.ask(Kind.DRAIN, "drain", deadline_ms=300)
    assert was_reset(waiting)
    worker.process.wait(10)


@pytest.mark.parametrize(
    ("kept", "same", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        ("198.51.100.1", "198.51.100.254", "198.51.101.1"),
    ],
)
def test_a_network_is_one_source(worker: Worker, server: Server, kept: str, same: str, other: str) -> None:
    where = worker.simple([server], flags=2, connections_per_source=1, source_v4=24)

    def come(address: str) -> socket.socket:
        client = worker.dial(where)
        source, to = (endpoint(f"[{it}]:1" if ":" in it else f"{it}:1") for it in (address, kept))
        client.sendall(version_2(source, to))
        return client

    come(kept)
    server.accept()
    assert was_reset(come(same))
    come(other)
    server.accept()
    assert worker.rejected(RejectReason.SOURCE_CONNECTIONS) == 1

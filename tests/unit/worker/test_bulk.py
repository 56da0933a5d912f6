# SPDX-License-Identifier: Apache-2.0
"""Bulk goes through pipes, and nothing else changes for the peers."""

from __future__ import annotations

import os
import random
import socket
import threading
from pathlib import Path

import pytest

from support.peers import Server, read_exactly, reset, was_reset
from support.wait import until
from support.worker import Worker

LARGE = 64 << 20


def pipes(worker: Worker) -> int:
    """Ends of pipes that it holds."""
    links = Path(f"/proc/{worker.process.pid}/fd").iterdir()
    return sum(os.readlink(link).startswith("pipe:") for link in links)  # noqa: PTH115  # no path


def sending(s: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        s.sendall(data)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("to_client", [True, False])
def test_bulk_arrives_whole_and_small_messages_follow(worker: Worker, server: Server, *, to_client: bool) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    source, sink = (real, client) if to_client else (client, real)
    data = random.Random(1).randbytes(LARGE)
    thread = sending(source, data)
    assert read_exactly(sink, LARGE) == data
    thread.join()
    assert pipes(worker) == 2
    for word in (b"a", b"bc", b"end"):
        source.sendall(word)
        assert read_exactly(sink, len(word)) == word
        sink.sendall(word)
        assert read_exactly(source, len(word)) == word
    source.shutdown(socket.SHUT_WR)
    assert sink.recv(1) == b""
    [flow] = worker.flows()
    assert sorted((flow.bytes_in, flow.bytes_out)) == [6, LARGE + 6]


def test_bulk_that_ends_with_the_connection(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    data = random.Random(2).randbytes(LARGE)

    def send() -> None:
        real.sendall(data)
        real.close()

    thread = threading.Thread(target=send)
    thread.start()
    assert read_exactly(client, LARGE) == data
    assert client.recv(1) == b""
    thread.join()
    client.close()
    worker.settled()


def test_a_reader_that_stops_stops_the_sender_and_goes_on(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    data = random.Random(3).randbytes(LARGE)
    thread = sending(real, data)
    start = read_exactly(client, 16 << 20)
    before = -1

    def stands() -> bool:
        nonlocal before
        moved, before = before, worker.flows()[0].bytes_out
        return moved == before

    until(stands, 10, "nothing moves any more")
    assert before < LARGE
    assert start + read_exactly(client, LARGE - len(start)) == data
    thread.join()


@pytest.mark.parametrize("by_reader", [True, False])
def test_a_reset_in_the_midst_of_bulk_is_passed_on(worker: Worker, server: Server, *, by_reader: bool) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    failed = threading.Event()

    def send() -> None:
        try:
            while True:
                real.sendall(bytes(1 << 20))
        except OSError:
            failed.set()

    thread = threading.Thread(target=send)
    thread.start()
    read_exactly(client, 16 << 20)
    assert pipes(worker) == 2
    if by_reader:
        reset(client)
        assert failed.wait(10)
    else:
        real.shutdown(socket.SHUT_RDWR)
        reset(real)
        was_reset(client)
    thread.join()
    client.close()
    worker.settled()


def test_more_bulk_than_pipes(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    pairs = [worker.pair(where, server) for _ in range(70)]
    stop = threading.Event()

    def send(s: socket.socket) -> None:
        try:
            while not stop.is_set():
                s.sendall(bytes(1 << 20))
        except OSError:
            pass

    threads = [threading.Thread(target=send, args=(real,)) for _, real in pairs]
    for thread in threads:
        thread.start()
    for client, _ in pairs:  # nobody reads but one after the other
        assert read_exactly(client, 8 << 20) == bytes(8 << 20)
    assert pipes(worker) <= 128
    stop.set()
    for client, real in pairs:
        reset(client)
        real.close()
    for thread in threads:
        thread.join()
    worker.settled()

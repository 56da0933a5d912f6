# SPDX-License-Identifier: Apache-2.0
"""Bytes and endings pass through a flow unchanged (F37)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import signal
import socket
import threading
from pathlib import Path

import pytest

from fairlead.model.reasons import RejectReason
from support.peers import Server, read_all, read_exactly, reset, reset_after_end, was_reset
from support.wait import until
from support.worker import Worker
from support.worker_abi import State


def test_bytes_pass_both_ways_and_are_counted(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    for n in range(20):
        client.sendall(b"ping%02d" % n)
        assert real.recv(100) == b"ping%02d" % n
        real.sendall(b"answer%02d" % n)
        assert client.recv(100) == b"answer%02d" % n
    [flow] = worker.flows()
    assert (flow.bytes_in, flow.bytes_out, flow.state) == (120, 160, State.ESTABLISHED)
    assert flow.client == client.getsockname()
    assert flow.vip == client.getpeername()
    for row in (worker.memory.service(), worker.memory.server()):
        assert (row["bytes_in"], row["bytes_out"], row["connections"], row["active"]) == (120, 160, 1, 1)
    client.close()
    assert real.recv(1) == b""
    real.close()
    worker.settled()


def test_a_server_may_speak_first(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    real.sendall(b"220 ready\r\n")
    assert client.recv(100) == b"220 ready\r\n"
    reset(client)


def test_f37_the_clients_half_close_passes_and_the_answer_still_comes(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    assert read_all(real) == b"request"
    until(lambda: worker.flows()[0].state == State.CLIENT_CLOSED, 5, "the flow is half closed")
    answer = os.urandom(1 << 20)
    sender = threading.Thread(target=real.sendall, args=(answer,))
    sender.start()
    assert read_exactly(client, len(answer)) == answer
    sender.join()
    real.close()
    assert client.recv(1) == b""
    worker.settled()


def test_the_servers_half_close_passes_and_the_client_may_go_on(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    real.sendall(b"banner")
    real.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"banner"
    until(lambda: worker.flows()[0].state == State.SERVER_CLOSED, 5, "the flow is half closed")
    for n in range(3):
        client.sendall(b"more%d" % n)
        assert real.recv(100) == b"more%d" % n
    client.close()
    assert real.recv(1) == b""
    worker.settled()


def test_data_and_end_that_arrive_together(worker: Worker, server: Server) -> None:
    """One event tells of the connection, the data and the FIN."""
    where = worker.simple([server])
    os.kill(worker.process.pid, signal.SIGSTOP)
    client = worker.dial(where)
    client.sendall(b"all of it")
    client.shutdown(socket.SHUT_WR)
    os.kill(worker.process.pid, signal.SIGCONT)
    real = server.accept()
    assert read_all(real) == b"all of it"
    real.sendall(b"thanks")
    real.close()
    assert read_all(client) == b"thanks"
    worker.settled()


def test_f37_a_half_closed_flow_without_traffic_ends_by_reset(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server], half_close_ms=300), server)
    client.shutdown(socket.SHUT_WR)
    assert real.recv(1) == b""
    assert was_reset(client)
    assert reset_after_end(real)
    assert worker.rejected(RejectReason.HALF_CLOSE_TIMEOUT) == 1
    worker.settled()


def test_traffic_keeps_a_half_closed_flow_alive(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server], half_close_ms=300), server)
    client.shutdown(socket.SHUT_WR)
    for _ in range(10):
        real.sendall(b"x")
        assert client.recv(1) == b"x"
        select.select([client], [], [], 0.06)
    real.close()
    assert client.recv(1) == b""
    assert worker.rejected(RejectReason.HALF_CLOSE_TIMEOUT) == 0
    worker.settled()


def test_f37_the_servers_reset_reaches_the_client_after_its_data(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    real.sendall(b"last words")
    reset(real)
    assert read_exactly(client, 10) == b"last words"
    assert was_reset(client)
    worker.settled()


def test_a_server_that_speaks_and_resets_before_we_look_was_connected(worker: Worker) -> None:
    """One event tells of the connection, the data and the RST; a refused connect looks nearly the same."""
    with Server(backlog=0) as server, socket.socket() as filler:
        filler.connect(server.where)  # the queue is full: the worker's SYN is answered after a second, when repeated
        client = worker.dial(worker.simple([server]))
        until(worker.flows, 5, "the worker connects")
        os.kill(worker.process.pid, signal.SIGSTOP)
        server.accept()
        real = server.accept()
        real.sendall(b"full")
        reset(real)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert read_exactly(client, 4) == b"full"
        assert was_reset(client)
        assert worker.memory.server()["connect_failures"] == 0


def test_f37_the_clients_reset_reaches_the_server_after_its_data(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    client.sendall(b"last words")
    reset(client)
    assert read_exactly(real, 10) == b"last words"
    assert was_reset(real)
    worker.settled()


def test_a_reset_after_a_half_close_is_a_reset(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    client.shutdown(socket.SHUT_WR)
    assert real.recv(1) == b""
    reset(client)
    assert reset_after_end(real)
    worker.settled()


def test_a_server_that_closes_with_unread_data_still_delivers_its_answer(worker: Worker, server: Server) -> None:
    """close() with unread bytes sends an RST: the client gets what was sent before it, then the RST."""
    client, real = worker.pair(worker.simple([server]), server)
    client.sendall(b"never read" * 100)
    until(lambda: select.select([real], [], [], 0)[0], 5, "the request arrived")
    real.sendall(b"go away")
    real.close()
    assert read_exactly(client, 7) == b"go away"
    assert was_reset(client)
    worker.settled()


def test_a_reset_waits_for_a_slow_reader(worker: Worker, server: Server) -> None:
    """What the kernel still holds for the client when the server resets is delivered first."""
    where = worker.simple([server])
    client = worker.dial(where, receive_buffer=4096)
    real = server.accept()
    sent = os.urandom(60_000)
    real.sendall(sent)
    until(lambda: worker.flows()[0].bytes_out == len(sent), 5, "the worker read all of it")
    reset(real)
    assert worker.hello()["flows"] == 1  # it knows of the RST by now, and waits
    assert read_exactly(client, len(sent)) == sent
    assert was_reset(client)
    worker.settled()


def memory_kb(worker: Worker) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.parametrize("to_client", [True, False])
def test_a_slow_reader_stops_the_sender_and_costs_no_memory(worker: Worker, server: Server, to_client: bool) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    sender, reader = (real, client) if to_client else (client, real)
    before = memory_kb(worker)
    sender.setblocking(False)
    digest, total, blocked = hashlib.sha256(), 0, 0
    noise = random.Random(1)
    while blocked < 50:
        block = noise.randbytes(65536)
        try:
            n = sender.send(block)
        except BlockingIOError:
            blocked += 1
            select.select([], [sender], [], 0.01)
            continue
        digest.update(block[:n])
        total += n
    assert total < 64 << 20, "nothing holds the sender back"
    assert memory_kb(worker) - before < 1024
    sender.setblocking(True)
    sender.shutdown(socket.SHUT_WR)
    received = hashlib.sha256()
    got = 0
    while part := reader.recv(100_000):
        received.update(part)
        got += len(part)
    assert (got, received.digest()) == (total, digest.digest())
    reader.close()
    sender.close()
    worker.settled()


def test_bulk_in_both_directions_at_once(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    up, down = os.urandom(6 << 20), os.urandom(6 << 20)
    got: dict[str, bytes] = {}

    def send(s: socket.socket, data: bytes) -> None:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)

    jobs = [
        threading.Thread(target=send, args=(client, up)),
        threading.Thread(target=send, args=(real, down)),
        threading.Thread(target=lambda: got.update(up=read_all(real))),
        threading.Thread(target=lambda: got.update(down=read_all(client))),
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert got["up"] == up
    assert got["down"] == down
    client.close()
    real.close()
    worker.settled()


def test_urgent_data_neither_stalls_nor_cuts_the_stream(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    client.shutdown(socket.SHUT_WR)
    assert read_all(real) == b"before!after"
    reset(client)


def test_an_idle_flow_ends_by_reset_on_both_sides(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server], idle_ms=300), server)
    client.sendall(b"x")
    assert real.recv(1) == b"x"
    assert was_reset(client)
    assert was_reset(real)
    assert worker.rejected(RejectReason.IDLE_TIMEOUT) == 1
    worker.settled()


def test_traffic_in_one_direction_keeps_a_flow_alive(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server], idle_ms=300), server)
    for _ in range(10):
        real.sendall(b"x")
        assert client.recv(1) == b"x"
        select.select([client], [], [], 0.06)
    assert len(worker.flows()) == 1
    assert worker.rejected(RejectReason.IDLE_TIMEOUT) == 0


def test_a_busy_flow_does_not_starve_another(worker: Worker, server: Server) -> None:
    """While one flow moves as fast as it can, a request on another is answered at once."""
    where = worker.simple([server])
    busy, busy_real = worker.pair(where, server)
    quiet, quiet_real = worker.pair(where, server)
    stop = threading.Event()

    def pour() -> None:
        block = bytes(1 << 18)
        while not stop.is_set():
            busy.sendall(block)

    def swallow() -> None:
        while busy_real.recv(1 << 18):
            pass

    jobs = [threading.Thread(target=pour), threading.Thread(target=swallow)]
    for job in jobs:
        job.start()
    try:
        for n in range(20):
            quiet.sendall(b"%02d" % n)
            assert quiet_real.recv(2) == b"%02d" % n
    finally:
        stop.set()
        jobs[0].join()
        busy.close()
        jobs[1].join()


def test_ipv6_end_to_end_and_across_families(worker: Worker, server: Server) -> None:
    with Server("::1") as six:
        worker.server(1, six.where)
        worker.server(2, server.where)
        worker.table(1, [1])
        worker.table(2, [2])
        worker.service(1, 1)
        worker.service(2, 2)
        for where, real_side in (
            (worker.listen(1, "127.0.0.1"), six),
            (worker.listen(1, "::1"), six),
            (worker.listen(2, "::1"), server),
        ):
            client, real = worker.pair(where, real_side)
            client.sendall(b"x")
            assert real.recv(1) == b"x"
            client.close()
            assert real.recv(1) == b""
            real.close()
    worker.settled()


def test_many_slow_readers_together_cost_bounded_memory(worker: Worker) -> None:
    """Each could hold a whole read of 256 kB; together they hold 16 MB, and 32 kB for each flow beyond."""
    flows = 320
    with Server(backlog=flows) as server:
        where = worker.simple([server])
        before = memory_kb(worker)
        reals = []
        for _ in range(flows):
            worker.dial(where, receive_buffer=4096)
            reals.append(server.accept())
            reals[-1].setblocking(False)
        block = bytes(1 << 20)
        for _ in range(4):
            for real in reals:
                with contextlib.suppress(BlockingIOError):
                    real.send(block)
        until(lambda: all(flow.idle_ms > 100 for flow in worker.flows()), 20, "all flows are stuck")
        assert memory_kb(worker) - before < (16 << 10) + flows * 32 + 4096
        for real in reals:
            reset(real)

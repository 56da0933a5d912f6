# SPDX-License-Identifier: Apache-2.0
"""Listeners come and go, agents die, workers hand over, drain and run out of descriptors."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead.model.reasons import RejectReason
from support.peers import Server, reset, was_reset
from support.wait import until
from support.worker import Control, Refused, Worker
from support.worker_abi import Kind, Layouts, Memory, Scheduler, address


def cpu_s(worker: Worker) -> float:
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def paused_dials(worker: Worker, where: tuple[str, int], n: int) -> list[socket.socket]:
    """Clients that wait in the kernel's queue, because the worker is stopped."""
    os.kill(worker.process.pid, signal.SIGSTOP)
    return [worker.dial(where) for _ in range(n)]


def test_a_closed_listener_serves_what_was_queued(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    clients = paused_dials(worker, where, 20)
    worker.control.post(Kind.LISTEN_DEL, "listen", service=1, address=address(*where))
    os.kill(worker.process.pid, signal.SIGCONT)
    worker.control.collect()
    for client in clients:
        client.sendall(b"x")
        assert server.accept().recv(1) == b"x"
    with pytest.raises(ConnectionRefusedError):
        worker.dial(where)
    assert worker.dump().listeners == []


def test_the_same_listener_twice_is_one(worker: Worker, server: Server) -> None:
    worker.simple([server])
    descriptors = worker.descriptors()
    with socket.create_server(("127.0.0.1", 0)) as again:
        worker.listen(at=again)
        worker.listen(at=again)
        worker.listen(at=again)
    assert len(worker.dump().listeners) == 2
    assert worker.descriptors() == descriptors + 1


def test_draining_ends_when_the_last_flow_ends(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    kept, real = worker.pair(where, server)
    queued = paused_dials(worker, where, 5)
    worker.control.post(Kind.DRAIN, "drain", deadline_ms=60_000)
    os.kill(worker.process.pid, signal.SIGCONT)
    worker.control.collect()
    assert worker.hello()["draining"] == 1
    with pytest.raises(ConnectionRefusedError):
        worker.dial(where)
    kept.sendall(b"x")
    assert real.recv(1) == b"x"
    for client in queued:
        client.sendall(b"x")
        peer = server.accept()
        assert peer.recv(1) == b"x"
        client.close()
        peer.close()
    assert worker.process.poll() is None
    kept.close()
    real.close()
    assert worker.process.wait(10) == 0
    assert worker.memory.row()["pid"] == 0


def test_draining_ends_at_its_deadline(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server]), server)
    begin = time.monotonic()
    worker.control.ask(Kind.DRAIN, "drain", deadline_ms=300)
    assert was_reset(client)
    assert was_reset(real)
    assert worker.process.wait(10) == 0
    assert 0.29 <= time.monotonic() - begin < 3
    assert worker.rejected(RejectReason.SERVER_RESET) == 1
    assert worker.memory.item("service", "shared_service", 1)["active"] == 0


def test_quit_resets_all_flows_and_gives_the_row_back(worker: Worker, server: Server) -> None:
    client, real = worker.pair(worker.simple([server], connections_per_source=9), server)
    worker.control.ask(Kind.QUIT)
    assert worker.process.wait(10) == 0
    assert was_reset(client)
    assert was_reset(real)
    assert worker.memory.row()["pid"] == 0
    assert worker.memory.item("server", "shared_server", 1)["active"] == 0
    assert not worker.path.exists()


def test_a_dead_agent_changes_nothing(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    client, real = worker.pair(where, server)
    worker.control.socket.close()
    client.sendall(b"x")
    assert real.recv(1) == b"x"
    worker.pair(where, server)
    worker.control = worker.connect()
    assert worker.hello()["flows"] == 2


def test_a_newer_agent_replaces_the_older(worker: Worker) -> None:
    older, worker.control = worker.control, worker.connect()
    assert worker.hello()["pid"] == worker.process.pid
    assert older.socket.recv(1) == b""


def test_the_control_socket_is_private_and_the_process_independent(worker: Worker) -> None:
    assert stat.S_IMODE(worker.path.stat().st_mode) == 0o600
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert os.getsid(worker.process.pid) == worker.process.pid
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1):
        os.kill(worker.process.pid, number)
    assert worker.hello()["attached"] == 1


def test_an_inherited_control_connection(program: Path, layouts: Layouts) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [str(program), "--control-fd", str(theirs.fileno()), "--slot", "3"]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
            control = Control(layouts, ours)
            [(record, _)] = control.ask(Kind.HELLO)
            assert layouts.unpack("hello", record)["slot"] == 3
            control.ask(Kind.QUIT)
            assert process.wait(10) == 0


@pytest.mark.parametrize("arguments", [[], ["--slot", "1"], ["--control"], ["--control-fd", "x"], ["--what", "1"]])
def test_wrong_usage_is_told(program: Path, arguments: list[str]) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_a_new_worker_takes_over_listeners_and_memory(start: Callable[..., Worker], server: Server) -> None:
    old = start(slot=0)
    where = old.simple([server])
    client, real = old.pair(where, server)
    records = old.control.ask(Kind.HANDOVER)
    assert [int.from_bytes(record[:2], "little") for record, _ in records] == [Kind.LISTEN_PUT, Kind.ATTACH]
    (listen, [listener]), (_, [memory]) = records
    with socket.socket(fileno=listener) as handed:
        assert os.fstat(memory).st_ino == os.fstat(old.memory.fd).st_ino
        os.close(memory)
        new = start(slot=1, memory=old.memory)
        new.server(1, server.where)
        new.table(1, [1])
        new.service()
        assert old.layouts.unpack("listen", listen)["address"] == address(*where)
        new.listen(at=handed)
    old.control.ask(Kind.DRAIN, "drain", deadline_ms=60_000)
    for _ in range(10):
        new.pair(where, server)
    assert new.hello()["flows"] == 10
    client.sendall(b"x")
    assert real.recv(1) == b"x"
    client.close()
    real.close()
    assert old.process.wait(10) == 0
    new.pair(where, server)


def test_the_next_worker_of_a_slot_repairs_what_a_killed_one_left(
    start: Callable[..., Worker], server: Server, layouts: Layouts
) -> None:
    memory = Memory(layouts)
    dead = start(slot=2, memory=memory)
    other = start(slot=1, memory=memory)
    wheres = [worker.simple([server], connections_per_source=4) for worker in (dead, other)]
    for where, worker in ((wheres[0], dead), (wheres[0], dead), (wheres[1], other)):
        worker.pair(where, server)
    held = memory.item("service", "shared_service", 1)["active"], memory.item("server", "shared_server", 1)["active"]
    assert held == (3, 3)
    dead.process.kill()
    until(
        lambda: " Z " in Path(f"/proc/{dead.process.pid}/stat").read_text(), 5, "it is dead, and nobody has reaped it"
    )
    heir = start(slot=2, memory=memory)
    held = memory.item("service", "shared_service", 1)["active"], memory.item("server", "shared_server", 1)["active"]
    assert held == (1, 1)
    assert memory.row(2)["pid"] == heir.process.pid
    assert memory.service(1, 2)["connections"] == 2  # counters go on
    where = heir.simple([server], connections_per_source=4)
    for _ in range(3):
        heir.pair(where, server)
    assert heir.refuses(where)  # the dead worker's two are forgotten, the other's one is not
    memory_in_use = (
        int(
            subprocess.run(
                ["stat", "-Lc", "%b", f"/proc/self/fd/{memory.fd}"],
                pass_fds=[memory.fd],
                capture_output=True,
                check=True,
            ).stdout
        )
        * 512
    )
    assert memory_in_use < 2 << 20  # the walk over 11 MB of rows touched only what was in use


def test_a_row_of_a_live_worker_is_refused(start: Callable[..., Worker], program: Path, layouts: Layouts) -> None:
    first = start(slot=0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [str(program), "--control-fd", str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
            control = Control(layouts, ours)
            with pytest.raises(Refused, match="another live worker"):
                control.ask(Kind.ATTACH, "attach", slot=0, descriptors=[first.memory.fd])
            control.ask(Kind.QUIT)
            assert process.wait(10) == 0


def test_f38_running_out_of_descriptors_pauses_accepting_without_a_spin(
    start: Callable[..., Worker], server: Server
) -> None:
    """F38: those inside are served, those outside wait, the processor rests."""
    worker = start(descriptors=120)
    where = worker.simple([server])
    clients = [worker.dial(where) for _ in range(100)]
    until(lambda: worker.memory.row()["accept_pauses"] == 1, 10, "accepting pauses")
    row = worker.memory.row()
    assert row["accepting"] == 0
    assert row["descriptors_used"] <= row["descriptors_limit"] == 120
    inside = worker.hello()["flows"]
    assert 30 <= inside < 60
    before, loops = cpu_s(worker), row["loops"]
    clients[0].sendall(b"served")
    until(lambda: any(s.recv(10) for s in [server.accept()]), 5, "the first one is served")
    while server.waiting():
        pass
    server.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        server.socket.accept()
    assert cpu_s(worker) - before < 0.1
    assert worker.memory.row()["loops"] - loops < 20
    for client in clients:
        reset(client)
    until(lambda: worker.memory.row()["accepting"] == 1, 10, "accepting goes on")
    until(lambda: worker.memory.service()["connections"] == 100, 10, "all were served in the end")
    assert worker.rejected(RejectReason.NO_DESCRIPTORS) == 0
    assert worker.memory.row()["accept_pauses"] < 30  # not one for each place that comes free


def test_a_stop_of_minutes_is_survived(worker: Worker, server: Server) -> None:
    """A paused process finds its timers long due."""
    clients = [worker.pair(worker.simple([server], idle_ms=200), server) for _ in range(3)]
    os.kill(worker.process.pid, signal.SIGSTOP)
    server.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        server.accept()
    os.kill(worker.process.pid, signal.SIGCONT)
    for client, _ in clients:
        assert was_reset(client)
    assert worker.rejected(RejectReason.IDLE_TIMEOUT) == 3


def test_many_short_connections_leave_nothing_behind(worker: Worker, server: Server) -> None:
    where = worker.simple([server], scheduler=Scheduler.RR, connections_per_source=50)
    descriptors = worker.descriptors()
    for n in range(300):
        client, real = worker.pair(where, server)
        client.sendall(b"x")
        assert real.recv(1) == b"x"
        (reset if n % 3 == 0 else socket.socket.close)(client if n % 2 else real)
        (client if not n % 2 else real).close()
    worker.settled()
    assert worker.descriptors() == descriptors
    assert worker.memory.service()["connections"] == 300

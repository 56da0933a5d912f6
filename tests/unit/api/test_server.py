# SPDX-License-Identifier: Apache-2.0
"""The socket itself, who may use it, and clients that are slow, stuck or many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.api import protocol
from fairlead.api.peer import Peer
from fairlead.api.server import ApiServer, open_socket
from fairlead.errors import Conflict, FairleadError
from support.api import FakeFacade, Serving, read_all, server_view, serving
from support.wait import until

GET = b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def client(daemon: Serving) -> Iterator[socket.socket]:
    with connect(daemon) as made:
        yield made


@contextlib.contextmanager
def connect(daemon: Serving) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(10)
        made.connect(str(daemon.socket))
        yield made


def connections(daemon: Serving) -> int:
    return len(daemon.server._state.connections)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_mode_does_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        listener = open_socket(tmp_path / "api.sock")
    finally:
        os.umask(before)
    with listener:
        assert stat.S_IMODE((tmp_path / "api.sock").stat().st_mode) == 0o660


def test_mode_is_never_wider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between bind and chmod: somebody may watch the directory."""
    seen = []
    monkeypatch.setattr(Path, "chmod", lambda path, _: seen.append(stat.S_IMODE(path.stat().st_mode)))
    before = os.umask(0)
    try:
        open_socket(tmp_path / "api.sock").close()
    finally:
        os.umask(before)
    assert seen == [0o660]


def test_the_directory_is_made(tmp_path: Path) -> None:
    with open_socket(tmp_path / "run" / "fairlead" / "api.sock"):
        assert (tmp_path / "run" / "fairlead").is_dir()


def test_a_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    open_socket(path).close()
    assert path.is_socket()
    with serving(path) as daemon:
        assert daemon.ask("GET", "/healthz")[0] == 200


def test_a_socket_on_which_somebody_answers_is_left_alone(daemon: Serving) -> None:
    with pytest.raises(Conflict, match=r"another daemon answers on .*--socket"):
        open_socket(daemon.socket)
    assert daemon.ask("GET", "/healthz")[0] == 200


def test_a_full_queue_also_counts_as_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            one = waiting.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            one.connect_ex(str(path))
        with pytest.raises(Conflict):
            open_socket(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("mine")
    with pytest.raises(FairleadError, match="not a socket; remove it"):
        open_socket(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FairleadError, match="not a socket; remove it"):
        open_socket(path)


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FairleadError, match="longer than 107 octets; name a shorter"):
        open_socket(tmp_path / ("x" * 108))
    (tmp_path / "file").touch()
    with pytest.raises(FairleadError, match=r"cannot open the API socket .*--socket PATH"):
        open_socket(tmp_path / "file" / "api.sock")


def test_stop_removes_the_socket(daemon: Serving) -> None:
    daemon.stop()
    assert not daemon.socket.exists()
    daemon.stop()


def test_stop_leaves_the_socket_of_a_successor(daemon: Serving) -> None:
    daemon.socket.unlink()
    with open_socket(daemon.socket):
        daemon.stop()
        assert daemon.socket.is_socket()


def test_a_request_under_way_ends_before_the_stop(daemon: Serving, client: socket.socket) -> None:
    entered = asyncio.run_coroutine_threadsafe(_an_event(), daemon.loop).result()
    released = asyncio.run_coroutine_threadsafe(_an_event(), daemon.loop).result()

    async def slow() -> tuple[object, ...]:
        entered.set()
        await released.wait()
        return ()

    daemon.facade.servers = slow  # type: ignore[method-assign,assignment]
    client.sendall(b"GET /v1/servers HTTP/1.1\r\nhost: x\r\n\r\n")
    daemon.run(entered.wait())
    stopping = asyncio.run_coroutine_threadsafe(daemon.server.stop(), daemon.loop)
    until(lambda: not daemon.socket.exists(), 5, "the stop has begun")
    daemon.loop.call_soon_threadsafe(released.set)
    assert read_all(client).endswith(b"\r\n\r\n[]")
    stopping.result(5)


async def _an_event() -> asyncio.Event:
    return asyncio.Event()


def test_a_stuck_request_does_not_hold_up_the_stop(daemon: Serving, client: socket.socket) -> None:
    async def stuck() -> tuple[object, ...]:
        await asyncio.Event().wait()
        return ()

    daemon.facade.servers = stuck  # type: ignore[method-assign,assignment]
    client.sendall(b"GET /v1/servers HTTP/1.1\r\nhost: x\r\n\r\n")
    until(lambda: daemon.server._state.tasks, 5, "the request is under way")
    daemon.run(daemon.server.stop(grace_s=0.05))
    assert not daemon.server._state.tasks
    assert read_all(client) == b""


def test_signals_stay_with_the_agent(tmp_path: Path) -> None:
    """Uvicorn takes them over when it runs its own loop."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    async def start_and_stop() -> tuple[list[object], list[object]]:
        before: list[object] = [signal.getsignal(number) for number in numbers]
        server = ApiServer(FakeFacade(), tmp_path / "api.sock")
        await server.start()
        during: list[object] = [signal.getsignal(number) for number in numbers]
        await server.stop()
        return before, during

    before, during = asyncio.run(start_and_stop())
    assert during == before


def test_an_idle_client_is_let_go(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.BoundedProtocol, "request_s", 0.05)
    with connect(daemon) as client:
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "timeout"


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /v1/sta",
        GET[:-2],
        b"PATCH /v1/servers/web/web-1 HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{",
        GET + b"GET /v1/",
    ],
)
def test_a_request_that_never_ends_is_cut_off(daemon: Serving, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(protocol.BoundedProtocol, "request_s", 0.05)
    with connect(daemon) as client:
        client.sendall(begun)
        read_all(client)
    until(lambda: not connections(daemon) and not daemon.server._state.tasks, 5, "nothing is left of it")
    assert daemon.facade.writes == []


def test_a_drip_does_not_prolong_a_request(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.BoundedProtocol, "request_s", 0.2)
    sent = 0
    with connect(daemon) as client:
        for octet in b"GET /" + b"x" * 10_000:
            try:
                sent += client.send(bytes([octet]))
                client.settimeout(0.01)
                if not client.recv(4096):
                    break
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
    assert sent < 1000


def test_a_client_that_does_not_read_is_cut_off(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its answer nor its connection stays in the agent."""
    monkeypatch.setattr(protocol.BoundedProtocol, "drain_s", 0.1)
    daemon.facade.servers_by_key = {f"web/{n}": server_view(str(n), n, detail="x" * 400) for n in range(5000)}
    for request in (b"", b"connection: close\r\n"):
        with connect(daemon) as client:
            client.sendall(b"GET /v1/servers HTTP/1.1\r\nhost: x\r\n" + request + b"\r\n")
            until(lambda: connections(daemon) == 1, 5, "it is connected")
            until(lambda: connections(daemon) == 0, 5, "it is cut off")


def test_a_client_that_reads_slowly_gets_it_all(daemon: Serving, client: socket.socket) -> None:
    daemon.facade.servers_by_key = {f"web/{n}": server_view(str(n), n, detail="x" * 400) for n in range(3000)}
    client.sendall(b"GET /v1/servers HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    received = bytearray()
    while chunk := client.recv(16384):
        received += chunk
    assert len(json.loads(received.partition(b"\r\n\r\n")[2])) == 3000


def test_too_many_connections_are_refused(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(daemon))
        until(lambda: connections(daemon) == 3, 5, "three are connected")
        answer = daemon.raw(GET)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "busy"
    until(lambda: connections(daemon) == 0, 5, "they are gone")
    assert daemon.ask("GET", "/healthz")[0] == 200


def test_readers_cannot_lock_operators_out(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_READERS", 2)
    peer = Peer(uid=4711, daemon_uid=900)
    monkeypatch.setattr(protocol, "peer_of", lambda _: peer)
    with connect(daemon), connect(daemon):
        until(lambda: connections(daemon) == 2, 5, "two readers are connected")
        assert daemon.raw(GET).startswith(b"HTTP/1.1 503 ")
        peer = Peer(uid=900, daemon_uid=900)
        assert daemon.ask("PATCH", "/v1/servers/web/web-1", {"weight": 5})[0] == 200


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /caf\xc3\xa9 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"GET /" + b"a" * 20000, 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 20000, 431),
    ],
)
def test_what_is_no_http_is_refused_as_a_problem(daemon: Serving, octets: bytes, status: int) -> None:
    head, _, body = daemon.raw(octets).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["status"] == status


def test_garbage_after_an_answer_closes_quietly(daemon: Serving, caplog: pytest.LogCaptureFixture) -> None:
    head = b"PATCH /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    for octets in (head + b"zzz\r\n", head + b"1\r\nx\r\n" + b"zzz\r\n", GET + b"zzz\r\n\r\n"):
        with connect(daemon) as client:
            client.sendall(octets)
            answer = read_all(client)
        assert answer.count(b"HTTP/1.1 ") == (2 if octets.startswith(GET) else 1), answer
    until(lambda: connections(daemon) == 0, 5, "it is closed")
    assert not caplog.records


def test_an_upgrade_is_ignored(daemon: Serving) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert daemon.ask("GET", "/healthz", headers=headers)[0] == 200


READER = """
import http.client, json, os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[2]))
answers = []
for method, target in (("GET", "/v1/servers"), ("PATCH", "/v1/servers/web/web-1"), ("POST", "/v1/reload")):
    connection = http.client.HTTPConnection("x", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(sys.argv[1])
    connection.request(method, target, b'{"weight": 9}' if method == "PATCH" else None)
    answers.append(connection.getresponse().status)
print(json.dumps(answers))
"""


@pytest.mark.root
def test_another_user_reads_but_does_not_operate() -> None:
    """The kernel's word on who is there, with a process of another user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        directory = Path(made)
        directory.chmod(0o755)
        with serving(directory / "api.sock") as daemon:
            outside = run_reader(daemon.socket, user=65534, group=65534)
            assert "PermissionError" in outside.stderr
            os.chown(daemon.socket, -1, 65533)
            member = run_reader(daemon.socket, user=65534, group=65533)
            assert member.stdout.strip() == "[200, 403, 403]", member.stderr
            assert daemon.facade.writes == []
            root = run_reader(daemon.socket, user=0, group=0)
            assert root.stdout.strip() == "[200, 200, 200]", root.stderr


def run_reader(path: Path, user: int, group: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", READER, path, str(user), str(group)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

# SPDX-License-Identifier: Apache-2.0
"""Clients that end their direction (``nc -N``, ``socat``): answered if they asked, else let go at once."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import pytest

from fairlead.api import protocol
from fairlead.api.protocol import BoundedProtocol
from support.api import Serving, UnixConnection, read_all, server_view
from support.wait import until

GET = b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n"
HELD = b"GET /v1/servers HTTP/1.1\r\nhost: x\r\n\r\n"


class Holding:
    """A daemon that does not answer ``HELD`` before ``release``."""

    def __init__(self, daemon: Serving) -> None:
        self.daemon = daemon
        self.released = asyncio.Event()
        answer = daemon.facade.servers

        async def hold() -> tuple[object, ...]:
            await self.released.wait()
            return await answer()

        daemon.facade.servers = hold  # type: ignore[method-assign,assignment]

    def release(self) -> None:
        self.daemon.loop.call_soon_threadsafe(self.released.set)

    def connections(self) -> list[BoundedProtocol]:
        return [each for each in self.daemon.server._state.connections if isinstance(each, BoundedProtocol)]

    def tasks(self) -> int:
        return len(self.daemon.server._state.tasks)

    def has_heard_the_end(self) -> BoundedProtocol:
        """The one connection, once the server knows that its client sends no more."""
        until(lambda: [each._ended.is_set() for each in self.connections()] == [True], 5, "the end is noticed")
        return self.connections()[0]


@pytest.fixture
def holding(daemon: Serving, caplog: pytest.LogCaptureFixture) -> Iterator[Holding]:
    made = Holding(daemon)
    yield made
    made.release()
    until(lambda: not made.connections() and not made.tasks(), 5, "nothing is left")
    assert not caplog.get_records("call")


@pytest.fixture
def client(holding: Holding) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(5)
        made.connect(str(holding.daemon.socket))
        yield made


def test_an_answer_that_another_thread_writes_arrives(daemon: Serving) -> None:
    answer = daemon.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"fairlead_" in answer


@pytest.mark.parametrize("after", [[], [GET], [HELD, GET]])
def test_all_that_was_asked_whole_is_answered(holding: Holding, client: socket.socket, after: list[bytes]) -> None:
    client.sendall(b"".join([HELD, *after]))
    client.shutdown(socket.SHUT_WR)
    holding.has_heard_the_end()
    holding.release()
    assert read_all(client).count(b"HTTP/1.1 200 ") == 1 + len(after)


def test_a_change_is_made_and_answered(daemon: Serving) -> None:
    change = json.dumps({"weight": 7}).encode()
    head = b"PATCH /v1/servers/web/web-1 HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(change)
    assert daemon.raw(head + change).startswith(b"HTTP/1.1 200 ")
    assert daemon.facade.writes == [("web/web-1", None, 7)]


@pytest.mark.parametrize(
    ("begun", "answers"),
    [
        (b"", 0),
        (b"GET /v1/sta", 0),
        (GET[:-2], 0),
        (b"PATCH /v1/servers/web/web-1 HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{", 0),
        (GET + b"GET /v1/", 1),
    ],
)
def test_what_is_not_whole_is_let_go_at_once(
    holding: Holding, client: socket.socket, begun: bytes, answers: int
) -> None:
    """Not only when the time for a request is over, which is longer than this client waits."""
    client.sendall(begun)
    client.shutdown(socket.SHUT_WR)
    assert read_all(client).count(b"HTTP/1.1 ") == answers
    assert holding.daemon.facade.writes == []


def test_an_idle_one_is_let_go_at_once(daemon: Serving) -> None:
    connection = UnixConnection(daemon.socket)
    connection.timeout = 5
    connection.request("GET", "/v1/status")
    assert connection.getresponse().read()
    connection.sock.shutdown(socket.SHUT_WR)
    assert read_all(connection.sock) == b""
    connection.close()


def test_one_that_has_gone_altogether_leaves_nothing(holding: Holding, client: socket.socket) -> None:
    client.sendall(HELD + GET)
    client.close()
    holding.has_heard_the_end()
    holding.release()


def test_one_that_does_not_read_is_cut_off(
    holding: Holding, client: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what is left to write is too little for uvicorn to pause."""
    monkeypatch.setattr(protocol.BoundedProtocol, "drain_s", 0.1)
    holding.daemon.facade.servers_by_key = {f"web/{n}": server_view(str(n), n, detail="x" * 400) for n in range(40)}
    client.sendall(HELD)
    client.shutdown(socket.SHUT_WR)
    connection = holding.has_heard_the_end()
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    holding.release()
    until(lambda: not holding.connections(), 5, "it is cut off")

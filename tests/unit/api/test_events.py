# SPDX-License-Identifier: Apache-2.0
"""Server-sent events."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fairlead.api import events, protocol
from fairlead.model.views import EventView
from support.api import Serving, UnixConnection, read_all
from support.wait import until


class Stream:
    """An event stream, frame by frame."""

    def __init__(self, response: http.client.HTTPResponse, sock: socket.socket) -> None:
        self.response = response
        self.sock = sock

    def frame(self) -> dict[str, str]:
        """The next frame, as its fields; a comment has the field ''."""
        fields = {}
        while line := self.response.readline().decode().removesuffix("\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
        return fields

    def event_ids(self, number: int) -> list[int]:
        return [int(self.frame()["id"]) for _ in range(number)]


@contextmanager
def stream(daemon: Serving, target: str = "/events", last_id: str | None = None) -> Iterator[Stream]:
    connection = UnixConnection(daemon.socket)
    connection.request("GET", target, headers={"last-event-id": last_id} if last_id is not None else {})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert response.headers["content-type"].startswith("text/event-stream")
    made = Stream(response, connection.sock)
    assert made.frame() == {"retry": "2000"}
    try:
        yield made
    finally:
        response.close()
        connection.close()


def test_a_stream_begins_with_what_happens_from_now_on(daemon: Serving) -> None:
    with stream(daemon) as opened:
        daemon.add_event("server_down", "web/web-1", "two\nlines")
        frame = opened.frame()
    assert (frame["id"], frame["event"]) == ("4", "server_down")
    assert json.loads(frame["data"]) == {
        "id": 4,
        "at": 1_700_000_000.5,
        "kind": "server_down",
        "subject": "web/web-1",
        "message": "two\nlines",
    }


def test_a_stream_resumes(daemon: Serving) -> None:
    with stream(daemon, last_id="1") as opened:
        assert opened.event_ids(2) == [2, 3]
        daemon.add_event("reload", "", "")
        assert opened.event_ids(1) == [4]
    with stream(daemon, "/events?after=2") as opened:
        assert opened.event_ids(2) == [3, 4]
    with stream(daemon, "/events?after=2", last_id="3") as opened:
        assert opened.event_ids(1) == [4]


def test_an_id_of_an_earlier_run_starts_from_the_beginning(daemon: Serving) -> None:
    """Else a client that reconnects to a restarted daemon would wait for id 900."""
    with stream(daemon, last_id="900") as opened:
        assert opened.event_ids(3) == [1, 2, 3]


def test_many_events_come_in_order(daemon: Serving) -> None:
    with stream(daemon, "/events?after=3") as opened:
        for number in range(events.BATCH + 50):
            daemon.facade.add_event("tick", str(number), "")
        daemon.add_event("tick", "last", "")
        assert opened.event_ids(events.BATCH + 51) == list(range(4, events.BATCH + 55))


def test_a_quiet_stream_shows_that_it_lives(daemon: Serving) -> None:
    daemon.server._api._streams._keep_alive_s = 0.01  # type: ignore[union-attr]
    with stream(daemon) as opened:
        assert opened.frame() == {"": "keep-alive"}
        assert opened.frame() == {"": "keep-alive"}


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", "9" * 30])
def test_a_bad_id_is_refused(daemon: Serving, bad: str) -> None:
    status, body, _ = daemon.ask("GET", "/events", headers={"last-event-id": bad})
    assert (status, body["reason"]) == (400, "bad_value")
    assert "Last-Event-ID" in body["detail"]


def test_streams_are_bounded_and_given_back(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 2)
    with stream(daemon), stream(daemon):
        status, body, response = daemon.ask("GET", "/events")
        assert (status, body["reason"]) == (503, "busy")
        assert response.headers["retry-after"] == "5"
        assert daemon.ask("GET", "/healthz")[0] == 200
    until(lambda: not daemon.server._state.connections, 5, "both are gone")
    with stream(daemon):
        pass


def test_a_stop_ends_streams(daemon: Serving) -> None:
    with stream(daemon) as opened:
        daemon.stop()
        assert opened.response.read() == b""


def test_a_client_that_ends_its_direction_ends_its_stream(daemon: Serving) -> None:
    """In order: with the chunk that ends it, else reading it would fail."""
    with stream(daemon) as opened:
        opened.sock.settimeout(5)
        opened.sock.shutdown(socket.SHUT_WR)
        assert opened.response.read() == b""
    until(lambda: not daemon.server._state.connections, 5, "it is closed")


def ask_and_end(daemon: Serving, end: Callable[[socket.socket], object]) -> socket.socket:
    """A client that asks for all events and ends before the server reads, being on its loop."""

    async def ask() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(str(daemon.socket))
        client.sendall(b"GET /events?after=0 HTTP/1.1\r\nhost: x\r\n\r\n")
        end(client)
        return client

    made: socket.socket = daemon.run(ask())
    return made


def test_it_is_told_first_what_is_there(daemon: Serving) -> None:
    for number in range(2 * events.BATCH):
        daemon.facade.add_event("tick", str(number), "")
    with ask_and_end(daemon, lambda client: client.shutdown(socket.SHUT_WR)) as client:
        answer = read_all(client)
    assert answer.count(b"\nevent: ") == 3 + 2 * events.BATCH
    assert answer.endswith(b"\r\n0\r\n\r\n")


def test_one_that_has_gone_is_not_written_to(
    daemon: Serving, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else asyncio would warn of each write."""
    for number in range(5 * events.BATCH):
        daemon.facade.add_event("tick", str(number), "")
    looks: list[int] = []
    look = daemon.facade.events

    def note(after: int, limit: int) -> tuple[EventView, ...]:
        looks.append(after)
        return look(after, limit)

    monkeypatch.setattr(daemon.facade, "events", note)
    ask_and_end(daemon, socket.socket.close)
    until(lambda: looks and not daemon.server._state.tasks, 5, "its stream has begun and ended")
    assert not caplog.records
    assert max(looks) < 2 * events.BATCH


def test_a_stream_that_is_not_read_is_cut_off(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it missed is not kept for it."""
    monkeypatch.setattr(protocol.BoundedProtocol, "drain_s", 0.1)
    with stream(daemon):
        for _ in range(2000):
            daemon.facade.add_event("noise", "", "x" * 2000)
        daemon.add_event("noise", "", "")
        until(lambda: not daemon.server._state.connections, 5, "it is cut off")
    until(lambda: daemon.server._api._streams._open == 0, 5, "its place is free")  # type: ignore[union-attr]

# SPDX-License-Identifier: Apache-2.0
"""Hostile requests: always a well-formed answer or a closed connection, never a 500, and nothing is left behind."""

from __future__ import annotations

import email.parser
import gc
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.api.routes import OPENAPI_PATH, OPERATIONS
from support.api import Serving, read_all, serving
from support.wait import until

SHUT_UP = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("fuzz") / "api.sock") as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(daemon: Serving, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither connections nor requests nor files, and no word in the log about an error."""
    before = open_files()
    complaints: list[object] = []
    daemon.loop.set_exception_handler(lambda _, context: complaints.append(context))
    yield
    assert not complaints
    assert not caplog.get_records("call")
    state = daemon.server._state
    until(lambda: not state.connections and not state.tasks, 10, "connections and requests have ended")
    gc.collect()
    assert open_files() <= before + 1
    assert daemon.ask("GET", "/healthz")[:2] == (200, "ok\n")
    assert len(daemon.ask("GET", "/v1/servers")[1]) == 3


def open_files() -> int:
    return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))


def exchange(daemon: Serving, octets: bytes) -> bytes:
    """What comes back until the server closes; our side closes first."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(daemon.socket))
        try:
            client.sendall(octets)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return read_all(client)


def answers(octets: bytes, methods: list[str]) -> list[int]:
    """The statuses of the answers in ``octets``, each checked to be complete and well formed."""
    found: list[int] = []
    while octets:
        head, separator, octets = octets.partition(b"\r\n\r\n")
        assert separator, head
        line, _, fields = head.partition(b"\r\n")
        version, status, _ = line.split(b" ", 2)
        assert version == b"HTTP/1.1"
        headers = email.parser.BytesHeaderParser().parsebytes(fields)
        is_head = len(found) < len(methods) and methods[len(found)] == "HEAD"
        length = 0 if is_head else int(headers["content-length"])
        body, octets = octets[:length], octets[length:]
        assert len(body) == length
        kind = headers["content-type"]
        if int(status) >= 400:
            assert kind == "application/problem+json", (status, kind)
        if "json" in kind and body:
            decoded = json.loads(body)
            if int(status) >= 400:
                assert decoded["status"] == int(status)
                assert decoded["detail"]
        assert b"Traceback" not in body
        found.append(int(status))
    return found


PATHS = [operation.path.replace("{name}", "web").replace("{key:path}", "web/web-1") for operation in OPERATIONS]
targets = st.one_of(
    st.sampled_from([path for path in PATHS if path != "/events"] + [OPENAPI_PATH]),
    st.builds(lambda tail: "/v1/servers/" + tail, st.text(st.sampled_from("./%ab21?#&=;:[]@"), max_size=20)),
    st.builds(lambda tail: "/" + tail, st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)),
)
values = st.one_of(
    st.sampled_from(["1", "0", "-1", "true", "web", "%00", "%ff", "9" * 30, "+1", ""]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, blacklist_characters="#"), max_size=12),
)
queries = st.lists(
    st.tuples(st.sampled_from(["after", "limit", "dry_run", "service", "server", "cursor", "x", ""]), values),
    max_size=3,
)
methods = st.one_of(
    st.sampled_from(["GET", "HEAD", "PATCH", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"]),
    st.text(st.sampled_from("ABCXYZ!#-_"), min_size=1, max_size=8),
)
json_values: st.SearchStrategy[object] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["drain"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
bodies = st.one_of(
    st.none(),
    st.binary(max_size=60),
    st.builds(lambda value: json.dumps(value).encode(), json_values),
    st.builds(
        lambda change: json.dumps(change).encode(),
        st.dictionaries(st.sampled_from(["admin", "weight", "key"]), json_values, max_size=3),
    ),
    st.builds(lambda size: b"[" * size, st.integers(60_000, 70_000)),
)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            ["if-match", "last-event-id", "content-type", "accept", "expect", "upgrade", "connection", "x"]
        ),
        st.one_of(
            st.sampled_from(["*", '"', "100-continue", "websocket", "close", "application/json", "Upgrade", "W/*"]),
            st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20).map(str.strip),
        ),
    ),
    max_size=4,
)


@SHUT_UP
@given(st.data())
def test_any_request_gets_an_answer(daemon: Serving, data: st.DataObject) -> None:
    asked = []
    octets = b""
    for _ in range(data.draw(st.integers(1, 3))):
        method, target, query = data.draw(methods), data.draw(targets), data.draw(queries)
        body, fields = data.draw(bodies), data.draw(headers)
        if target.startswith("/events"):
            continue
        if query:
            target += "?" + "&".join(f"{name}={value}" for name, value in query)
        octets += f"{method} {target} HTTP/1.1\r\nhost: x\r\n".encode()
        octets += "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
        octets += b"\r\n" if body is None else b"content-length: %d\r\n\r\n" % len(body) + body
        asked.append(method)
    found = answers(exchange(daemon, octets).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""), asked)
    assert not asked or found, octets
    assert 500 not in found, octets
    assert 503 not in found, octets


pieces = (
    *(
        b"GET ",
        b"/v1/status",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"host: x",
        b": ",
        b"0",
        b"5",
        b"\x00",
        b"\xff",
        b" ",
        b"{}",
    ),
    *(b"transfer-encoding: chunked", b"content-length: ", b"\r\n\r\n", b"GET /v1/status HTTP/1.1\r\nhost: x\r\n"),
    b"PATCH /v1/servers/web/web-1 HTTP/1.1\r\nhost: x\r\n",
    b"POST /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
)
garbage = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(pieces), max_size=14).map(b"".join))


@SHUT_UP
@given(garbage)
def test_garbage_gets_an_answer_or_a_closed_connection(daemon: Serving, octets: bytes) -> None:
    found = answers(exchange(daemon, octets), [])
    assert all(status < 500 or status == 501 for status in found)  # 501: a transfer-encoding that is not known


@SHUT_UP
@given(st.integers(0, 200), st.sampled_from(PATHS))
def test_clients_that_leave_early(daemon: Serving, sent: int, target: str) -> None:
    """Some without reading, some in the middle of a request, some in the middle of a stream."""
    octets = f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode() * 3
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(octets[:sent])


@SHUT_UP
@given(st.dictionaries(st.sampled_from(["admin", "weight", "key"]), json_values, max_size=3))
def test_only_sound_changes_reach_the_engine(daemon: Serving, change: dict[str, object]) -> None:
    daemon.facade.writes.clear()
    status, _, _ = daemon.ask("PATCH", "/v1/servers/web/web-1", change)
    admin, weight = change.get("admin"), change.get("weight")
    sound = (
        change.keys() <= {"admin", "weight"}
        and (admin is None or admin in ("ready", "drain", "maint"))
        and (weight is None or (type(weight) is int and 0 <= weight <= 65535))
        and (admin is not None or weight is not None)
    )
    assert status == (200 if sound else 400)
    assert len(daemon.facade.writes) == int(sound)

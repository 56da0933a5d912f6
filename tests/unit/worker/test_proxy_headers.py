# SPDX-License-Identifier: Apache-2.0
"""PROXY headers from clients and to servers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fairlead.model.reasons import RejectReason
from fairlead.protocols.proxy_header import (
    AUTHORITY,
    SIGNATURE_2,
    UNIQUE_ID,
    Kind,
    decode,
    version_1,
    version_2,
    version_2_local,
)
from support.models import endpoint
from support.peers import Datagrams, Server, read_all, read_exactly, was_reset
from support.wait import until
from support.worker import Worker

ACCEPT: Any = {"flags": 2}
FAR = (endpoint("198.51.100.7:4321"), endpoint("203.0.113.9:443"))
FAR_6 = (endpoint("[2001:db8::7]:4321"), endpoint("[2001:db8::9]:443"))


def at(where: tuple[Any, ...]) -> str:
    return str(endpoint(f"{where[0]}:{where[1]}"))


def header_of(s: socket.socket) -> tuple[Any, bytes]:
    """The header a server gets, and what came behind it at once."""
    data = b""
    while (header := decode(data) if data else None) is None:
        part = s.recv(65536)
        assert part
        data += part
    return header, data[header.length :]


@pytest.mark.parametrize("version", [1, 2])
def test_the_server_learns_both_ends_with_the_first_bytes(worker: Worker, server: Server, version: int) -> None:
    where = worker.simple([server], send_proxy=version)
    client = worker.dial(where)
    client.sendall(b"hello")
    other = server.accept()
    until(lambda: other.recv(65536, socket.MSG_PEEK).endswith(b"hello"), 5, "header and data arrive")
    header, rest = header_of(other)
    assert (str(header.source), str(header.destination)) == (at(client.getsockname()), at(where))
    assert rest == b"hello"
    other.sendall(b"answer")
    assert client.recv(100) == b"answer"
    [flow] = worker.flows()
    assert (flow.bytes_in, flow.bytes_out) == (5, 6)


@pytest.mark.parametrize("version", [1, 2])
def test_a_server_that_speaks_first_gets_its_header_before(worker: Worker, server: Server, version: int) -> None:
    client, other = worker.pair(worker.simple([server], send_proxy=version), server)
    header, rest = header_of(other)
    assert (str(header.source), rest) == (at(client.getsockname()), b"")
    other.sendall(b"220 welcome")
    assert client.recv(100) == b"220 welcome"


def test_a_client_that_ends_at_once_is_still_introduced(worker: Worker, server: Server) -> None:
    where = worker.simple([server], send_proxy=2)
    client = worker.dial(where)
    client.shutdown(socket.SHUT_WR)
    other = server.accept()
    header, rest = header_of(other)
    assert (str(header.source), rest, read_all(other)) == (at(client.getsockname()), b"", b"")


@pytest.mark.parametrize(
    "head",
    [
        version_1(*FAR), version_2(*FAR), version_2(*FAR, checksum=True), version_1(*FAR_6),
        version_2(*FAR_6, ((0xEE, b"x" * 3000),)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("send", [1, 2])
def test_what_a_client_tells_is_believed_and_passed_on(worker: Worker, server: Server, head: bytes, send: int) -> None:
    told = decode(head)
    assert told is not None
    where = worker.simple([server], send_proxy=send, **ACCEPT)
    client = worker.dial(where)
    client.sendall(head + b"payload")
    other = server.accept()
    until(lambda: other.recv(65536, socket.MSG_PEEK).endswith(b"payload"), 5, "header and data arrive")
    header, rest = header_of(other)
    assert (header.source, header.destination, rest) == (told.source, told.destination, b"payload")
    [flow] = worker.flows()
    assert str(endpoint(at(flow.client))) == str(told.source)
    assert flow.bytes_in == len(b"payload")
    client.close()
    assert read_all(other) == b""


def test_a_header_in_pieces(worker: Worker, server: Server) -> None:
    where = worker.simple([server], **ACCEPT)
    client = worker.dial(where)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in version_2(*FAR, ((UNIQUE_ID, b"1234"),)):
        client.sendall(bytes([byte]))
        time.sleep(0.002)
    client.sendall(b"then data")
    assert read_exactly(server.accept(), 9) == b"then data"


def test_authority_and_unique_id_travel_on(worker: Worker, server: Server) -> None:
    where = worker.simple([server], send_proxy=2, **ACCEPT)
    extras = ((0xEE, b"not this"), (AUTHORITY, b"example.org"), (4, b"\0\0"), (UNIQUE_ID, b"id-1"))
    worker.dial(where).sendall(version_2(*FAR, extras, checksum=True))
    header, _ = header_of(server.accept())
    assert header.tlvs == ((AUTHORITY, b"example.org"), (UNIQUE_ID, b"id-1"))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (version_2_local(), Kind.LOCAL),
        (SIGNATURE_2 + b"\x20\x11\0\x04junk", Kind.LOCAL),
        (SIGNATURE_2 + b"\x21\0\0\x04junk", Kind.UNKNOWN),
        (b"PROXY UNKNOWN\r\n", Kind.UNKNOWN),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_local_and_unknown_are_legal_end_to_end(
    worker: Worker, server: Server, head: bytes, kind: Kind, version: int
) -> None:
    where = worker.simple([server], send_proxy=version, **ACCEPT)
    client = worker.dial(where)
    client.sendall(head + b"x")
    other = server.accept()
    until(lambda: other.recv(65536, socket.MSG_PEEK).endswith(b"x"), 5, "all arrives")
    [flow] = worker.flows()
    assert (flow.client, flow.vip) == (client.getsockname(), where)
    header, rest = header_of(other)
    assert (header.kind, rest) == (kind if version == 2 else Kind.UNKNOWN, b"x")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.0\r\n\r\n", version_2(*FAR)[:12] + b"\x31", b"\0"])
def test_what_is_no_header_is_refused_and_counted(worker: Worker, server: Server, data: bytes) -> None:
    where = worker.simple([server], **ACCEPT)
    client = worker.dial(where)
    client.sendall(data)
    assert was_reset(client)
    assert worker.rejected(RejectReason.PROXY_MALFORMED) == 1
    worker.settled()


def test_a_header_that_ends_within_is_refused_and_silence_is_not_counted(worker: Worker, server: Server) -> None:
    where = worker.simple([server], **ACCEPT)
    client = worker.dial(where)
    client.sendall(version_2(*FAR)[:20])
    client.shutdown(socket.SHUT_WR)
    assert was_reset(client)
    worker.dial(where).close()
    until(lambda: worker.flows() == [], 5, "all ended")
    assert worker.rejected(RejectReason.PROXY_MALFORMED) == 1
    worker.settled()


def test_f38_who_says_nothing_is_gone_after_the_deadline(worker: Worker, server: Server) -> None:
    where = worker.simple([server], max_connections=10, **ACCEPT)
    silent = [worker.dial(where) for _ in range(9)]
    slow = worker.dial(where)
    slow.sendall(version_2(*FAR)[:20])
    assert worker.refuses(where)
    before = time.monotonic()
    assert all(was_reset(s) for s in [*silent, slow])
    assert time.monotonic() - before < 5
    assert worker.rejected(RejectReason.PROXY_TIMEOUT) == 10
    worker.settled()


def test_lists_and_limits_hold_for_the_address_in_the_header(worker: Worker, server: Server) -> None:
    ranges = [("198.51.100.0", "198.51.100.255")]
    where = worker.simple([server], flags=3, ranges=ranges, connections_per_source=1)
    kept = worker.dial(where)
    kept.sendall(version_2(*FAR))
    server.accept()
    second = worker.dial(where)
    second.sendall(version_1(*FAR))
    assert was_reset(second)
    foreign = worker.dial(where)
    foreign.sendall(version_2(endpoint("192.0.2.1:1"), FAR[1]))
    assert was_reset(foreign)
    assert worker.rejected(RejectReason.SOURCE_CONNECTIONS) == 1
    assert worker.rejected(RejectReason.DENIED) == 1
    kept.close()
    server.accepted[0].close()
    worker.settled()


def test_retries_send_the_header_to_the_server_that_answers(worker: Worker, server: Server) -> None:
    with Server() as dead:
        pass
    where = worker.simple([server], send_proxy=2)
    worker.server(2, dead.where)
    worker.table(1, [2, 1])
    for _ in range(4):
        client = worker.dial(where)
        client.sendall(b"x")
        header, _ = header_of(server.accept())
        assert str(header.source) == at(client.getsockname())


@pytest.fixture
def servers() -> Iterator[list[Datagrams]]:
    with Datagrams() as one:
        yield [one]


def test_every_datagram_has_a_header(worker: Worker, servers: list[Datagrams]) -> None:
    where = worker.simple(servers, send_proxy=2)
    with Datagrams() as client:
        for word in (b"one", b"two"):
            client.send(word, where)
            data = servers[0].receive()
            header = decode(data, datagram=True)
            assert header is not None
            assert (str(header.source), str(header.destination)) == (at(client.where), at(where))
            assert data[header.length :] == word
            servers[0].answer(word.upper())
            assert client.receive() == word.upper()


def test_datagrams_of_many_clients_through_one_proxy(worker: Worker, servers: list[Datagrams]) -> None:
    where = worker.simple(servers, send_proxy=2, **ACCEPT)
    with Datagrams() as proxy:
        homes: dict[int, tuple[str, int]] = {}
        for number in (1, 2, 1, 2):
            source = endpoint(f"198.51.100.{number}:53")
            proxy.send(version_2(source, FAR[1], datagram=True) + b"q%d" % number, where)
            data = servers[0].receive()
            header = decode(data, datagram=True)
            assert header is not None
            assert (header.source, header.destination, data[header.length :]) == (source, FAR[1], b"q%d" % number)
            assert homes.setdefault(number, servers[0].last) == servers[0].last
            servers[0].answer(b"a%d" % number)
            assert proxy.receive() == b"a%d" % number
            assert proxy.last == where
        assert homes[1] != homes[2]
        proxy.send(version_2_local() + b"local", where)
        assert servers[0].receive() == version_2_local() + b"local"
        for wrong in (b"", b"q", version_1(*FAR) + b"q", version_2(*FAR, datagram=True)[:-1]):
            proxy.send(wrong, where)
        until(lambda: worker.rejected(RejectReason.PROXY_MALFORMED) == 4, 5, "they are counted")
    assert not servers[0].waiting()

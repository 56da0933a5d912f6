# SPDX-License-Identifier: Apache-2.0
"""Fragments, in order and out of order, with real traffic (F22)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.crossing import Crossing, Daemon, crossing
from support.packets import UDP, Ends, ends, fragment6, frame, ipv4, ipv6, udp
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]
TEXT = """
services:
  echo: {listen: 10.9.0.100:7, protocol: udp, pool: echo, forwarding: nat}
  echo6: {listen: "[fd00:9::100]:7", protocol: udp, pool: echo6, forwarding: nat}
pools:
  echo: {servers: ["10.0.1.10:7", "10.0.1.11:7"], health: none}
  echo6: {servers: ["[fd00:1::a]:7", "[fd00:1::b]:7"], health: none}
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
  fd00:9::100/64: {interface: eth0, owner: static}
xdp: {flow_table: 4096}
"""
PIECE = 1200
WAYS = {4: ("10.9.0.2:{}", "10.9.0.100:7"), 6: ("[fd00:9::2]:{}", "[fd00:9::100]:7")}


@pytest.fixture(scope="module")
def bed(directory: Path) -> Iterator[Crossing]:
    with crossing(directory) as made:
        for number in (10, 11):
            server = made.add_server(f"s{number}", number)
            for at in ("0.0.0.0", "::"):
                server.echo(directory, at, 7)
        made.ready()
        with Daemon(made.balancer, directory, TEXT):
            yield made


def pieces(e: Ends, payload: bytes, identity: int) -> list[bytes]:
    """The fragments of a datagram, in order."""
    datagram = udp(e, payload)
    found = []
    for at in range(0, len(datagram), PIECE):
        part, more = datagram[at : at + PIECE], at + PIECE < len(datagram)
        if e.source.version == 4:
            word = (0x2000 if more else 0) | at // 8
            found.append(ipv4(e.source, e.destination, UDP, part, identity=identity, fragment=word))
        else:
            head = fragment6(UDP, at, more=more, identity=identity)
            found.append(ipv6(e.source, e.destination, 44, head + part))
    return found


def ask(bed: Crossing, family: int, port: int, order: Sequence[int], wait_s: float = 3.0) -> tuple[bytes, bytes]:
    """Send 4 kB in fragments in this order; what was sent, and what came back (empty: nothing)."""
    source, vip = WAYS[family]
    e = ends(source.format(port), vip)
    payload = os.urandom(4096)
    parts = pieces(e, payload, port)
    assert len(parts) == 4
    macs: Any = {
        "source": bytes.fromhex(bed.client.mac().replace(":", "")),
        "destination": bytes.fromhex(bed.balancer.mac().replace(":", "")),
    }
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with (
        bed.client.inside(),
        socket.socket(kind, socket.SOCK_DGRAM) as hearing,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
    ):
        hearing.bind(("", port))
        hearing.settimeout(wait_s)
        wire.bind(("eth0", 0))
        for number in order:
            wire.send(frame(parts[number], **macs))
        try:
            return payload, hearing.recv(65535)
        except TimeoutError:
            return payload, b""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 3, 2, 1)], ids=str)
def test_f22_fragments_that_follow_their_first_one_are_put_together(
    bed: Crossing, family: int, order: tuple[int, ...]
) -> None:
    before = bed.counters()
    for port in range(30_000, 30_010):
        ask(bed, family, port, (0, 1, 2, 3), 0.5)  # neighbours are resolved
        sent, got = ask(bed, family, port, order)
        assert got.partition(b" ")[2] == sent, bed.counters()
    after = bed.counters()
    assert after["FRAGMENT_FIRST"] - before.get("FRAGMENT_FIRST", 0) >= 20
    assert after.get("DROP_ORPHAN", 0) == before.get("DROP_ORPHAN", 0)


@pytest.mark.parametrize("family", [4, 6])
def test_f22_a_fragment_before_its_first_one_is_dropped_by_name(bed: Crossing, family: int) -> None:
    """Only the first one says for which port, and so for which server, the others are."""
    ask(bed, family, 30_000, (0, 1, 2, 3), 0.5)
    before = bed.counters().get("DROP_ORPHAN", 0)
    assert ask(bed, family, 30_100, (1, 2, 3, 0), 0.5)[1] == b""
    until(lambda: bed.counters().get("DROP_ORPHAN", 0) == before + 3, 10, "they are counted")
    sent, got = ask(bed, family, 30_101, (0, 1, 2, 3))
    assert got.partition(b" ")[2] == sent

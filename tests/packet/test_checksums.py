# SPDX-License-Identifier: Apache-2.0
"""Checksums, for all 65 536 values a field can have."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from packet.world import World
from support.oracle.headers import updated
from support.packets import ICMP, TCP, UDP, Ends, ends, frame, icmp, ipv4, tcp_frame, udp_frame
from support.xdp import Bed

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

CLIENT, VIP, SERVER = "192.0.2.1:1000", "10.0.0.100:80", "10.0.1.10:8080"
IP_CHECK, TCP_CHECK, UDP_CHECK, ICMP_CHECK = 14 + 10, 34 + 16, 34 + 6, 34 + 2


def addresses(e: Ends) -> bytes:
    return e.source.packed + e.destination.packed


def ports(e: Ends) -> bytes:
    return struct.pack(">HH", e.sport, e.dport)


BEFORE, AFTER = ends(CLIENT, VIP), ends(CLIENT, SERVER)
TRANSPORT = (addresses(BEFORE) + ports(BEFORE), addresses(AFTER) + ports(AFTER))
HEADER = (addresses(BEFORE) + bytes((64, 6)), addresses(AFTER) + bytes((63, 6)))


@pytest.fixture
def world(bed: Bed) -> World:
    world = World(bed)
    world.forget()
    world.server(1, SERVER)
    for service, protocol in ((1, TCP), (2, UDP)):
        world.service(service, "nat", (1,), (0,))
        world.listen(service, "10.0.0.100", protocol, 80)
    for template in (tcp_frame(CLIENT, VIP), udp_frame(CLIENT, VIP, bytes(12))):
        for _ in range(2):
            world.send(template)
    return world


def sweep(world: World, template: bytes, place: int, expected: Callable[[int], int]) -> None:
    """Send the template with every value at ``place``, and compare what stands there afterwards."""
    changed = bytearray(template)
    wrong = []
    for value in range(65536):
        struct.pack_into(">H", changed, place, value)
        out = world.bed.send(bytes(changed)).packet
        (got,) = struct.unpack_from(">H", out, place)
        if got != expected(value):
            wrong.append((hex(value), hex(got), hex(expected(value))))
    assert not wrong, (len(wrong), wrong[:5])


def test_tcp(world: World) -> None:
    sweep(world, tcp_frame(CLIENT, VIP), TCP_CHECK, lambda value: updated(value, *TRANSPORT))


def test_udp_keeps_no_checksum_and_never_makes_one_of_zero(world: World) -> None:
    def expected(value: int) -> int:
        return (updated(value, *TRANSPORT) or 0xFFFF) if value else 0

    sweep(world, udp_frame(CLIENT, VIP, bytes(12)), UDP_CHECK, expected)


def test_ip_header(world: World) -> None:
    sweep(world, tcp_frame(CLIENT, VIP), IP_CHECK, lambda value: updated(value, *HEADER))


def test_echo(world: World) -> None:
    source, vip = BEFORE.source, BEFORE.destination
    template = frame(ipv4(source, vip, ICMP, icmp(8, 0, bytes(4), bytes(20))))
    sweep(world, template, ICMP_CHECK, lambda value: updated(value, bytes((8, 0)), bytes((0, 0))))

# SPDX-License-Identifier: Apache-2.0
"""Packets whose checksum their sender left to the hardware (F23): they leave with one that is right."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp.abi import Counter
from packet.world import World
from support.oracle.nouns import DROP, PASS, REDIRECT, Reply
from support.packets import (
    ACK,
    CLIENT_MAC,
    SYN,
    TCP,
    UDP,
    Ends,
    checksum,
    ends,
    frame,
    ipv4,
    packet,
    pseudo,
    tcp,
    udp,
    unfinished,
)
from support.xdp import INSIDE, NARROW, OUTSIDE, Port, ip, open_bed

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

CLIENT = {4: "192.0.2.1:1000", 6: "[2001:db8:c::1]:1000"}
VIP = {4: "10.0.0.100:{}", 6: "[2001:db8::100]:{}"}
SERVER = {4: "10.0.1.10:8080", 6: "[2001:db8:1::10]:8080"}
SIZES = (*range(140), 255, 256, 257, 511, 512, 1000, 1001, 1002, 1003)


@pytest.fixture(scope="module", params=[1, 0], ids=["fast", "general"])
def world(namespace: None, request: pytest.FixtureRequest) -> Iterator[World]:
    with open_bed(fast_path=request.param, hop_ttl=1000 * request.param, unfinished_sums=1) as bed:
        made = World(bed, unfinished=True)
        made.snat("10.0.1.1", "2001:db8:1::1")
        for number, family in ((1, 4), (2, 6)):
            made.server(number, SERVER[family])
            made.server(
                10 + number, SERVER[family].replace("8080", "0"), source="10.0.1.1" if family == 4 else "2001:db8:1::1"
            )
            for n, protocol in enumerate((TCP, UDP)):
                for port, (forwarding, server) in enumerate(
                    (("nat", number), ("fullnat", number), ("dsr", 10 + number), ("tunnel", 10 + number)), 80
                ):
                    service = port * 10 + number * 2 + n
                    made.service(service, forwarding, (server,), (0,))
                    made.listen(service, "10.0.0.100" if family == 4 else "2001:db8::100", protocol, port)
                vip = ip_address("10.0.0.100" if family == 4 else "2001:db8::100")
                made.reply(SERVER[family], protocol, Reply(vip, 80, 800 + number * 2 + n, number))
        yield made


def segment(e: Ends, protocol: int, payload: bytes, flags: int = ACK) -> bytes:
    return tcp(e, flags, payload) if protocol == TCP else udp(e, payload)


def sent(world: World, e: Ends, protocol: int, payload: bytes, port: Port, *, finished: bool) -> bytes:
    """What both forwarders make of it: the transport part."""
    raw = segment(e, protocol, payload)
    out = world.both(frame(packet(e, protocol, raw if finished else unfinished(e, protocol, raw))), port)
    assert out.verdict == REDIRECT, out
    return out.frame


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("forwarding", [80, 81, 82, 83], ids=["nat", "fullnat", "dsr", "tunnel"])
def test_f23_every_length_leaves_with_the_checksum_that_a_finished_one_would_have(
    world: World, forwarding: int, family: int, protocol: int
) -> None:
    world.forget()
    e = ends(CLIENT[family], VIP[family].format(forwarding))
    world.both(frame(packet(e, protocol, segment(e, protocol, b"", SYN))))
    for size in SIZES:
        payload = bytes(n * 7 & 255 for n in range(size))
        left = sent(world, e, protocol, payload, OUTSIDE, finished=False)
        assert left == sent(world, e, protocol, payload, OUTSIDE, finished=True), size


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("family", [4, 6])
def test_f23_replies_leave_with_the_right_checksum(world: World, family: int, protocol: int) -> None:
    e = ends(SERVER[family], CLIENT[family])
    for size in SIZES:
        payload = bytes(n * 11 & 255 for n in range(size))
        left = sent(world, e, protocol, payload, INSIDE, finished=False)
        assert left == sent(world, e, protocol, payload, INSIDE, finished=True), size


def looking_unfinished(e: Ends, protocol: int) -> bytes:
    """A finished segment whose checksum happens to be the sum of its pseudo header."""
    plain = segment(e, protocol, b"data\0\0")
    wanted = 0xFFFF - checksum(pseudo(e.source, e.destination, protocol, len(plain)))
    for filler in range(65536):
        raw = segment(e, protocol, b"data" + filler.to_bytes(2, "big"))
        at = 16 if protocol == TCP else 6
        if raw[at : at + 2] == wanted.to_bytes(2, "big"):
            return raw
    raise AssertionError("there is none")


@pytest.mark.parametrize("port", [OUTSIDE, NARROW], ids=["native", "generic"])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_f23_a_right_checksum_that_looks_unfinished_stays_right(world: World, protocol: int, port: Port) -> None:
    world.forget()
    e = ends(CLIENT[4], VIP[4].format(80))
    world.both(frame(packet(e, protocol, segment(e, protocol, b"", SYN))), port)
    raw = looking_unfinished(e, protocol)
    assert raw == unfinished(e, protocol, raw)
    out = world.both(frame(packet(e, protocol, raw)), port).frame[34:]
    after = ends(CLIENT[4], SERVER[4])
    assert checksum(pseudo(after.source, after.destination, protocol, len(out)) + out) == 0


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("forwarding", [80, 81, 82, 83], ids=["nat", "fullnat", "dsr", "tunnel"])
def test_f23_in_generic_mode_the_kernel_finishes_what_we_hand_on(world: World, protocol: int, forwarding: int) -> None:
    """The packet's record says "unfinished" still, so the field must hold the sum of the new pseudo header."""
    world.forget()
    e = ends(CLIENT[4], VIP[4].format(forwarding))
    world.both(frame(packet(e, protocol, segment(e, protocol, b"", SYN))), NARROW)
    raw = unfinished(e, protocol, segment(e, protocol, b"some data"))
    out = world.both(frame(packet(e, protocol, raw)), NARROW).frame[34 + 20 * (forwarding == 83) :]
    flow = ends(CLIENT[4], SERVER[4]) if forwarding == 80 else e
    if forwarding == 81:
        flow = Ends(ip_address("10.0.1.1"), int.from_bytes(out[:2], "big"), ip_address("10.0.1.10"), 8080)
    assert out == unfinished(flow, protocol, segment(flow, protocol, b"some data"))


def test_f23_the_stack_finishes_what_it_gets_to_resolve_a_neighbour(world: World) -> None:
    world.forget()
    world.server(7, "10.0.1.200:8080")  # never resolved
    world.service(7, "nat", (7,), (0,))
    world.listen(7, "10.0.0.100", UDP, 90)
    e = ends(CLIENT[4], "10.0.0.100:90")
    out = world.both(frame(packet(e, UDP, unfinished(e, UDP, udp(e, b"some data")))))
    assert (out.verdict, out.counter) == (PASS, Counter.PASS_UNRESOLVED)
    after = ends(CLIENT[4], "10.0.1.200:8080")
    assert out.frame[34:] == unfinished(after, UDP, udp(after, b"some data"))


def test_f23_what_is_larger_than_its_interface_lets_in_was_merged_and_is_dropped(world: World) -> None:
    """Not answered as too big: each of the packets that it was made of was small enough."""
    world.forget()
    e = ends(CLIENT[4], VIP[4].format(80))
    world.both(frame(packet(e, TCP, tcp(e, SYN))))
    large = packet(e, TCP, tcp(e, ACK, bytes(1461)))
    out = world.both(frame(large))
    assert (out.verdict, out.counter) == (DROP, Counter.DROP_MERGED)
    fits = ipv4(e.source, e.destination, TCP, tcp(e, ACK, bytes(1460)), fragment=0x4000)
    assert world.both(frame(fits, source=CLIENT_MAC)).counter is None


@pytest.fixture
def jumbo(namespace: None) -> Iterator[World]:
    """Frames may have several buffers, of which the program reads the first alone; the inside takes long ones."""
    ip("link", "set", INSIDE.name, "mtu", "9000")
    try:
        with open_bed(multi_buffer=True, unfinished_sums=1) as bed:
            made = World(bed)
            for number, address in ((1, "10.0.1.10:8080"), (2, "10.0.1.200:8080")):  # the second is never resolved
                made.server(number, address)
                made.service(number, "nat", (number,), (0,))
                for protocol in (TCP, UDP):
                    made.listen(number, "10.0.0.100", protocol, 79 + number)
            yield made
    finally:
        ip("link", "set", INSIDE.name, "mtu", str(INSIDE.mtu))


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("port", [80, 81], ids=["to a server", "to the stack, which resolves it"])
def test_f23_what_is_too_long_to_be_summed_up_is_dropped_by_name(jumbo: World, port: int, protocol: int) -> None:
    """A finished one of the same length goes on, for its checksum is changed and not made."""
    e = ends(CLIENT[4], VIP[4].format(port))
    for size, fate in ((3000, None), (6000, Counter.DROP_CHECKSUM)):
        raw = segment(e, protocol, bytes(size), SYN)
        resolving = Counter.PASS_UNRESOLVED if port == 81 else None
        assert jumbo.send(frame(packet(e, protocol, raw))).counter is resolving, size
        left = jumbo.send(frame(packet(e, protocol, unfinished(e, protocol, raw))))
        assert left.counter is (fate or resolving), size
        assert left.verdict == (DROP if fate else PASS if resolving else REDIRECT), size

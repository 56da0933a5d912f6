# SPDX-License-Identifier: Apache-2.0
"""What rows of packet tests are made of: services, the packets that they meet, and those that are to come out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from fairlead.dataplane.xdp.abi import Counter
from packet.world import World
from support.oracle.nouns import Reply
from support.packets import (
    ACK,
    CLIENT_MAC,
    ICMP,
    ICMP6,
    NODE_MAC,
    TCP,
    UDP,
    Ends,
    ends,
    fragment6,
    frame,
    icmp,
    ipv4,
    ipv6,
    packet,
    tcp,
    udp,
)
from support.xdp import INSIDE, OUTSIDE, Port

C4, V4, S4 = "192.0.2.1:1000", "10.0.0.100:80", "10.0.1.10:8080"
C6, V6, S6 = "[2001:db8:c::1]:1000", "[2001:db8::100]:80", "[2001:db8:1::10]:8080"
IN_MAC = bytes.fromhex(INSIDE.mac.replace(":", ""))
OUT_MAC = bytes.fromhex(OUTSIDE.mac.replace(":", ""))
SERVER4, SERVER6 = bytes.fromhex("020000000b0a"), bytes.fromhex("020000000d10")


@dataclass(frozen=True)
class Row:
    """One packet in, one packet out."""

    name: str
    given: bytes
    verdict: int
    out: bytes | None  # None: unchanged
    counter: Counter | None = None
    port: Port = OUTSIDE
    before: tuple[tuple[bytes, Port], ...] = ()  # packets sent first
    any_label: bool = False  # the flow label may be any


def to_server(ip: bytes, server: bytes = SERVER4, tags: tuple[int, ...] = ()) -> bytes:
    """A frame that goes on to a server."""
    return frame(ip, source=IN_MAC, destination=server, tags=tags)


def to_client(ip: bytes) -> bytes:
    """A frame that goes on to a client."""
    return frame(ip, source=OUT_MAC, destination=CLIENT_MAC)


def answered(ip: bytes) -> bytes:
    """A frame that this node sends back itself."""
    return frame(ip, source=NODE_MAC, destination=CLIENT_MAC)


def tcp_packet(source: str, destination: str, flags: int = ACK, payload: bytes = b"", **values: int) -> bytes:
    """An IP packet with a TCP segment."""
    e = ends(source, destination)
    return packet(e, TCP, tcp(e, flags, payload), **values)


def udp_packet(source: str, destination: str, payload: bytes = b"", **values: int) -> bytes:
    """An IP packet with a UDP datagram."""
    e = ends(source, destination)
    return packet(e, UDP, udp(e, payload), **values)


def tunnelled4(inner: bytes, server: str = "10.0.1.10", protocol: int = 4, tos: int = 0) -> bytes:
    """A packet in a tunnel over IPv4."""
    return ipv4(ip_address("10.0.1.1"), ip_address(server), protocol, inner, tos=tos)


def error4(
    quote: bytes, source: str, to: str, kind: tuple[int, int] = (3, 4), mtu: int = 1400, *, ttl: int = 64
) -> bytes:
    """An ICMP error."""
    message = icmp(*kind, struct.pack(">I", mtu), quote)
    return ipv4(ip_address(source), ip_address(to), ICMP, message, ttl=ttl)


def error6(
    quote: bytes, source: str, to: str, *, kind: tuple[int, int] = (2, 0), mtu: int = 1400, hops: int = 64
) -> bytes:
    """An ICMPv6 error."""
    e = Ends(ip_address(source), 0, ip_address(to), 0)
    return ipv6(e.source, e.destination, ICMP6, icmp(*kind, struct.pack(">I", mtu), quote, e), hops=hops)


def reset(source: str, destination: str, flags: int, seq: int, ack: int) -> bytes:
    """An IP packet with an RST."""
    e = ends(source, destination)
    return packet(e, TCP, tcp(e, flags, seq=seq, ack=ack, window=0))


def pieces4(source: str, destination: str, *, ttl: int = 64) -> tuple[bytes, bytes]:
    """A UDP datagram of 40 bytes in two IPv4 fragments."""
    e = ends(source, destination)
    datagram = udp(e, bytes(range(40)))
    first = ipv4(e.source, e.destination, UDP, datagram[:24], ttl=ttl, identity=77, fragment=0x2000)
    return first, ipv4(e.source, e.destination, UDP, datagram[24:], ttl=ttl, identity=77, fragment=3)


def pieces6(source: str, destination: str, *, hops: int = 64) -> tuple[bytes, bytes]:
    """The same in IPv6."""
    e = ends(source, destination)
    datagram = udp(e, bytes(range(40)))
    first = fragment6(UDP, 0, more=True, identity=77) + datagram[:24]
    second = fragment6(UDP, 24, more=False, identity=77) + datagram[24:]
    return ipv6(e.source, e.destination, 44, first, hops=hops), ipv6(e.source, e.destination, 44, second, hops=hops)


def furnish(world: World) -> None:
    """Services of every kind at ports 80 to 93 of 10.0.0.100 and 2001:db8::100."""
    world.snat("10.0.1.1", "2001:db8:1::1", ports=(5000, 5999))
    world.server(1, S4)
    world.server(2, S6)
    world.server(3, "10.0.1.10:0", source="10.0.1.1")
    world.server(4, "[2001:db8:1::10]:0", source="2001:db8:1::1")
    world.server(5, "10.0.1.200:8080")  # never resolved
    world.server(6, "10.9.0.5:0")  # behind a router
    world.server(7, "10.0.2.10:0", source="10.0.2.1")
    world.server(8, "10.0.1.13:8080", ambiguous=True)
    world.server(9, "192.0.2.1:8080")
    for base, protocol in ((0, TCP), (50, UDP)):
        plan = {80: ("nat", 1, 2), 81: ("fullnat", 1, 2), 82: ("dsr", 3, 4), 83: ("tunnel", 3, 4), 84: ("tunnel", 4, 3)}
        plan |= {
            93: ("dsr", 5, 4),
            85: ("nat", 5, 2),
            86: ("dsr", 6, 4),
            87: ("tunnel", 7, 4),
            88: ("nat", 8, 2),
            89: ("nat", 9, 2),
        }
        for port, (forwarding, four, six) in plan.items():
            for number, (vip, server) in enumerate((("10.0.0.100", four), ("2001:db8::100", six))):
                service = base + 2 * (port - 80) + 1 + number
                world.service(service, forwarding, (server,), (0,))
                world.listen(service, vip, protocol, port)
        for number, vip in enumerate(("10.0.0.100", "2001:db8::100")):
            world.service(base + 30 + number, "nat", (), (), mode="reject")
            world.listen(base + 30 + number, vip, protocol, 90)
            world.service(base + 32 + number, "nat", (), (), mode="drop")
            world.listen(base + 32 + number, vip, protocol, 91)
            world.service(base + 34 + number, "nat", (1 + number,), (0,), allowed=("198.51.100.0/24",))
            world.listen(base + 34 + number, vip, protocol, 92)
            world.listen(base + 1 + number, vip, protocol, 8000, 8099)
        world.reply(S4, protocol, Reply(ip_address("10.0.0.100"), 80, base + 1, 1))
        world.reply(S6, protocol, Reply(ip_address("2001:db8::100"), 80, base + 2, 2))
        world.reply("10.0.1.13:8080", protocol, Reply(ip_address("10.0.0.100"), 88, base + 17, 8, ambiguous=True))

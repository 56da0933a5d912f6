# SPDX-License-Identifier: Apache-2.0
"""One packet in, one packet out: rows of {name, packet in, verdict, packet out, counter}, written out by hand.

Packets that come out are built anew, with fresh checksums, so that nothing rests on incremental arithmetic.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.abi import Counter
from packet.world import SNAT, World, show
from support.oracle import DROP, PASS, REDIRECT, TX, Reply
from support.packets import (
    ACK,
    CLIENT_MAC,
    ICMP,
    ICMP6,
    NODE_MAC,
    RST,
    SYN,
    TCP,
    UDP,
    Ends,
    ends,
    extension,
    fragment6,
    frame,
    icmp,
    ipv4,
    ipv6,
    packet,
    tcp,
    tcp_frame,
    udp,
    udp_frame,
)
from support.xdp import INSIDE, OUTSIDE, Bed, Port

pytestmark = pytest.mark.root

C4, V4, S4 = "192.0.2.1:1000", "10.0.0.100:80", "10.0.1.10:8080"
C6, V6, S6 = "[2001:db8:c::1]:1000", "[2001:db8::100]:80", "[2001:db8:1::10]:8080"
IN_MAC = bytes.fromhex(INSIDE.mac.replace(":", ""))
OUT_MAC = bytes.fromhex(OUTSIDE.mac.replace(":", ""))
SERVER4, SERVER6 = bytes.fromhex("020000000b0a"), bytes.fromhex("020000000d10")


@dataclass(frozen=True)
class Row:
    name: str
    given: bytes
    verdict: int
    out: bytes | None  # None: unchanged
    counter: Counter | None = None
    port: Port = OUTSIDE
    before: tuple[tuple[bytes, Port], ...] = ()  # packets sent first
    any_label: bool = False  # the flow label may be any


def to_server(ip: bytes, server: bytes = SERVER4, tags: tuple[int, ...] = ()) -> bytes:
    return frame(ip, source=IN_MAC, destination=server, tags=tags)


def to_client(ip: bytes) -> bytes:
    return frame(ip, source=OUT_MAC, destination=CLIENT_MAC)


def answered(ip: bytes) -> bytes:
    return frame(ip, source=NODE_MAC, destination=CLIENT_MAC)


def tcp_packet(source: str, destination: str, flags: int = ACK, payload: bytes = b"", **values: int) -> bytes:
    e = ends(source, destination)
    return packet(e, TCP, tcp(e, flags, payload), **values)


def udp_packet(source: str, destination: str, payload: bytes = b"", **values: int) -> bytes:
    e = ends(source, destination)
    return packet(e, UDP, udp(e, payload), **values)


def tunnelled4(inner: bytes, server: str = "10.0.1.10", protocol: int = 4, tos: int = 0) -> bytes:
    return ipv4(ip_address("10.0.1.1"), ip_address(server), protocol, inner, tos=tos)


def error4(
    quote: bytes, source: str, to: str, kind: tuple[int, int] = (3, 4), mtu: int = 1400, *, ttl: int = 64
) -> bytes:
    message = icmp(*kind, struct.pack(">I", mtu), quote)
    return ipv4(ip_address(source), ip_address(to), ICMP, message, ttl=ttl)


def error6(
    quote: bytes, source: str, to: str, *, kind: tuple[int, int] = (2, 0), mtu: int = 1400, hops: int = 64
) -> bytes:
    e = Ends(ip_address(source), 0, ip_address(to), 0)
    return ipv6(e.source, e.destination, ICMP6, icmp(*kind, struct.pack(">I", mtu), quote, e), hops=hops)


def reset(source: str, destination: str, flags: int, seq: int, ack: int) -> bytes:
    e = ends(source, destination)
    return packet(e, TCP, tcp(e, flags, seq=seq, ack=ack, window=0))


def pieces4(source: str, destination: str, *, ttl: int = 64) -> tuple[bytes, bytes]:
    """A UDP datagram of 40 bytes in two IPv4 fragments."""
    e = ends(source, destination)
    datagram = udp(e, bytes(range(40)))
    first = ipv4(e.source, e.destination, UDP, datagram[:24], ttl=ttl, identity=77, fragment=0x2000)
    return first, ipv4(e.source, e.destination, UDP, datagram[24:], ttl=ttl, identity=77, fragment=3)


def pieces6(source: str, destination: str, *, hops: int = 64) -> tuple[bytes, bytes]:
    e = ends(source, destination)
    datagram = udp(e, bytes(range(40)))
    first = fragment6(UDP, 0, more=True, identity=77) + datagram[:24]
    second = fragment6(UDP, 24, more=False, identity=77) + datagram[24:]
    return ipv6(e.source, e.destination, 44, first, hops=hops), ipv6(e.source, e.destination, 44, second, hops=hops)


def furnish(world: World) -> None:
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


BIG = bytes(1460)
ROWS = [
    # nat
    Row("nat SYN", tcp_frame(C4, V4, SYN), REDIRECT, to_server(tcp_packet(C4, S4, SYN, ttl=63))),
    Row("nat mid-stream", tcp_frame(C4, V4, ACK, b"x"), REDIRECT, to_server(tcp_packet(C4, S4, ACK, b"x", ttl=63))),
    Row("nat v6", tcp_frame(C6, V6, SYN), REDIRECT, to_server(tcp_packet(C6, S6, SYN, ttl=63), SERVER6)),
    Row("nat udp", udp_frame(C4, V4, b"ping"), REDIRECT, to_server(udp_packet(C4, S4, b"ping", ttl=63))),
    Row("nat udp v6", udp_frame(C6, V6, b"odd"), REDIRECT, to_server(udp_packet(C6, S6, b"odd", ttl=63), SERVER6)),
    Row(
        "nat udp without checksum",
        udp_frame(C4, V4, b"ping", 0),
        REDIRECT,
        to_server(packet(ends(C4, S4), UDP, udp(ends(C4, S4), b"ping", 0), ttl=63)),
    ),
    Row("nat port range", tcp_frame(C4, "10.0.0.100:8042"), REDIRECT, to_server(tcp_packet(C4, S4, ttl=63))),
    Row("beside the range", tcp_frame(C4, "10.0.0.100:8100"), PASS, None, Counter.PASS_NO_SERVICE),
    Row("nat TTL", tcp_frame(C4, V4, ttl=1), DROP, None, Counter.DROP_TTL),
    Row(
        "nat options",
        frame(ipv4(ends(C4, V4).source, ends(C4, V4).destination, TCP, tcp(ends(C4, V4)), options=b"\1" * 8)),
        REDIRECT,
        to_server(
            ipv4(ends(C4, S4).source, ends(C4, S4).destination, TCP, tcp(ends(C4, S4)), ttl=63, options=b"\1" * 8)
        ),
    ),
    Row(
        "nat v6 extension headers",
        frame(
            ipv6(ends(C6, V6).source, ends(C6, V6).destination, 0, extension(60) + extension(TCP) + tcp(ends(C6, V6)))
        ),
        REDIRECT,
        to_server(
            ipv6(
                ends(C6, S6).source,
                ends(C6, S6).destination,
                0,
                extension(60) + extension(TCP) + tcp(ends(C6, S6)),
                hops=63,
            ),
            SERVER6,
        ),
    ),
    Row("VLAN tag is taken off", frame(tcp_packet(C4, V4), tags=(7,)), REDIRECT, to_server(tcp_packet(C4, S4, ttl=63))),
    Row(
        "VLAN tags stay on the same link",
        frame(tcp_packet(C4, V4), tags=(7, 0x2008)),
        TX,
        to_server(tcp_packet(C4, S4, ttl=63), tags=(7, 0x2008)),
        port=INSIDE,
    ),
    Row(
        "nat unresolved",
        tcp_frame(C4, "10.0.0.100:85"),
        PASS,
        frame(tcp_packet(C4, "10.0.1.200:8080")),
        Counter.PASS_UNRESOLVED,
    ),
    Row("hairpin", tcp_frame(C4, "10.0.0.100:89"), DROP, None, Counter.DROP_HAIRPIN),
    # replies
    Row("reply", tcp_frame(S4, C4, SYN | ACK), REDIRECT, to_client(tcp_packet(V4, C4, SYN | ACK, ttl=63)), port=INSIDE),
    Row("reply plain", tcp_frame(S4, C4, ACK), REDIRECT, to_client(tcp_packet(V4, C4, ACK, ttl=63)), port=INSIDE),
    Row("reply v6", tcp_frame(S6, C6), REDIRECT, to_client(tcp_packet(V6, C6, ttl=63)), port=INSIDE),
    Row("reply udp", udp_frame(S4, C4, b"pong"), REDIRECT, to_client(udp_packet(V4, C4, b"pong", ttl=63)), port=INSIDE),
    Row("reply to this node", tcp_frame(S4, "10.0.1.1:40000"), PASS, None, Counter.PASS_OWN, INSIDE),
    Row("reply to this node's VIP side", tcp_frame(S4, "10.0.0.1:40000"), PASS, None, Counter.PASS_OWN, INSIDE),
    Row("a server that connects", tcp_frame(S4, C4, SYN), PASS, None, Counter.PASS_UNRELATED, INSIDE),
    Row("from another port", tcp_frame("10.0.1.10:9999", C4), PASS, None, Counter.PASS_UNRELATED, INSIDE),
    Row("reply to a group", udp_frame(S4, "224.0.0.251:5353"), PASS, None, Counter.PASS_UNRELATED, INSIDE),
    Row("client without the VIP", tcp_frame(C4, S4, SYN), PASS, None, Counter.PASS_DIRECT),
    Row(
        "its replies",
        tcp_frame(S4, C4),
        PASS,
        None,
        Counter.PASS_DIRECT,
        INSIDE,
        before=((tcp_frame(C4, S4, SYN), OUTSIDE),),
    ),
    Row("ambiguous reply, unknown", tcp_frame("10.0.1.13:8080", C4), DROP, None, Counter.DROP_REPLY_UNKNOWN, INSIDE),
    Row("ambiguous reply, own", tcp_frame("10.0.1.13:8080", "10.0.1.1:9"), PASS, None, Counter.PASS_OWN, INSIDE),
    Row(
        "ambiguous reply, known",
        tcp_frame("10.0.1.13:8080", C4),
        REDIRECT,
        to_client(tcp_packet("10.0.0.100:88", C4, ttl=63)),
        port=INSIDE,
        before=((tcp_frame(C4, "10.0.0.100:88", SYN), OUTSIDE),),
    ),
    # fullnat
    Row(
        "fullnat",
        tcp_frame(C4, "10.0.0.100:81", SYN),
        REDIRECT,
        to_server(tcp_packet("10.0.1.1:5000", S4, SYN, ttl=63)),
    ),
    Row(
        "fullnat reply",
        tcp_frame(S4, "10.0.1.1:5000", SYN | ACK),
        REDIRECT,
        to_client(tcp_packet("10.0.0.100:81", C4, SYN | ACK, ttl=63)),
        port=INSIDE,
        before=((tcp_frame(C4, "10.0.0.100:81", SYN), OUTSIDE),),
    ),
    Row(
        "fullnat v6",
        tcp_frame(C6, "[2001:db8::100]:81", SYN),
        REDIRECT,
        to_server(tcp_packet("[2001:db8:1::1]:5000", S6, SYN, ttl=63), SERVER6),
    ),
    Row("own connection beside fullnat", tcp_frame(S4, "10.0.1.1:5001"), PASS, None, Counter.PASS_OWN, INSIDE),
    # dsr
    Row("dsr", tcp_frame(C4, "10.0.0.100:82"), REDIRECT, to_server(tcp_packet(C4, "10.0.0.100:82"))),
    Row(
        "dsr v6",
        tcp_frame(C6, "[2001:db8::100]:82"),
        REDIRECT,
        to_server(tcp_packet(C6, "[2001:db8::100]:82"), SERVER6),
    ),
    Row("dsr behind a router", tcp_frame(C4, "10.0.0.100:86"), DROP, None, Counter.DROP_OFF_LINK),
    # tunnel
    Row("IPIP", tcp_frame(C4, "10.0.0.100:83"), REDIRECT, to_server(tunnelled4(tcp_packet(C4, "10.0.0.100:83")))),
    Row(
        "IPIP copies the traffic class",
        tcp_frame(C4, "10.0.0.100:83", tos=0xBB),
        REDIRECT,
        to_server(tunnelled4(tcp_packet(C4, "10.0.0.100:83", tos=0xBB), tos=0xBB)),
    ),
    Row(
        "6in4",
        tcp_frame(C6, "[2001:db8::100]:84"),
        REDIRECT,
        to_server(tunnelled4(tcp_packet(C6, "[2001:db8::100]:84"), protocol=41)),
    ),
    Row(
        "4in6",
        tcp_frame(C4, "10.0.0.100:84"),
        REDIRECT,
        to_server(
            ipv6(ip_address("2001:db8:1::1"), ip_address("2001:db8:1::10"), 4, tcp_packet(C4, "10.0.0.100:84")), SERVER6
        ),
        any_label=True,
    ),
    Row(
        "IP6IP6",
        tcp_frame(C6, "[2001:db8::100]:83", tos=0xB8),
        REDIRECT,
        to_server(
            ipv6(
                ip_address("2001:db8:1::1"),
                ip_address("2001:db8:1::10"),
                41,
                tcp_packet(C6, "[2001:db8::100]:83", tos=0xB8),
                tos=0xB8,
            ),
            SERVER6,
        ),
        any_label=True,
    ),
    # fragments
    Row("first fragment", frame(pieces4(C4, V4)[0]), REDIRECT, to_server(pieces4(C4, S4, ttl=63)[0])),
    Row(
        "later fragment, nat",
        frame(pieces4(C4, V4)[1]),
        REDIRECT,
        to_server(pieces4(C4, S4, ttl=63)[1]),
        before=((frame(pieces4(C4, V4)[0]), OUTSIDE),),
    ),
    Row(
        "later fragment, nat v6",
        frame(pieces6(C6, V6)[1]),
        REDIRECT,
        to_server(pieces6(C6, S6, hops=63)[1], SERVER6),
        before=((frame(pieces6(C6, V6)[0]), OUTSIDE),),
    ),
    Row(
        "later fragment, tunnel",
        frame(pieces4(C4, "10.0.0.100:83")[1]),
        REDIRECT,
        to_server(tunnelled4(pieces4(C4, "10.0.0.100:83")[1])),
        before=((frame(pieces4(C4, "10.0.0.100:83")[0]), OUTSIDE),),
    ),
    Row(
        "later fragment, dsr",
        frame(pieces4(C4, "10.0.0.100:82")[1]),
        REDIRECT,
        to_server(pieces4(C4, "10.0.0.100:82")[1]),
        before=((frame(pieces4(C4, "10.0.0.100:82")[0]), OUTSIDE),),
    ),
    Row(
        "later fragment of a reply",
        frame(pieces4(S4, C4)[1]),
        REDIRECT,
        to_client(pieces4(V4, C4, ttl=63)[1]),
        port=INSIDE,
        before=((frame(pieces4(S4, C4)[0]), INSIDE),),
    ),
    Row("later fragment alone", frame(pieces4(C4, V4)[1]), DROP, None, Counter.DROP_ORPHAN),
    Row("later fragment for others", frame(pieces4(C4, "10.0.0.200:80")[1]), PASS, None, Counter.PASS_UNRELATED),
    # neighbours
    Row(
        "dsr unresolved",
        tcp_frame(C4, "10.0.0.100:93", SYN),
        PASS,
        frame(ipv4(ip_address("192.0.2.1"), ip_address("10.0.1.200"), ICMP, bytes((0, 0, 0xFF, 0xFF, 0, 0, 0, 0)))),
        Counter.PASS_RESOLVING,
    ),
    Row(
        "reply to an unresolved client",
        tcp_frame(S4, "10.0.0.55:1000"),
        PASS,
        frame(ipv4(ip_address("10.0.1.10"), ip_address("10.0.0.55"), ICMP, bytes((0, 0, 0xFF, 0xFF, 0, 0, 0, 0)))),
        Counter.PASS_RESOLVING,
        INSIDE,
    ),
    # ICMP
    Row(
        "echo",
        frame(ipv4(ip_address("192.0.2.1"), ip_address("10.0.0.100"), ICMP, icmp(8, 0, b"abcd", b"data"), ttl=9)),
        TX,
        answered(ipv4(ip_address("10.0.0.100"), ip_address("192.0.2.1"), ICMP, icmp(0, 0, b"abcd", b"data"))),
        Counter.SENT_ECHO,
    ),
    Row(
        "echo to another address",
        frame(ipv4(ip_address("192.0.2.1"), ip_address("10.0.0.200"), ICMP, icmp(8, 0, b"abcd", b""))),
        PASS,
        None,
        Counter.PASS_UNRELATED,
    ),
    Row(
        "frag needed, nat",
        frame(error4(tcp_packet(V4, C4)[:28], "198.51.100.9", "10.0.0.100")),
        REDIRECT,
        to_server(error4(tcp_packet(S4, C4)[:28], "198.51.100.9", "10.0.1.10", ttl=63)),
    ),
    Row(
        "frag needed, nat, long quote",
        frame(error4(tcp_packet(V4, C4, ACK, bytes(51)), "198.51.100.9", "10.0.0.100")),
        REDIRECT,
        to_server(error4(tcp_packet(S4, C4, ACK, bytes(51)), "198.51.100.9", "10.0.1.10", ttl=63)),
    ),
    Row(
        "frag needed, dsr",
        frame(error4(tcp_packet("10.0.0.100:82", C4)[:28], "198.51.100.9", "10.0.0.100")),
        REDIRECT,
        to_server(error4(tcp_packet("10.0.0.100:82", C4)[:28], "198.51.100.9", "10.0.0.100")),
    ),
    Row(
        "frag needed, tunnel",
        frame(error4(tcp_packet("10.0.0.100:83", C4)[:28], "198.51.100.9", "10.0.0.100")),
        REDIRECT,
        to_server(tunnelled4(error4(tcp_packet("10.0.0.100:83", C4)[:28], "198.51.100.9", "10.0.0.100"))),
    ),
    Row(
        "frag needed, fullnat",
        frame(error4(tcp_packet("10.0.0.100:81", C4)[:28], "198.51.100.9", "10.0.0.100")),
        REDIRECT,
        to_server(error4(tcp_packet(S4, "10.0.1.1:5000")[:28], "10.0.1.1", "10.0.1.10", ttl=63)),
        before=((tcp_frame(C4, "10.0.0.100:81", SYN), OUTSIDE),),
    ),
    Row(
        "packet too big, nat",
        frame(error6(tcp_packet(V6, C6), "2001:db8:e::9", "2001:db8::100")),
        REDIRECT,
        to_server(error6(tcp_packet(S6, C6), "2001:db8:e::9", "2001:db8:1::10", hops=63), SERVER6),
    ),
    Row(
        "port unreachable of a nat server",
        frame(error4(udp_packet(C4, S4, b"ping"), "10.0.1.10", "192.0.2.1", (3, 3), 0)),
        REDIRECT,
        to_client(error4(udp_packet(C4, V4, b"ping"), "10.0.0.100", "192.0.2.1", (3, 3), 0, ttl=63)),
        port=INSIDE,
    ),
    Row(
        "port unreachable, fullnat",
        frame(error4(udp_packet("10.0.1.1:5000", S4, b"ping"), "10.0.1.10", "10.0.1.1", (3, 3), 0)),
        REDIRECT,
        to_client(error4(udp_packet(C4, "10.0.0.100:81", b"ping"), "10.0.0.100", "192.0.2.1", (3, 3), 0, ttl=63)),
        port=INSIDE,
        before=((udp_frame(C4, "10.0.0.100:81", b"ping"), OUTSIDE),),
    ),
    # sizes
    Row(
        "tunnel does not fit",
        tcp_frame(C4, "10.0.0.100:83", ACK, BIG),
        TX,
        answered(error4(tcp_packet(C4, "10.0.0.100:83", ACK, BIG)[:96], "10.0.0.100", "192.0.2.1", mtu=1480)),
        Counter.SENT_TOO_BIG,
    ),
    Row(
        "4in6 does not fit",
        tcp_frame(C4, "10.0.0.100:84", ACK, BIG),
        TX,
        answered(error4(tcp_packet(C4, "10.0.0.100:84", ACK, BIG)[:96], "10.0.0.100", "192.0.2.1", mtu=1460)),
        Counter.SENT_TOO_BIG,
    ),
    Row(
        "tunnel over a narrow link",
        tcp_frame(C4, "10.0.0.100:87", ACK, bytes(1360)),
        TX,
        answered(error4(tcp_packet(C4, "10.0.0.100:87", ACK, bytes(1360))[:96], "10.0.0.100", "192.0.2.1", mtu=1380)),
        Counter.SENT_TOO_BIG,
    ),
    Row(
        "IP6IP6 does not fit",
        tcp_frame(C6, "[2001:db8::100]:83", ACK, bytes(1440)),
        TX,
        answered(
            error6(
                tcp_packet(C6, "[2001:db8::100]:83", ACK, bytes(1440))[:96], "2001:db8::100", "2001:db8:c::1", mtu=1460
            )
        ),
        Counter.SENT_TOO_BIG,
    ),
    Row(
        "may be fragmented, but not by us",
        frame(
            ipv4(
                ends(C4, V4).source, ends(C4, V4).destination, TCP, tcp(ends(C4, "10.0.0.100:83"), ACK, BIG), fragment=0
            )
        ),
        DROP,
        None,
        Counter.DROP_TOO_BIG,
    ),
    # refusals
    Row(
        "reject answers a SYN",
        tcp_frame(C4, "10.0.0.100:90", SYN),
        TX,
        answered(reset("10.0.0.100:90", C4, RST | ACK, seq=0, ack=1001)),
        Counter.SENT_RESET,
    ),
    Row(
        "reject answers the middle of a flow",
        tcp_frame(C4, "10.0.0.100:90", ACK, b"data"),
        TX,
        answered(reset("10.0.0.100:90", C4, RST, seq=2000, ack=0)),
        Counter.SENT_RESET,
    ),
    Row(
        "reject v6",
        tcp_frame(C6, "[2001:db8::100]:90", SYN),
        TX,
        answered(reset("[2001:db8::100]:90", C6, RST | ACK, seq=0, ack=1001)),
        Counter.SENT_RESET,
    ),
    Row("drop", tcp_frame(C4, "10.0.0.100:91", SYN), DROP, None, Counter.DROP_SERVICE),
    Row("denied", tcp_frame(C4, "10.0.0.100:92", SYN), DROP, None, Counter.DROP_DENIED),
    Row(
        "allowed",
        tcp_frame("198.51.100.7:1", "10.0.0.100:92"),
        REDIRECT,
        to_server(tcp_packet("198.51.100.7:1", S4, ttl=63)),
    ),
    Row(
        "reject answers UDP",
        udp_frame(C4, "10.0.0.100:90", b"12345678"),
        TX,
        answered(error4(udp_packet(C4, "10.0.0.100:90", b"12345678"), "10.0.0.100", "192.0.2.1", (3, 3), 0)),
        Counter.SENT_UNREACHABLE,
    ),
    Row("reject never answers an RST", tcp_frame(C4, "10.0.0.100:90", RST), DROP, None, Counter.DROP_UNANSWERABLE),
]


def beyond4(
    inner: bytes, *, mtu: int = 1400, server: str = "10.0.1.10", source: str = "10.0.1.1", cut: int = 100
) -> bytes:
    """A router in the tunnel's path complains about ``inner``, tunnelled, of which it quotes so much."""
    outer = ipv4(ip_address(source), ip_address(server), 4 if inner[0] >> 4 == 4 else 41, inner)
    return frame(error4(outer[:cut], "10.9.0.1", source, mtu=mtu), source=SERVER4, destination=IN_MAC)


T4, T6 = "10.0.0.105:83", "[2001:db8::105]:83"
LARGE4, LARGE6 = tcp_packet(C4, T4, payload=bytes(1400)), tcp_packet(C6, T6, payload=bytes(1400))
BEYOND = (
    Row("tunnel, router says too big: the client is told", beyond4(LARGE4), REDIRECT,
        to_client(error4(LARGE4[:80], "10.0.0.105", "192.0.2.1", mtu=1380)), Counter.SENT_PATH_MTU, INSIDE),
    Row("tunnel, router quotes eight bytes of the inner ports", beyond4(LARGE4, cut=48), REDIRECT,
        to_client(error4(LARGE4[:28], "10.0.0.105", "192.0.2.1", mtu=1380)), Counter.SENT_PATH_MTU, INSIDE),
    Row("tunnel, IPv6 inside: never less than 1280", beyond4(LARGE6, mtu=1000), REDIRECT,
        to_client(error6(LARGE6[:80], "2001:db8::105", "2001:db8:c::1", mtu=1280)), Counter.SENT_PATH_MTU, INSIDE),
    Row("tunnel, router quotes too little", beyond4(LARGE4, cut=44), PASS, None, Counter.PASS_ICMP, INSIDE),
    Row("tunnel, forged: another server", beyond4(LARGE4, server="10.0.1.11"), PASS, None, Counter.PASS_ICMP, INSIDE),
    Row("tunnel, forged: another source", beyond4(LARGE4, source="10.0.1.2"), PASS, None, Counter.PASS_ICMP, INSIDE),
    Row("tunnel, forged: no service of a tunnel", beyond4(tcp_packet(C4, V4)), PASS, None, Counter.PASS_ICMP, INSIDE),
    Row("tunnel, forged: an MTU of nothing", beyond4(LARGE4, mtu=20), PASS, None, Counter.PASS_ICMP, INSIDE),
)  # fmt: skip


@pytest.mark.parametrize("row", BEYOND, ids=lambda row: row.name)
def test_f21_what_a_router_in_the_path_of_a_tunnel_says(world: World, row: Row) -> None:
    world.server(207, "10.0.1.10:0", source="10.0.1.1")
    world.service(207, "tunnel", (207,), (0,))
    for vip in ("10.0.0.105", "2001:db8::105"):
        world.listen(207, vip, TCP, 83)
    outcome = world.both(row.given, row.port)
    assert (outcome.verdict, outcome.counter) == (row.verdict, row.counter)
    assert outcome.frame == (row.given if row.out is None else row.out)


def test_f21_what_is_told_to_clients_is_limited(world: World) -> None:
    world.server(207, "10.0.1.10:0", source="10.0.1.1")
    world.service(207, "tunnel", (207,), (0,))
    world.listen(207, "10.0.0.105", TCP, 83)
    world.bed.settings(abi.Settings(answers=5))
    fates = [world.send(beyond4(LARGE4), INSIDE).counter for _ in range(100)]
    assert fates.count(Counter.SENT_PATH_MTU) >= 5
    assert fates.count(Counter.DROP_ANSWER_LIMIT) > 10
    world.bed.settings(world.settings, snat=SNAT)


@pytest.fixture(scope="module")
def furnished(bed: Bed) -> World:
    world = World(bed)
    furnish(world)
    return world


@pytest.fixture
def world(furnished: World) -> World:
    furnished.forget()
    return furnished


def without_label(raw: bytes) -> bytes:
    return raw[:15] + bytes((raw[15] & 0xF0, 0, 0)) + raw[18:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(world: World, row: Row) -> None:
    for given, port in row.before:
        world.both(given, port)
    outcome = world.both(row.given, row.port)
    wanted = row.given if row.out is None else row.out
    got = without_label(outcome.frame) if row.any_label else outcome.frame
    assert (outcome.verdict, outcome.counter) == (row.verdict, row.counter)
    assert got == wanted, f"\nwanted {wanted.hex()}\ngot    {show(outcome)}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_as_the_third_of_its_kind(world: World, row: Row) -> None:
    """By then a flow is established, and takes the fast path where there is one."""
    if row.before:
        return
    first = world.both(row.given, row.port)
    world.both(row.given, row.port)
    third = world.both(row.given, row.port)
    fresh = "fullnat" in row.name or row.counter is not None
    assert fresh or (third.verdict, third.frame) == (first.verdict, first.frame)


def test_the_table_is_complete() -> None:
    assert len(ROWS) >= 70
    assert len({row.name for row in ROWS}) == len(ROWS)

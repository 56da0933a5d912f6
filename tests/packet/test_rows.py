# SPDX-License-Identifier: Apache-2.0
"""One packet in, one packet out: rows of {name, packet in, verdict, packet out, counter}, written out by hand.

Packets that come out are built anew, with fresh checksums, so that nothing rests on incremental arithmetic.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp.abi import Counter
from packet.row import (
    C4,
    C6,
    S4,
    S6,
    SERVER6,
    V4,
    V6,
    Row,
    answered,
    error4,
    error6,
    furnish,
    pieces4,
    pieces6,
    reset,
    tcp_packet,
    to_client,
    to_server,
    tunnelled4,
    udp_packet,
)
from packet.world import World, show
from support.oracle.nouns import DROP, PASS, REDIRECT, TX
from support.packets import (
    ACK,
    ICMP,
    RST,
    SYN,
    TCP,
    UDP,
    ends,
    extension,
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
from support.xdp import INSIDE, OUTSIDE, Bed

pytestmark = pytest.mark.root

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

# SPDX-License-Identifier: Apache-2.0
"""The rows: which packets meet which set-up, what must come out, and the bars of the issue they answer to."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import ip_address

from bench.packet.harness import Traffic
from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.settle import is_crowded
from support.packets import (
    ACK,
    ICMP,
    SYN,
    TCP,
    UDP,
    Ends,
    ends,
    frame,
    icmp,
    ipv4,
    packet,
    tcp,
    tcp_frame,
    udp,
    udp_frame,
)
from support.xdp import Bed

PASS, TX, REDIRECT = 2, 3, 4
SERVERS = 100
SLOTS = 65537
ESTABLISHED = 3  # times that a flow is met before it is measured
V4, V6, C4, C6 = "10.0.0.100:80", "[2001:db8::100]:80", "10.64.0.0:1024", "[2001:db8:c::]:1024"


class Met(Enum):
    """What a peer's packets must have met, by its own counters."""

    KNOWN = "a flow in its table"
    STORED = "no flow, and were stored"
    NOT_STORED = "no flow, and were not stored"
    NOTHING = "no service"


@dataclass(frozen=True)
class Peer:
    """How a peer is set up for a row; ``bar`` is the most of its time over the floor that ours may take."""

    bar: float
    met: Met = Met.KNOWN
    vip: str = "10.0.0.100"
    protocol: int = TCP
    server: str = "10.0.1.10"  # the first of SERVERS
    others: int = 0  # services beside it


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        suite: B1 to B6.
        prepare: Fills the maps.
        traffic: The packets, by number of flows.
        verdict: What the program must answer.
        grows: By how many bytes the frame must have grown.
        flows: The numbers of flows to measure.
        bar: Most times the floor at one flow, and at the largest number of flows.
        over: Most ns over the floor.
        peer: How a peer object is measured beside it.
        rounds: How often every flow is sent before measuring.
    """

    suite: str
    name: str
    prepare: Callable[[Bed], None]
    traffic: Callable[[int], Traffic]
    verdict: int
    grows: int = 0
    flows: tuple[int, ...] = (1,)
    bar: tuple[float, float] | None = None
    over: float | None = None
    peer: Peer | None = None
    rounds: int = ESTABLISHED


def servers(bed: Bed, port: int, version: int = 4) -> tuple[int, int]:
    """Real servers 1 to SERVERS behind ten neighbours' addresses, and a table of them."""
    for number in range(SERVERS):
        last = 10 + number % 10
        endpoint = f"10.0.1.{last}:{port}" if version == 4 else f"[2001:db8:1::{0x10 + number % 10:x}]:{port}"
        bed.server(1 + number, endpoint, source="10.0.1.1" if version == 4 else "2001:db8:1::1")
    return bed.table(list(range(1, SERVERS + 1)), [slot % SERVERS for slot in range(SLOTS)])


def service(
    forwarding: abi.Forwarding, *, protocol: int = TCP, client: int = 4, server: int = 4
) -> Callable[[Bed], None]:
    def prepare(bed: Bed) -> None:
        port = 8080 if forwarding in (abi.Forwarding.NAT, abi.Forwarding.FULLNAT) else 0
        bed.service(1, forwarding, servers(bed, port, server), settled=forwarding is not abi.Forwarding.FULLNAT)
        bed.listen(1, "10.0.0.100" if client == 4 else "2001:db8::100", protocol, 80)

    return prepare


def translated(bed: Bed) -> None:
    service(abi.Forwarding.FULLNAT)(bed)
    bed.settings(abi.Settings(snat_last=61023), snat=("10.0.1.1",))


def replies(bed: Bed) -> None:
    service(abi.Forwarding.NAT)(bed)
    vip = abi.packed(ip_address("10.0.0.100"))
    for number in range(10):
        bed.reply(f"10.0.1.{10 + number}:8080", TCP, abi.ReplyRecord(vip, 80, 0, 1, 1 + number))


def many_vips(count: int) -> Callable[[Bed], None]:
    def prepare(bed: Bed) -> None:
        service(abi.Forwarding.NAT)(bed)
        base = int(ip_address("100.64.0.0"))
        for number in range(count):
            bed.listen(1, str(ip_address(base + number)), TCP, 80)

    return prepare


def braked(bed: Bed) -> None:
    service(abi.Forwarding.TUNNEL)(bed)
    bed.settings(abi.Settings(brake=1))


def tell_crowd(bed: Bed, flows: int) -> None:
    """Say how many flows are in use, as the agent does."""
    raw = bed.maps["settings"].get(bytes(4))
    assert raw is not None
    told = replace(abi.Settings.unpack(raw), crowded=int(is_crowded(flows, before=False))).pack()
    bed.maps["settings"].put(bytes(4), told + raw[len(told) :])


def tcp4(flags: int = ACK) -> Callable[[int], Traffic]:
    return lambda flows: Traffic(tcp_frame(C4, V4, flags), flows)


def tcp6(flows: int) -> Traffic:
    """The last word of the source varies."""
    return Traffic(tcp_frame(C6, V6, ACK), flows, address_at=34, port_at=54, base_address=0)


def udp4(flows: int) -> Traffic:
    return Traffic(udp_frame(C4, V4, bytes(18)), flows)


def reply4(flows: int) -> Traffic:
    """The client's address and port, the destination, vary."""
    return Traffic(tcp_frame("10.0.1.10:8080", C4, ACK), flows, address_at=30, port_at=36)


def unrelated(flows: int) -> Traffic:
    return Traffic(tcp_frame(C4, "203.0.113.9:443", ACK), flows)


def echo(_: int) -> Traffic:
    return Traffic(
        frame(ipv4(ip_address("192.0.2.1"), ip_address("10.0.0.100"), ICMP, icmp(8, 0, bytes(4), bytes(20))))
    )


def needed(_: int) -> Traffic:
    e = ends(V4, "192.0.2.1:1024")
    message = icmp(3, 4, struct.pack(">I", 1400), packet(e, TCP, tcp(e))[:28])
    return Traffic(frame(ipv4(ip_address("198.51.100.9"), e.source, ICMP, message)))


def options(flows: int) -> Traffic:
    e: Ends = ends(C4, V4)
    return Traffic(frame(ipv4(e.source, e.destination, TCP, tcp(e), options=b"\1" * 8)), flows)


def first_fragment(flows: int) -> Traffic:
    e: Ends = ends(C4, V4)
    return Traffic(
        frame(ipv4(e.source, e.destination, UDP, udp(e, bytes(40))[:24], identity=7, fragment=0x2000)), flows
    )


NAT, DSR, TUNNEL = abi.Forwarding.NAT, abi.Forwarding.DSR, abi.Forwarding.TUNNEL
ALL = (1, 1_000, 100_000, 1_000_000)
MANY = (4_000_000,)
REAL6 = "2001:db8:1::10"
STORED, NOT_STORED, ELSEWHERE = Peer(0.9, Met.STORED), Peer(0.9, Met.NOT_STORED), Peer(1.0, Met.NOTHING)
ROWS = (
    Row("B1", "dsr, TCP established", service(DSR), tcp4(), REDIRECT, flows=ALL, bar=(2.5, 6.25)),
    Row("B1", "tunnel, TCP established", service(TUNNEL), tcp4(), REDIRECT, 20, ALL, (3.3, 8.25), peer=Peer(0.7)),
    Row("B1", "nat, TCP established", service(NAT), tcp4(), REDIRECT, flows=ALL, bar=(3.6, 9.0)),
    Row("B1", "fullnat, TCP established", translated, tcp4(), REDIRECT, flows=(1, 1_000)),
    Row("B2", "tunnel, SYN, stored", service(TUNNEL), tcp4(SYN), REDIRECT, 20, MANY, rounds=1, peer=STORED),
    Row("B2", "tunnel, SYN, brake on", braked, tcp4(SYN), REDIRECT, 20, MANY, rounds=0, peer=NOT_STORED),
    Row(
        "B3",
        "tunnel v6",
        service(TUNNEL, client=6, server=6),
        tcp6,
        REDIRECT,
        40,
        (1, 100_000),
        peer=Peer(1.0, vip="2001:db8::100", server=REAL6),
    ),
    Row(
        "B3",
        "tunnel 4 in 6",
        service(TUNNEL, server=6),
        tcp4(),
        REDIRECT,
        40,
        (1, 100_000),
        peer=Peer(1.0, server=REAL6),
    ),
    Row("B3", "tunnel, UDP", service(TUNNEL, protocol=UDP), udp4, REDIRECT, 20, ALL, peer=Peer(0.7, protocol=UDP)),
    Row("B4", "echo answered", service(NAT), echo, TX),
    Row("B4", "fragmentation needed, nat", service(NAT), needed, REDIRECT),
    Row("B4", "IP options, nat", service(NAT), options, REDIRECT),
    Row("B4", "first fragment, nat", service(NAT, protocol=UDP), first_fragment, REDIRECT),
    Row("B5", "not for a VIP, 1 VIP", many_vips(1), unrelated, PASS, flows=(1_000,), peer=ELSEWHERE),
    Row(
        "B5",
        "not for a VIP, 512 VIPs",
        many_vips(512),
        unrelated,
        PASS,
        flows=(1_000,),
        peer=Peer(1.0, Met.NOTHING, others=511),
    ),
    Row("B5", "not for a VIP, 10 000 VIPs", many_vips(10_000), unrelated, PASS, flows=(1_000,)),
    Row("B6", "nat reply", replies, reply4, TX, flows=(1, 100_000), over=150),
)

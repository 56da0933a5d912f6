# SPDX-License-Identifier: Apache-2.0
"""Packets worth trying: mostly of flows that exist, some about them, and some broken in one place."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

from support.packets import (
    ACK,
    FIN,
    ICMP,
    ICMP6,
    RST,
    SYN,
    TCP,
    UDP,
    Ends,
    extension,
    fragment6,
    frame,
    icmp,
    ipv4,
    ipv6,
    tcp,
    udp,
    unfinished,
)
from support.xdp import INSIDE, NARROW, OUTSIDE, Port

CLIENTS4 = ("192.0.2.1", "192.0.2.2", "192.0.2.200", "10.0.0.77", "10.0.1.10", "10.0.1.77")
CLIENTS6 = ("2001:db8:c::1", "2001:db8:d::2", "2001:db8:1::10")
ODD4 = ("10.0.0.1", "224.0.0.5", "0.0.0.0", "127.0.0.1", "255.255.255.255")
ODD6 = ("ff02::1", "2001:db8::1", "fe80::1", "::1", "::ffff:1.2.3.4")
VIPS4 = ("10.0.0.100", "10.0.0.100", "10.0.0.100", "10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104", "10.0.0.200")
VIPS6 = ("2001:db8::100", "2001:db8::100", "2001:db8::104", "2001:db8::200")
SERVERS4 = ("10.0.1.10", "10.0.1.11", "10.0.1.12", "10.0.1.13", "10.9.0.5", "192.0.2.1", "10.0.1.30")
SERVERS6 = ("2001:db8:1::10", "2001:db8:1::11", "2001:db8:1::12", "2001:db8:1::13")
PORTS = (80, 80, 81, 82, 83, 84, 1000, 1500, 8080)
CLIENT_PORTS = (1000, 1001, 65535)
FLAGS = (ACK, ACK, ACK, ACK, SYN, SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, 0, SYN | FIN)


class Generator:
    """Frames from a source of randomness, each with the port it comes in by."""

    def __init__(self, source: random.Random) -> None:
        self.random = source

    def frame(self) -> tuple[bytes, Port]:
        r = self.random
        version = r.choice((4, 4, 6))
        if r.random() < 0.03:
            ip = self._beyond(version)
        elif r.random() < 0.1:
            ip = self._error(version)
        elif r.random() < 0.03:
            ip = self._echo(version)
        else:
            ip = self._packet(version, self._ends(version))
        tags = tuple(r.sample((5, 0x2007, 4095), r.choice((1, 1, 2, 3)))) if r.random() < 0.1 else ()
        out = frame(ip, tags=tags)
        if r.random() < 0.1:
            out += r.randbytes(r.randrange(1, 30))
        if r.random() < 0.1:
            out = self._broken(out)
        return out.ljust(14, b"\0"), r.choice((OUTSIDE, OUTSIDE, INSIDE, NARROW))

    def _ends(self, version: int) -> Ends:
        r = self.random
        clients, odd, vips, servers = (
            (CLIENTS4, ODD4, VIPS4, SERVERS4) if version == 4 else (CLIENTS6, ODD6, VIPS6, SERVERS6)
        )
        client = ip_address(r.choice(odd if r.random() < 0.04 else clients))
        cport = r.choice(CLIENT_PORTS) if r.random() < 0.95 else r.randrange(1024, 65536)
        kind = r.random()
        if kind < 0.55:
            return Ends(client, cport, ip_address(r.choice(vips)), r.choice(PORTS))
        server = Ends(client, cport, ip_address(r.choice(servers)), r.choice((8080, 8080, 8080, 8080, 1500)))
        if kind < 0.7:  # an answer of fullnat
            near = ip_address("10.0.1.1" if version == 4 else "2001:db8:1::1")
            server = Ends(near, r.randrange(2000, 2010), server.destination, server.dport)
        if kind < 0.97:
            return server.reversed()
        return server

    def _transport(self, e: Ends) -> tuple[int, bytes]:
        r = self.random
        size = r.choice((0, 0, 0, 1, 5, 100, 101, 1380, 1420, 1440, 1472))
        payload = r.randbytes(size)
        if r.random() < 0.5:
            options = b"\1" * r.choice((0, 0, 12, 40))
            flags, seq, ack = r.choice(FLAGS), r.getrandbits(32), r.getrandbits(32)
            protocol, segment = TCP, tcp(e, flags, payload, seq=seq, ack=ack, options=options)
        else:
            protocol, segment = UDP, udp(e, payload, r.choice((None, None, None, 0, 0xFFFF, 1)))
        return protocol, unfinished(e, protocol, segment) if r.random() < 0.1 else segment

    def _packet(self, version: int, e: Ends) -> bytes:
        r = self.random
        protocol, payload = self._transport(e)
        ttl, tos = r.choice((64,) * 12 + (2, 1, 0, 255)), r.choice((0, 0, 0xB8, 3))
        pieces = r.random() < 0.15
        if version == 4:
            options = b"\1" * r.choice((0, 0, 0, 4, 40))
            identity = r.choice((1, 2))
            if not pieces:
                return ipv4(
                    e.source,
                    e.destination,
                    protocol,
                    payload,
                    ttl=ttl,
                    tos=tos,
                    fragment=r.choice((0x4000, 0x4000, 0)),
                    options=options,
                )
            word, part = r.choice(
                ((0x2000, payload[:24]), (3, payload[24:]), (0x2003, payload[24:]), (0x2000, payload[:8]))
            )
            return ipv4(
                e.source, e.destination, protocol, part, ttl=ttl, identity=identity, fragment=word, options=options
            )
        following = protocol
        if pieces:
            first = r.random() < 0.5
            head = fragment6(protocol, 0 if first else 24, more=first or r.random() < 0.5, identity=r.choice((1, 2)))
            payload = head + (payload[:24] if first else payload[24:])
            following = 44
        while r.random() < 0.15:
            kind = r.choice((0, 60, 43))
            payload = extension(following, bytes(6) + bytes(8) * r.choice((0, 0, 1, 30))) + payload
            following = kind
        return ipv6(e.source, e.destination, following, payload, hops=ttl, tos=tos, label=r.getrandbits(20))

    def _error(self, version: int) -> bytes:
        r = self.random
        e = self._ends(version).reversed()
        quoted = self._packet(version, e)
        cut = quoted[: r.choice((28, 36, 48, 60, 200, 20, 44))]
        source = r.choice((e.destination, ip_address("10.9.0.1" if version == 4 else "2001:db8:e::1")))
        where = e.source if r.random() < 0.95 else e.destination
        ttl = r.choice((64, 64, 1))
        if version == 4:
            kind = r.choice(((3, 4), (3, 3), (11, 0), (12, 0), (5, 0)))
            return ipv4(source, where, ICMP, icmp(*kind, struct.pack(">I", 1400), cut), ttl=ttl)
        kind = r.choice(((2, 0), (1, 4), (3, 0), (4, 0), (135, 0)))
        message = icmp(*kind, struct.pack(">I", 1400), cut, Ends(source, 0, where, 0))
        return ipv6(source, where, ICMP6, message, hops=ttl)

    def _beyond(self, version: int) -> bytes:
        """A router in the path of a tunnel says that a packet of ours is too big."""
        r = self.random
        inner = r.choice((4, 4, 6))
        client = ip_address(r.choice(CLIENTS4 if inner == 4 else CLIENTS6))
        vip, port = r.choice(
            (("10.0.0.100", 83), ("10.0.0.104", 1000), ("10.0.0.100", 80))
            if inner == 4
            else (("2001:db8::100", 83), ("2001:db8::104", 1000), ("2001:db8::100", 80))
        )
        packet = self._packet(inner, Ends(client, r.choice(CLIENT_PORTS), ip_address(vip), port))
        inside = r.choice((4, 41)) if r.random() < 0.03 else 4 if inner == 4 else 41
        if version == 4:
            source = ip_address(r.choice(("10.0.1.1", f"10.0.1.{r.randrange(256)}", "10.9.0.9")))
            server = ip_address(r.choice((*SERVERS4[:4], "10.0.2.10")))
            outer = ipv4(source, server, inside, packet)
        else:
            source = ip_address(r.choice(("2001:db8:1::1", f"2001:db8:1::{r.getrandbits(16):x}", "2001:db8:e::9")))
            server = ip_address(r.choice((*SERVERS6[:3], "2001:db8:2::10")))
            outer = ipv6(source, server, inside, packet)
        mtu = r.choice((1400, 1400, 1280, 600, 60, 40, 20, 0))
        cut = outer[: r.choice((48, 56, 80, 88, 100, 300, 1400, 28))]
        if version == 4:
            return ipv4(ip_address("10.9.0.1"), source, ICMP, icmp(3, 4, struct.pack(">I", mtu), cut))
        router = Ends(ip_address("2001:db8:e::1"), 0, source, 0)
        return ipv6(router.source, source, ICMP6, icmp(2, 0, struct.pack(">I", mtu), cut, router))

    def _echo(self, version: int) -> bytes:
        r = self.random
        payload = r.randbytes(r.choice((0, 1, 56)))
        if version == 4:
            source, vip = ip_address(r.choice(CLIENTS4)), ip_address(r.choice(VIPS4))
            return ipv4(
                source, vip, ICMP, icmp(r.choice((8, 0)), 0, r.randbytes(4), payload), options=b"\1" * r.choice((0, 4))
            )
        source, vip = ip_address(r.choice(CLIENTS6)), ip_address(r.choice(VIPS6))
        return ipv6(source, vip, ICMP6, icmp(r.choice((128, 129)), 0, r.randbytes(4), payload, Ends(source, 0, vip, 0)))

    def _broken(self, out: bytes) -> bytes:
        r = self.random
        kind = r.random()
        if kind < 0.35:
            return out[: r.randrange(14, len(out) + 1)]
        if kind < 0.9:
            changed = bytearray(out)
            for _ in range(r.choice((1, 1, 2, 5))):
                changed[r.randrange(min(len(changed), 90))] = r.choice((0, 255, r.getrandbits(8)))
            return bytes(changed)
        return out[:14] + r.randbytes(r.randrange(0, 100))

# SPDX-License-Identifier: Apache-2.0
"""Frames built byte by byte, with right checksums unless told otherwise."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
CLIENT_MAC = bytes.fromhex("020000000c01")
NODE_MAC = bytes.fromhex("020000000f01")


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071) of ``data``, by arithmetic modulo 65535."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    folded = total % 65535 if total % 65535 or not total else 65535
    return 0xFFFF - folded


def pseudo(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    """The pseudo header of a transport checksum."""
    if source.version == 4:
        return source.packed + destination.packed + struct.pack(">BBH", 0, protocol, length)
    return source.packed + destination.packed + struct.pack(">IHBB", length, 0, 0, protocol)


@dataclass(frozen=True, slots=True)
class Ends:
    """Addresses and ports of a packet."""

    source: Address
    sport: int
    destination: Address
    dport: int

    def reversed(self) -> Ends:
        """The other direction."""
        return Ends(self.destination, self.dport, self.source, self.sport)


def ends(source: str, destination: str) -> Ends:
    """Two of ``ADDRESS:PORT`` or ``[V6]:PORT``."""
    (a, p), (b, q) = (text.rsplit(":", 1) for text in (source, destination))
    return Ends(ip_address(a.strip("[]")), int(p), ip_address(b.strip("[]")), int(q))


def tcp(
    e: Ends,
    flags: int = ACK,
    payload: bytes = b"",
    *,
    seq: int = 1000,
    ack: int = 2000,
    options: bytes = b"",
    window: int = 65535,
) -> bytes:
    """A TCP segment."""
    offset = (20 + len(options)) // 4
    head = struct.pack(">HHIIBBHHH", e.sport, e.dport, seq, ack, offset << 4, flags, window, 0, 0)
    segment = head + options + payload
    total = checksum(pseudo(e.source, e.destination, TCP, len(segment)) + segment)
    return segment[:16] + struct.pack(">H", total) + segment[18:]


def udp(e: Ends, payload: bytes = b"", check: int | None = None) -> bytes:
    """A UDP datagram; ``check`` None computes the checksum."""
    datagram = struct.pack(">HHHH", e.sport, e.dport, 8 + len(payload), 0) + payload
    if check is None:
        check = checksum(pseudo(e.source, e.destination, UDP, len(datagram)) + datagram) or 0xFFFF
    return datagram[:6] + struct.pack(">H", check) + datagram[8:]


def unfinished(e: Ends, protocol: int, segment: bytes) -> bytes:
    """The segment as a sender leaves it whose checksum the hardware is to finish: the pseudo header is summed up."""
    at = 16 if protocol == TCP else 6
    total = 0xFFFF - checksum(pseudo(e.source, e.destination, protocol, len(segment)))
    return segment[:at] + total.to_bytes(2, "big") + segment[at + 2 :]


def icmp(kind: int, code: int, rest: bytes, payload: bytes, v6: Ends | None = None) -> bytes:
    """An ICMP message; for ICMPv6 ``v6`` names the addresses."""
    message = struct.pack(">BBH", kind, code, 0) + rest + payload
    head = pseudo(v6.source, v6.destination, ICMP6, len(message)) if v6 else b""
    return message[:2] + struct.pack(">H", checksum(head + message)) + message[4:]


def ipv4(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    tos: int = 0,
    identity: int = 0,
    fragment: int = 0x4000,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet; ``fragment`` is flags and offset (DF by default)."""
    ihl = 5 + len(options) // 4
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | ihl,
        tos,
        ihl * 4 + len(payload),
        identity,
        fragment,
        ttl,
        protocol,
        0,
        source.packed,
        destination.packed,
    )
    head += options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def ipv6(
    source: Address,
    destination: Address,
    following: int,
    payload: bytes,
    *,
    hops: int = 64,
    tos: int = 0,
    label: int = 0,
) -> bytes:
    """An IPv6 packet; extension headers are part of ``payload``."""
    return (
        struct.pack(">IHBB", 6 << 28 | tos << 20 | label, len(payload), following, hops)
        + source.packed
        + destination.packed
        + payload
    )


def packet(e: Ends, protocol: int, payload: bytes, *, ttl: int = 64, tos: int = 0) -> bytes:
    """An IP packet of the family of ``e``."""
    if e.source.version == 4:
        return ipv4(e.source, e.destination, protocol, payload, ttl=ttl, tos=tos)
    return ipv6(e.source, e.destination, protocol, payload, hops=ttl, tos=tos)


def frame(
    ip: bytes,
    *,
    source: bytes = CLIENT_MAC,
    destination: bytes = NODE_MAC,
    tags: tuple[int, ...] = (),
    kind: int | None = None,
) -> bytes:
    """An Ethernet frame around an IP packet, with 802.1Q tags."""
    if kind is None:
        kind = 0x86DD if ip[:1] and ip[0] >> 4 == 6 else 0x0800
    inserted = b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags)
    return destination + source + inserted + struct.pack(">H", kind) + ip


def tcp_frame(source: str, destination: str, flags: int = ACK, payload: bytes = b"", **ip: int) -> bytes:
    """A TCP segment in a frame."""
    e = ends(source, destination)
    return frame(packet(e, TCP, tcp(e, flags, payload), **ip))


def udp_frame(source: str, destination: str, payload: bytes = b"", check: int | None = None, **ip: int) -> bytes:
    """A UDP datagram in a frame."""
    e = ends(source, destination)
    return frame(packet(e, UDP, udp(e, payload, check), **ip))


def extension(following: int, body: bytes = bytes(6)) -> bytes:
    """A hop-by-hop, destination or routing header with this body (6 bytes, or 6 plus a multiple of 8)."""
    return bytes((following, (len(body) + 2) // 8 - 1)) + body


def fragment6(following: int, offset: int, *, more: bool, identity: int) -> bytes:
    """An IPv6 fragment header; ``offset`` in bytes."""
    return struct.pack(">BBHI", following, 0, offset | more, identity)

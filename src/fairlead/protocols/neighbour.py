# SPDX-License-Identifier: Apache-2.0
"""Frames that tell neighbours who owns an address: gratuitous ARP (RFC 826, RFC 5227 section 3) and unsolicited
neighbour advertisements (RFC 4861 sections 4.4 and 7.2.6); and the answers to probes of who owns it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from fairlead.protocols.checksum import internet_checksum, pseudo_header

BROADCAST = b"\xff" * 6
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ALL_NODES = IPv6Address("ff02::1")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ICMPV6 = 58
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_OVERRIDE = 0x20000000
_TARGET_LINK_LAYER_ADDRESS = 2


class ArpOperation(IntEnum):
    """RFC 826."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP packet for IPv4 over Ethernet."""

    operation: int
    sender_mac: bytes
    sender: IPv4Address
    target_mac: bytes
    target: IPv4Address


def arp_frame(arp: Arp, destination_mac: bytes) -> bytes:
    """``arp`` as an Ethernet frame."""
    body = _ARP.pack(
        1, 0x0800, 6, 4, arp.operation, arp.sender_mac, arp.sender.packed, arp.target_mac, arp.target.packed
    )
    return destination_mac + arp.sender_mac + struct.pack("!H", ETHERTYPE_ARP) + body


def read_arp(frame: bytes) -> Arp | None:
    """The ARP packet in an Ethernet frame, or None when it is none for IPv4 over Ethernet."""
    if len(frame) < 14 + _ARP.size or int.from_bytes(frame[12:14], "big") != ETHERTYPE_ARP:
        return None
    hardware, protocol, hlen, plen, operation, smac, sip, tmac, tip = _ARP.unpack_from(frame, 14)
    if (hardware, protocol, hlen, plen) != (1, 0x0800, 6, 4):
        return None
    return Arp(operation, smac, IPv4Address(sip), tmac, IPv4Address(tip))


def gratuitous_arp(address: IPv4Address, mac: bytes, operation: ArpOperation) -> bytes:
    """Both forms are in use: some switches and hosts take only one of them (F03)."""
    target_mac = mac if operation is ArpOperation.REPLY else bytes(6)
    return arp_frame(Arp(operation, mac, address, target_mac, address), BROADCAST)


def arp_probe(address: IPv4Address, mac: bytes) -> bytes:
    """Asks who owns ``address`` without claiming anything: sender address zero (RFC 5227 section 2.1.1)."""
    return arp_frame(Arp(ArpOperation.REQUEST, mac, IPv4Address(0), bytes(6), address), BROADCAST)


def unsolicited_advertisement(address: IPv6Address, mac: bytes, *, router: bool) -> bytes:
    """An unsolicited neighbour advertisement with the Override flag, to all nodes."""
    flags = _OVERRIDE | (0x80000000 if router else 0)
    option = struct.pack("!BB6s", _TARGET_LINK_LAYER_ADDRESS, 1, mac)
    message = struct.pack("!BBHI16s", _NEIGHBOUR_ADVERTISEMENT, 0, 0, flags, address.packed) + option
    return _icmpv6_frame(message, address, ALL_NODES, mac, _ALL_NODES_MAC)


def solicitation(address: IPv6Address, mac: bytes) -> bytes:
    """Asks who owns ``address`` as duplicate address detection does: unspecified source (RFC 4862 section 5.4.2)."""
    group = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(address) & 0xFFFFFF)
    message = struct.pack("!BBHI16s", _NEIGHBOUR_SOLICITATION, 0, 0, 0, address.packed)
    return _icmpv6_frame(message, IPv6Address(0), group, mac, b"\x33\x33" + group.packed[12:])


def read_advertisement(frame: bytes) -> tuple[IPv6Address, bytes] | None:
    """Address and MAC of a neighbour advertisement in an Ethernet frame, or None when it is none."""
    if len(frame) < 14 + 40 + 24 or int.from_bytes(frame[12:14], "big") != ETHERTYPE_IPV6:
        return None
    if frame[20] != _ICMPV6 or frame[21] != 255 or frame[54] != _NEIGHBOUR_ADVERTISEMENT:
        return None
    option = frame[78:86]
    mac = option[2:8] if len(option) == 8 and option[0] == _TARGET_LINK_LAYER_ADDRESS else frame[6:12]
    return IPv6Address(frame[62:78]), mac


def _icmpv6_frame(
    message: bytes, source: IPv6Address, destination: IPv6Address, mac: bytes, destination_mac: bytes
) -> bytes:
    checksum = internet_checksum(pseudo_header(source, destination, _ICMPV6, len(message)) + message)
    message = message[:2] + struct.pack("!H", checksum) + message[4:]
    header = struct.pack("!IHBB16s16s", 6 << 28, len(message), _ICMPV6, 255, source.packed, destination.packed)
    return destination_mac + mac + struct.pack("!H", ETHERTYPE_IPV6) + header + message

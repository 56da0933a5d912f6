# SPDX-License-Identifier: Apache-2.0
"""Taking packets apart."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from fairlead.dataplane.xdp.abi import Counter
from support.oracle.nouns import Parsed, passed
from support.packets import ICMP, ICMP6, TCP, UDP, Address

LAST_OFFSET = 1023  # headers that start later are not read


def parse4(body: bytes) -> Parsed:
    """An IPv4 packet; raises Verdict when it is none, or none of ours."""
    if len(body) < 20 or body[0] >> 4 != 4 or body[0] & 15 < 5:
        raise passed(Counter.PASS_MALFORMED)
    header = (body[0] & 15) * 4
    length = int.from_bytes(body[2:4], "big")
    if length < header or length > len(body):
        raise passed(Counter.PASS_MALFORMED)
    word = int.from_bytes(body[6:8], "big")
    fragment = "later" if word & 0x1FFF else "first" if word & 0x2000 else "whole"
    p = Parsed(
        family=4,
        source=IPv4Address(body[12:16]),
        destination=IPv4Address(body[16:20]),
        protocol=body[9],
        raw=body[:length],
        l4=header,
        ttl=body[8],
        tos=body[1],
        df=bool(word & 0x4000),
        identity=int.from_bytes(body[4:6], "big"),
        fragment=fragment,
    )
    if not routable(p.source, p.destination):
        raise passed(Counter.PASS_UNRELATED)
    if fragment == "later":
        if p.protocol not in (TCP, UDP):
            raise passed(Counter.PASS_UNRELATED)
        return p
    return _ports(p)


def parse6(body: bytes, tags: int) -> Parsed:
    """An IPv6 packet behind so many bytes of VLAN tags; raises Verdict likewise."""
    if len(body) < 40 or body[0] >> 4 != 6:
        raise passed(Counter.PASS_MALFORMED)
    length = 40 + int.from_bytes(body[4:6], "big")
    if length > len(body):
        raise passed(Counter.PASS_MALFORMED)
    raw = body[:length]
    source, destination = IPv6Address(raw[8:24]), IPv6Address(raw[24:40])
    p = Parsed(6, source, destination, raw[6], raw, 40, raw[7], (raw[0] & 15) << 4 | raw[1] >> 4, True, 0, "whole")
    if not routable(p.source, p.destination):
        raise passed(Counter.PASS_UNRELATED)
    for _ in range(6):
        if p.protocol not in (0, 43, 44, 60):
            break
        if p.l4 + 8 > length:
            raise passed(Counter.PASS_MALFORMED)
        head = raw[p.l4 : p.l4 + 8]
        if p.protocol == 44:
            p.identity = int.from_bytes(head[4:8], "big")
            position = int.from_bytes(head[2:4], "big")
            if position >> 3:
                p.fragment = "later"
                return p
            if position & 1:
                p.fragment = "first"
            p.l4 += 8
        else:
            if p.protocol == 43 and head[3]:
                raise passed(Counter.PASS_UNRELATED)
            p.l4 += (head[1] + 1) * 8
        p.protocol = head[0]
        if 14 + tags + p.l4 > LAST_OFFSET - 20:
            raise passed(Counter.PASS_UNRELATED)
    return _ports(p)


def _ports(p: Parsed) -> Parsed:
    needed = {TCP: 20, UDP: 8}.get(p.protocol)
    if needed is None:
        if p.protocol == (ICMP if p.family == 4 else ICMP6) and p.fragment == "whole":
            return p
        raise passed(Counter.PASS_UNRELATED)
    if p.l4 + needed > len(p.raw):
        raise passed(Counter.PASS_MALFORMED)
    p.sport, p.dport = struct.unpack_from(">HH", p.raw, p.l4)
    if p.protocol == TCP:
        p.flags = p.raw[p.l4 + 13]
    return p


def routable(*addresses: Address) -> bool:
    """Whether packets between these addresses are forwarded at all."""
    for address in addresses:
        high = int(address) >> 24
        if address.version == 4 and (high in (0, 127) or high >= 224):
            return False
        if address.version == 6 and (
            int(address) >> 32 in (0, 0xFFFF) or address.is_multicast or address.is_link_local
        ):
            return False
    return True

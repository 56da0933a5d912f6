# SPDX-License-Identifier: Apache-2.0
"""The Internet checksum (RFC 1071) and the pseudo-header it covers (RFC 768, RFC 8200 section 8.1)."""

from __future__ import annotations

import struct

from fairlead.model.net import IPAddress


def internet_checksum(data: bytes) -> int:
    """One's complement of the one's complement sum of 16-bit words; 0 over data that carries its own checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def pseudo_header(source: IPAddress, destination: IPAddress, protocol: int, length: int) -> bytes:
    """The pseudo-header of a datagram of ``length`` bytes; both addresses are of one family."""
    if source.version == 4:
        return source.packed + destination.packed + struct.pack("!BBH", 0, protocol, length)
    return source.packed + destination.packed + struct.pack("!IHBB", length, 0, 0, protocol)

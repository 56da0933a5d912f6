# SPDX-License-Identifier: Apache-2.0
"""Changes in headers, with the checksums that follow from them (RFC 1624)."""

from __future__ import annotations

import struct

from support.packets import TCP, UDP, Address


def updated(old: int, before: bytes, after: bytes) -> int:
    """RFC 1624: the checksum ``old`` after ``before`` became ``after`` (even lengths)."""
    total = 0xFFFF - old
    for (word,) in struct.iter_unpack(">H", before):
        total += 0xFFFF - word
    for (word,) in struct.iter_unpack(">H", after):
        total += word
    rest = total % 65535
    return 0xFFFF - (rest or (0xFFFF if total else 0))


def put_checksum(raw: bytearray, at: int, before: bytes, after: bytes) -> None:
    """Update the checksum at ``at`` in place."""
    struct.pack_into(">H", raw, at, updated(int.from_bytes(raw[at : at + 2], "big"), before, after))


def with_addresses(raw: bytes, family: int, source: Address, destination: Address) -> bytes:
    """The packet with these addresses, its IPv4 header checksum updated."""
    out = bytearray(raw)
    start, end = (12, 20) if family == 4 else (8, 40)
    old = bytes(out[start:end])
    out[start:end] = source.packed + destination.packed
    if family == 4:
        put_checksum(out, 10, old, bytes(out[start:end]))
    return bytes(out)


def decrement(raw: bytearray, family: int) -> None:
    """Take one from TTL or hop limit in place."""
    if family == 6:
        raw[7] -= 1
        return
    old = bytes(raw[8:10])
    raw[8] -= 1
    put_checksum(raw, 10, old, bytes(raw[8:10]))


def patch(raw: bytearray, l4: int, protocol: int, before: bytes, after: bytes) -> None:
    """Update the transport checksum at its place; a UDP checksum of 0 means none, and none is made."""
    at = l4 + (16 if protocol == TCP else 6)
    old = int.from_bytes(raw[at : at + 2], "big")
    if protocol == UDP and old == 0:
        return
    new = updated(old, before, after)
    struct.pack_into(">H", raw, at, new or (0xFFFF if protocol == UDP else 0))

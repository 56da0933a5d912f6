# SPDX-License-Identifier: Apache-2.0
"""ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4)."""

from __future__ import annotations

import struct

_ECHO = struct.Struct("!BBHHH")
REQUEST_4, REPLY_4 = 8, 0
REQUEST_6, REPLY_6 = 128, 129


def echo_request(version: int, identifier: int, payload: bytes) -> bytes:
    """An echo request for IPv4 or IPv6 with sequence number 1.

    The checksum is filled in for IPv4; for IPv6 it covers addresses that only the kernel knows, and the kernel sets it.
    """
    if version == 6:
        return _ECHO.pack(REQUEST_6, 0, 0, identifier, 1) + payload
    unsummed = _ECHO.pack(REQUEST_4, 0, 0, identifier, 1) + payload
    return _ECHO.pack(REQUEST_4, 0, _checksum(unsummed), identifier, 1) + payload


def is_echo_reply(version: int, message: bytes, payload: bytes) -> bool:
    """Whether ``message``, without an IP header, answers the request that carried ``payload``.

    The payload tells replies apart, not the identifier: the kernel of a ping socket chooses that.
    """
    wanted = REPLY_6 if version == 6 else REPLY_4
    return len(message) >= _ECHO.size and message[0] == wanted and message[_ECHO.size :] == payload


def without_ipv4_header(packet: bytes) -> bytes:
    """What follows the IPv4 header (RFC 791 section 3.1); empty when ``packet`` is too short."""
    return packet[(packet[0] & 0x0F) * 4 :] if packet else b""


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF

# SPDX-License-Identifier: Apache-2.0
"""VRRP advertisements as bytes: RFC 9568 section 5 for version 3, RFC 3768 section 5 for version 2.

Invariants: ``decode`` accepts only what ``encode`` could have sent or a conforming peer would; everything else is
one ``InvalidReason``. Intervals are centiseconds in both versions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from fairlead.errors import MalformedPacket
from fairlead.model.net import IPAddress
from fairlead.protocols.checksum import internet_checksum, pseudo_header

PROTOCOL_NUMBER = 112
REQUIRED_TTL = 255  # RFC 9568 section 5.1.1.3: whoever is not on this link cannot send it
GROUP_V4 = IPv4Address("224.0.0.18")
GROUP_V6 = IPv6Address("ff02::12")
MAX_ADDRESSES = 20  # what keepalived accepts too; a longer list would not fit every link's MTU
_ADVERTISEMENT = 1
_HEADER = struct.Struct("!BBBBHH")
_V2_AUTHENTICATION = 8  # bytes of authentication data after the addresses, all zero


class InvalidReason(StrEnum):
    """Why an advertisement was ignored; the same word in log, metric and API."""

    TTL = "ttl"
    SHORT = "short"
    VERSION = "version"
    TYPE = "type"
    VRID = "vrid"
    COUNT = "count"
    LENGTH = "length"
    CHECKSUM = "checksum"
    INTERVAL = "interval"
    AUTHENTICATION = "authentication"
    SOURCE = "source"  # not one of the configured unicast peers
    OWN = "own"  # our own advertisement came back
    OWNER = "owner"  # priority 255 from somebody while this node owns the address


class ChecksumForm(StrEnum):
    """What the checksum of a version 3 advertisement over IPv4 covers; over IPv6 it is always the pseudo-header too.

    RFC 5798 was read by most as including the pseudo-header (keepalived, FRR); RFC 9568 section 5.2.8 excludes it.
    """

    RFC5798 = "rfc5798"
    RFC9568 = "rfc9568"


class InvalidAdvertisement(MalformedPacket):
    """The datagram is ignored because of ``reason``."""

    def __init__(self, reason: InvalidReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Advertisement:
    """One VRRP advertisement. ``checksum`` is the form it carries, None where there is only one."""

    version: int
    vrid: int
    priority: int
    interval_cs: int
    addresses: tuple[IPAddress, ...]
    checksum: ChecksumForm | None = None


def encode(advertisement: Advertisement, source: IPAddress, destination: IPAddress) -> bytes:
    """The VRRP message, without its IP header."""
    a = advertisement
    # Version 2: one octet of authentication type, 0, and one of whole seconds.
    field = max(1, round(a.interval_cs / 100)) if a.version == 2 else a.interval_cs
    head = _HEADER.pack(a.version << 4 | _ADVERTISEMENT, a.vrid, a.priority, len(a.addresses), field, 0)
    body = b"".join(address.packed for address in a.addresses)
    if a.version == 2:
        body += bytes(_V2_AUTHENTICATION)
    covered = head + body
    if _covers_pseudo_header(a.version, source, a.checksum):
        covered = pseudo_header(source, destination, PROTOCOL_NUMBER, len(covered)) + covered
    return head[:6] + struct.pack("!H", internet_checksum(covered)) + body


def decode(data: bytes, source: IPAddress, destination: IPAddress, ttl: int) -> Advertisement:
    """Read one VRRP message.

    Args:
        data: The message, without its IP header.
        source: Of the IP header.
        destination: Of the IP header.
        ttl: Time to live or hop limit of the IP header.

    Raises:
        InvalidAdvertisement: It must be ignored (RFC 9568 section 7.1).
    """
    if ttl != REQUIRED_TTL:
        raise InvalidAdvertisement(InvalidReason.TTL, f"{ttl} instead of {REQUIRED_TTL}: sent from another network")
    if len(data) < _HEADER.size:
        raise InvalidAdvertisement(InvalidReason.SHORT, f"{len(data)} bytes")
    first, vrid, priority, count, field, _ = _HEADER.unpack_from(data)
    version, kind = first >> 4, first & 15
    if version not in (2, 3) or (version == 2 and source.version == 6):
        raise InvalidAdvertisement(InvalidReason.VERSION, f"version {version} over IPv{source.version}")
    if kind != _ADVERTISEMENT:
        raise InvalidAdvertisement(InvalidReason.TYPE, f"type {kind}")
    if vrid == 0:
        raise InvalidAdvertisement(InvalidReason.VRID, "0 is no virtual router")
    if not 1 <= count <= MAX_ADDRESSES:
        raise InvalidAdvertisement(InvalidReason.COUNT, f"{count} addresses")
    size = 4 if source.version == 4 else 16
    expected = _HEADER.size + count * size + (_V2_AUTHENTICATION if version == 2 else 0)
    if len(data) != expected:
        raise InvalidAdvertisement(InvalidReason.LENGTH, f"{len(data)} bytes, {expected} by its count")
    form = _checksum_form(data, version, source, destination)
    interval_cs = _interval(version, field)
    start = _HEADER.size
    addresses = tuple(ip_address(data[start + i * size : start + (i + 1) * size]) for i in range(count))
    return Advertisement(version, vrid, priority, interval_cs, addresses, form)


def _covers_pseudo_header(version: int, source: IPAddress, form: ChecksumForm | None) -> bool:
    if version == 2:
        return False
    return source.version == 6 or form is not ChecksumForm.RFC9568


def _checksum_form(data: bytes, version: int, source: IPAddress, destination: IPAddress) -> ChecksumForm | None:
    """Which form of checksum is right (F09: both are accepted)."""
    with_header = pseudo_header(source, destination, PROTOCOL_NUMBER, len(data)) + data
    if version == 3 and internet_checksum(with_header) == 0:
        return ChecksumForm.RFC5798 if source.version == 4 else None
    if source.version == 4 and internet_checksum(data) == 0:
        return ChecksumForm.RFC9568 if version == 3 else None
    raise InvalidAdvertisement(InvalidReason.CHECKSUM, "wrong in every form")


def _interval(version: int, field: int) -> int:
    if version == 3:
        # RFC 9568 section 5.2.7: the upper four bits are reserved and ignored on receipt.
        interval_cs = field & 0x0FFF
    else:
        authentication, seconds = field >> 8, field & 0xFF
        if authentication:
            raise InvalidAdvertisement(InvalidReason.AUTHENTICATION, f"type {authentication}; use none on all nodes")
        interval_cs = seconds * 100
    if interval_cs == 0:
        raise InvalidAdvertisement(InvalidReason.INTERVAL, "0")
    return interval_cs

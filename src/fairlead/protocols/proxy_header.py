# SPDX-License-Identifier: Apache-2.0
"""The PROXY protocol, versions 1 and 2: what probes send, and what receivers make of any bytes.

Source: "The PROXY protocol", section 2 (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt).
Invariant: pure; this is the reference that the worker's own parser is compared with.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import Enum
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from fairlead.model.net import Endpoint, IPAddress

SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
LENGTH_MAX = 4096  # bytes of an accepted header; larger ones are refused
LINE_MAX = 107  # of version 1, with CR LF
UNIQUE_ID_MAX = 128
AUTHORITY, CRC32C, UNIQUE_ID = 2, 3, 5

_VERSION_2_LOCAL = 0x20
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_HEAD = struct.Struct("!12sBBH")
_BLOCKS = {1: 12, 2: 36, 3: 216}  # bytes of addresses by family: IPv4, IPv6, unix


class Malformed(Exception):
    """The bytes are not the beginning of a PROXY header."""


class Kind(Enum):
    """Whose addresses a header tells."""

    ADDRESSES = 0
    UNKNOWN = 1  # UNKNOWN, UNSPEC or a family that cannot be used: those of the connection count
    LOCAL = 2  # nobody's: the proxy itself connected


@dataclass(frozen=True, slots=True)
class Header:
    """A decoded header of ``length`` bytes; ``tlvs`` are type and value, in order."""

    length: int
    kind: Kind
    source: Endpoint | None = None
    destination: Endpoint | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()


def version_1(source: Endpoint, destination: Endpoint) -> bytes:
    """One line with both ends of the connection: ``UNKNOWN``, though legal, is refused by many receivers."""
    family = "TCP6" if source.address.version == 6 else "TCP4"
    return f"PROXY {family} {source.address} {destination.address} {source.port} {destination.port}\r\n".encode("ascii")


def version_2_local() -> bytes:
    """Command LOCAL without addresses: "established on purpose by the proxy without being relayed"."""
    return SIGNATURE_2 + bytes((_VERSION_2_LOCAL, 0, 0, 0))


def version_2(
    source: Endpoint,
    destination: Endpoint,
    tlvs: tuple[tuple[int, bytes], ...] = (),
    *,
    datagram: bool = False,
    checksum: bool = False,
) -> bytes:
    """Command PROXY with the addresses of a relayed connection or datagram, both of one family."""
    family = 1 if source.address.version == 4 else 2
    block = source.address.packed + destination.address.packed + struct.pack("!HH", source.port, destination.port)
    parts = (*tlvs, (CRC32C, bytes(4))) if checksum else tlvs
    block += b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in parts)
    data = _HEAD.pack(SIGNATURE_2, 0x21, family << 4 | (2 if datagram else 1), len(block)) + block
    return data[:-4] + struct.pack("!I", crc32c(data)) if checksum else data


def decode(data: bytes, *, datagram: bool = False) -> Header | None:
    """The header that ``data`` begins with; None while more bytes are needed (never for a datagram).

    Raises:
        Malformed: There is none, and there will be none.
    """
    header = None
    if SIGNATURE_2.startswith(data[:12]):
        header = _binary(data, datagram=datagram)
    elif not datagram and b"PROXY ".startswith(data[:6]):
        header = _line(data)
    else:
        raise Malformed("no signature")
    if header is None and datagram:
        raise Malformed("the datagram ends within its header")
    return header


def _line(data: bytes) -> Header | None:
    text, end, rest = data[:LINE_MAX].partition(b"\r")
    if not end or (not rest and len(data) < LINE_MAX):
        if len(data) >= LINE_MAX:
            raise Malformed("no end of line")
        return None
    if not rest.startswith(b"\n"):
        raise Malformed("CR without LF")
    length = len(text) + 2
    if b"\0" in text:
        raise Malformed("a NUL")
    if re.match(rb"PROXY UNKNOWN( |$)", text):
        return Header(length, Kind.UNKNOWN)
    fields = text.split(b" ")
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        raise Malformed("not TCP4 or TCP6 with four values")
    source, destination = (_endpoint(fields[1], fields[n], fields[n + 2]) for n in (2, 3))
    return Header(length, Kind.ADDRESSES, source, destination)


def _endpoint(family: bytes, address: bytes, port: bytes) -> Endpoint:
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise Malformed("a port out of range")
    try:
        text = address.decode("ascii")
        if family == b"TCP4":
            return Endpoint(IPv4Address(text), int(port))
        if "%" in text:
            raise Malformed("an address with a zone")
        return Endpoint(_plain(IPv6Address(text)), int(port))
    except (AddressValueError, UnicodeDecodeError) as error:
        raise Malformed("not an address") from error


def _plain(address: IPv6Address) -> IPAddress:
    return address.ipv4_mapped or address


def _binary(data: bytes, *, datagram: bool) -> Header | None:
    if len(data) > 12 and (data[12] >> 4 != 2 or data[12] & 15 > 1):
        raise Malformed("unknown version or command")
    if len(data) < _HEAD.size:
        return None
    _, command, family, size = _HEAD.unpack_from(data)
    length = _HEAD.size + size
    if length > LENGTH_MAX:
        raise Malformed("too long")
    if len(data) < length:
        return None
    if command == _VERSION_2_LOCAL:
        return Header(length, Kind.LOCAL)
    family, transport = family >> 4, family & 15
    if family > 3 or transport > 2:
        raise Malformed("unknown family or transport")
    if family == 0:
        return Header(length, Kind.UNKNOWN)
    if size < _BLOCKS[family]:
        raise Malformed("too short for its addresses")
    tlvs = tuple(_tlvs(data[:length], _HEAD.size + _BLOCKS[family]))
    if family == 3 or transport != (2 if datagram else 1):
        return Header(length, Kind.UNKNOWN, tlvs=tlvs)
    width = 4 if family == 1 else 16
    source, destination = data[16 : 16 + width], data[16 + width : 16 + 2 * width]
    ports = struct.unpack_from("!HH", data, 16 + 2 * width)
    ends = [
        Endpoint(IPv4Address(raw) if width == 4 else _plain(IPv6Address(raw)), port)
        for raw, port in zip((source, destination), ports, strict=True)
    ]
    return Header(length, Kind.ADDRESSES, ends[0], ends[1], tlvs)


def _tlvs(header: bytes, at: int) -> list[tuple[int, bytes]]:
    found = []
    while at < len(header):
        if len(header) - at < 3:
            raise Malformed("a TLV without its length")
        kind, size = struct.unpack_from("!BH", header, at)
        value = header[at + 3 : at + 3 + size]
        if len(value) < size:
            raise Malformed("a TLV beyond the header")
        if kind == CRC32C:
            zeroed = header[: at + 3] + bytes(size) + header[at + 3 + size :]
            if size != 4 or int.from_bytes(value) != crc32c(zeroed):
                raise Malformed("the checksum is wrong")
        if kind == UNIQUE_ID and size > UNIQUE_ID_MAX:
            raise Malformed("the unique id is too long")
        found.append((kind, value))
        at += 3 + size
    return found


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720 appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF

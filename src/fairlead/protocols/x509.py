# SPDX-License-Identifier: Apache-2.0
"""When a certificate ends: the one field that is wanted of those that nobody verified (RFC 5280 section 4.1)."""

from __future__ import annotations

from datetime import UTC, datetime

from fairlead.errors import MalformedPacket

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_BEFORE_VALIDITY = 3  # serialNumber, signature, issuer


def not_after(certificate: bytes) -> float:
    """The end of a certificate in DER, in seconds since the Unix epoch.

    Raises:
        MalformedPacket: It is no certificate.
    """
    _, whole, _ = _element(certificate)
    _, signed, _ = _element(whole)
    tag, _, rest = _element(signed)
    fields = rest if tag == _VERSION else signed
    for _ in range(_BEFORE_VALIDITY):
        _, _, fields = _element(fields)
    tag, validity, _ = _element(fields)
    if tag != _SEQUENCE:
        raise MalformedPacket("a certificate without validity")
    _, _, rest = _element(validity)
    tag, text, _ = _element(rest)
    return _moment(tag, text)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first element, and what follows it."""
    if len(data) < 2:
        raise MalformedPacket("a certificate is cut off")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        if not 3 <= start <= 6:
            raise MalformedPacket("a certificate with an element of unknown length")
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise MalformedPacket("a certificate is cut off")
    return data[0], data[start : start + length], data[start + length :]


def _moment(tag: int, text: bytes) -> float:
    """Both forms are in UTC, with seconds; two-digit years from 50 on are of the last century (section 4.1.2.5)."""
    if tag == _UTC_TIME:
        text = (b"19" if text[:2] >= b"50" else b"20") + text
    elif tag != _GENERALIZED_TIME:
        raise MalformedPacket("a certificate whose end is no time")
    try:
        return datetime.strptime(text.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except (ValueError, UnicodeDecodeError) as error:
        raise MalformedPacket("a certificate whose end is no time") from error

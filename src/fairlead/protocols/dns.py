# SPDX-License-Identifier: Apache-2.0
"""As much DNS as a probe needs: one question out, one answer checked (RFC 1035 sections 3.1 and 4.1).

Invariant: names in an answer are skipped, never followed, so that no pointer can lead in a circle.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fairlead.errors import MalformedPacket

RECORD_TYPES = {
    "A": 1,
    "NS": 2,
    "CNAME": 5,
    "SOA": 6,
    "PTR": 12,
    "MX": 15,
    "TXT": 16,
    "AAAA": 28,
    "SRV": 33,
    "HTTPS": 65,
    "ANY": 255,
}

RCODES = {
    0: "NOERROR",
    1: "FORMERR",
    2: "SERVFAIL",
    3: "NXDOMAIN",
    4: "NOTIMP",
    5: "REFUSED",
    6: "YXDOMAIN",
    7: "YXRRSET",
    8: "NXRRSET",
    9: "NOTAUTH",
    10: "NOTZONE",
}

_HEADER = struct.Struct("!6H")
_CLASS_IN = 1
_RESPONSE, _TRUNCATED, _RECURSION_DESIRED, _RCODE = 0x8000, 0x0200, 0x0100, 0x000F


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """What a probe wants to know of a response; ``answers`` is the number of records in its answer section."""

    identifier: int
    rcode: int
    answers: int

    @property
    def rcode_name(self) -> str:
        """The name of the response code (RFC 6895 section 2.3)."""
        return RCODES.get(self.rcode, f"RCODE{self.rcode}")


def encode_name(name: str) -> bytes:
    """``name`` as labels; ``.`` is the root.

    Raises:
        ValueError: It is no name that can be sent.
    """
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".")] if name.strip(".") else []
    if any(not 0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name!r} is no domain name: a label has 1 to 63 bytes")
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(wire) > 255:
        raise ValueError(f"{name!r} is no domain name: it has more than 255 bytes")
    return wire


def encode_query(identifier: int, name: str, record: str) -> bytes:
    """One question with recursion desired.

    Raises:
        ValueError: ``name`` or ``record`` cannot be asked for.
    """
    if record not in RECORD_TYPES:
        raise ValueError(f"{record!r} is no record type that can be asked for: {', '.join(RECORD_TYPES)}")
    question = encode_name(name) + struct.pack("!HH", RECORD_TYPES[record], _CLASS_IN)
    return _HEADER.pack(identifier, _RECURSION_DESIRED, 1, 0, 0, 0) + question


def decode_answer(data: bytes, query: bytes) -> DnsAnswer:
    """The response ``data`` to ``query``, as made by ``encode_query``.

    Raises:
        MalformedPacket: It is no response to this question.
    """
    if len(data) < _HEADER.size:
        raise MalformedPacket("shorter than a DNS header")
    identifier, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    if not flags & _RESPONSE:
        raise MalformedPacket("a query instead of a response")
    asked = query[_HEADER.size :]
    begin = data[_HEADER.size : _HEADER.size + len(asked)]
    # Some servers leave the question out when they refuse (RFC 1035 does not say that they must not).
    if questions == 1 and begin.lower() == asked.lower():
        offset = _HEADER.size + len(asked)
    elif questions == 0 and flags & _RCODE:
        offset = _HEADER.size
    else:
        raise MalformedPacket("a response to another question")
    if not flags & _TRUNCATED:
        for _ in range(answers):
            offset = _skip_record(data, offset)
    return DnsAnswer(identifier, flags & _RCODE, answers)


def _skip_record(data: bytes, offset: int) -> int:
    offset = _skip_name(data, offset) + 10
    if offset > len(data):
        raise MalformedPacket("a record is cut off")
    offset += int.from_bytes(data[offset - 2 : offset], "big")
    if offset > len(data):
        raise MalformedPacket("a record is cut off")
    return offset


def _skip_name(data: bytes, offset: int) -> int:
    while offset < len(data):
        length = data[offset]
        if length >= 0xC0:  # a pointer ends the name (section 4.1.4)
            return offset + 2
        if length >= 0x40:
            raise MalformedPacket("a label of an unknown kind")
        offset += 1 + length
        if length == 0:
            return offset
    raise MalformedPacket("a name is cut off")
